"""A laptop whose disk is full or read-only: the stream goes on, exit 42 says what is missing, old files are as they were."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Laptop, poll, read_until, write_project
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import Seat, check
from tests.faults.tiny_disk import TinyDisk, tiny_tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = PATIENT

SIZE = 4 << 20
PRINTS = """
import os, sys, time
print("up", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
for number in range(3000):
    print("%06d" % number + "x" * 93)
"""
SAVES = """
import random, sys
open("model.pt", "wb").write(random.Random(int(sys.argv[1])).randbytes(int(sys.argv[2])))
"""


@pytest.fixture
def disk(project: Path) -> Iterator[TinyDisk]:
    """The project's folder, on a file system of its own."""
    with tiny_tmpfs(project, SIZE) as mounted:
        yield mounted


def expected() -> bytes:
    return b"up\n" + b"".join(b"%06d" % number + b"x" * 93 + b"\n" for number in range(3000))


def run_of(project: Path) -> str:
    (run,) = [path.name for path in (project / "runs").iterdir()]
    return run


def temporary(project: Path) -> list[Path]:
    return [path for path in project.rglob("*") if path.name.endswith((".tmp", ".remote-train-partial"))]


def test_the_stream_goes_on_when_the_mirror_cannot(
    alone: Laptop, project: Path, disk: TinyDisk, tmp_path: Path
) -> None:
    write_project(project, {"train.py": PRINTS})
    over = tmp_path / "over"
    process = alone.popen(project, "run", "--local", "train.py", str(over))
    begun = read_until(process.stdout, b"up\n")
    run = run_of(project)
    poll((project / "runs" / run / "attempts" / "1" / "ranks" / "0.log").exists, "the mirror")
    disk.fill()
    over.touch()
    rest, err = process.communicate(timeout=60)
    assert begun + rest == expected()
    assert process.returncode == 42, err
    words = err.decode()
    assert "No space left on device" in words
    assert f"remote-train logs {run}" in words
    assert "bytes are missing" in words
    assert "Traceback" not in words
    seat = Seat(project / "runs")
    check(alone.root, [seat])

    assert alone.type(project, "show", run).code == 0
    disk.release()
    assert alone.ok(project, "logs", run).out == expected()
    check(alone.root, [seat], complete=True)


def test_the_trainings_own_code_outranks_a_short_mirror(
    alone: Laptop, project: Path, disk: TinyDisk, tmp_path: Path
) -> None:
    write_project(project, {"train.py": PRINTS + "\nsys.exit(3)\n"})
    process = alone.popen(project, "run", "--local", "train.py", str(tmp_path / "over"))
    read_until(process.stdout, b"up\n")
    disk.fill()
    (tmp_path / "over").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert b"ended with code 3" in err


def test_a_run_is_not_started_where_its_record_finds_no_space(
    alone: Laptop, project: Path, disk: TinyDisk
) -> None:
    write_project(project, {"train.py": "print('done')"})
    disk.fill()
    refused = alone.type(project, "run", "--local", "train.py").expect(42)
    assert str(project / "runs") in refused.err
    assert "No space left on device" in refused.err
    assert "free space" in refused.err
    assert list((alone.root / "runs").glob("*")) == []
    assert list((project / "runs").glob("*")) == []
    disk.release()
    assert alone.ok(project, "run", "--local", "train.py").out == b"done\n"


def test_a_read_only_project_is_exit_42(alone: Laptop, project: Path, disk: TinyDisk) -> None:
    write_project(project, {"train.py": "print('done')"})
    alone.ok(project, "run", "--local", "--name", "one", "train.py")
    disk.remount("ro")
    refused = alone.type(project, "run", "--local", "train.py").expect(42)
    assert "Read-only file system" in refused.err
    assert alone.ok(project, "logs", "one").out == b"done\n"
    assert alone.type(project, "logs", "-f", "one").code in (0, 42)
    assert alone.ok(project, "ps").code == 0
    disk.remount("rw")


@pytest.mark.parametrize("mode", ["ro", "full"])
def test_a_state_folder_that_takes_nothing_is_named(
    alone: Laptop, project: Path, tmp_path: Path, mode: str
) -> None:
    write_project(project, {"train.py": "print('done')"})
    with tiny_tmpfs(tmp_path / "state of laptop", 1 << 20) as state:
        elsewhere = {"XDG_STATE_HOME": str(state.place)}
        if mode == "ro":
            state.remount("ro")
        else:
            state.fill()
        refused = alone.type(project, "run", "--local", "train.py", env=elsewhere).expect(42)
        assert str(state.place) in refused.err
        assert "XDG_STATE_HOME" in refused.err or "free space" in refused.err
        assert list((project / "runs").glob("*")) == []
        assert alone.ok(project, "ps", "--all", env=elsewhere).code == 0


def test_a_cache_folder_that_takes_nothing_costs_nothing(
    alone: Laptop, project: Path, tmp_path: Path
) -> None:
    write_project(project, {"train.py": "print('done')"})
    with tiny_tmpfs(tmp_path / "cache of laptop", 1 << 20) as cache:
        cache.remount("ro")
        alone.ok(project, "run", "--local", "train.py", env={"XDG_CACHE_HOME": str(cache.place)})


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_redirected_output_that_finds_no_space_is_exit_42(
    alone: Laptop, project: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    write_project(project, {"train.py": "print('x' * 100_000)"})
    with tiny_tmpfs(tmp_path / "tiny", 64 << 10) as tiny, (tiny.place / "out").open("wb") as out:
        process = alone.popen(project, "run", "--local", *options, "train.py", stdout=out)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 42, err
    assert b"No space left on device" in err
    assert b"Traceback" not in err


def test_an_answer_on_a_full_device_is_exit_42(alone: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('done')"})
    alone.ok(project, "run", "--local", "--name", "one", "train.py")
    with Path("/dev/full").open("wb") as full:
        for command in (("show", "one"), ("logs", "one")):
            process = alone.popen(project, *command, stdout=full)
            _, err = process.communicate(timeout=60)
            assert b"Traceback" not in err
            assert b"bug of ours" not in err
            assert process.returncode == 42, (command, err)


def test_a_pull_that_finds_no_space_leaves_the_old_file_as_it_was(
    alone: Laptop, project: Path, disk: TinyDisk
) -> None:
    write_project(project, {"train.py": SAVES})
    alone.ok(project, "run", "--local", "--no-pull", "--name", "one", "train.py", "1", str(1 << 20))
    alone.ok(project, "pull", "one")
    (place,) = (project / "runs" / "one" / "files").rglob("model.pt")
    before = place.read_bytes()
    made = alone.attempt("one") / "code" / "model.pt"
    made.write_bytes(os.urandom(1 << 20))

    goal = Goal("G8 laptop disk full at a random byte of a pull: exit 42 or whole", reduced=2, nightly=40)
    with goal:
        for trial in goal:
            with trial:
                disk.fill(leave=trial.chance.randrange(1 << 20))
                short = alone.type(project, "pull", "one").expect(42)
                assert "free" in short.err
                assert place.read_bytes() == before
                assert temporary(project) == []
                check(alone.root, [Seat(project / "runs")])
                disk.release()
    alone.ok(project, "pull", "one")
    assert place.read_bytes() == made.read_bytes()


def test_stop_works_while_this_disk_is_full(
    alone: Laptop, project: Path, disk: TinyDisk, tmp_path: Path
) -> None:
    write_project(project, {"train.py": PRINTS})
    alone.ok(project, "run", "--local", "-d", "--name", "one", "train.py", str(tmp_path / "never"))
    disk.fill()
    stopped = alone.ok(project, "stop", "one", "--grace", "0")
    assert "nothing of it is left" in stopped.err
    check(alone.root)


def test_a_gap_is_told_while_it_is_news_and_in_the_hint_of_a_failure(
    alone: Laptop, project: Path, tmp_path: Path
) -> None:
    """The training dies of a full disk on its host; what its traceback could not say the hint does."""
    words = PRINTS.replace("range(3000)", "range(10**9)")
    write_project(project, {"train.py": words})
    with tiny_tmpfs(alone.root / "runs", 4 << 20) as there:
        process = alone.popen(project, "run", "--local", "--name", "one", "train.py", str(tmp_path / "over"))
        read_until(process.stdout, b"up\n")
        clock = alone.attempt("one") / "clock.jsonl"
        poll(clock.exists, "the clock")
        (tmp_path / "over").touch()
        _, err = process.communicate(timeout=60)
        check(alone.root, [Seat(project / "runs")], complete=True)
        assert there.free >= 0
    told = err.decode()
    assert process.returncode == 1, told
    assert "local: the disk was full from " in told
    assert "may be missing" in told
    assert "on the host the disk was full while it ran" in told
    assert told.count("local: the disk was full from ") == 1


def test_an_output_at_the_limit_on_file_sizes_is_told(alone: Laptop, project: Path, tmp_path: Path) -> None:
    """The training dies of it and cannot even say so: its traceback would go to the same file."""
    write_project(project, {"train.py": PRINTS})
    (tmp_path / "over").touch()
    typed = [*alone.command, "run", "--local", "train.py", str(tmp_path / "over")]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 256; exec "$@"', "sh", *typed],
        cwd=project,
        env=alone.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(b"`ulimit -f`") == 2, done.stderr
