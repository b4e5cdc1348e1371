"""A laptop that loses what it keeps of a run, or the process that keeps it: the run's end is told as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.retention import drop_leftovers
from tests.e2e.machines import Box, Laptop, poll, read_until, write_project
from tests.faults.counts import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, PATIENT]

STEPS = """
import os, sys, time
step = 0
while not os.path.exists(sys.argv[1]):
    step += 1
    print(f"step {step}/100000 | loss 1.0 | 50.0 ms | 100 tok/s", flush=True)
    time.sleep(0.05)
sys.exit(int(sys.argv[2]))
"""


typed: list[Any] = []


@pytest.fixture(autouse=True)
def _end_what_was_typed() -> Iterator[None]:
    yield
    for process in typed:
        process.kill()
        process.wait()
    typed.clear()


def begin(laptop: Laptop, project: Path, *args: str) -> Any:
    write_project(project, {"train.py": STEPS})
    process = laptop.popen(project, "run", "--name", "g", "train.py", *args)
    typed.append(process)
    read_until(process.stdout, b"step 3/")
    return process


@pytest.mark.parametrize(("how", "code"), [("well", 42), ("failing", 1), ("stopped", 15)])
def test_removed_records_are_told_once_and_the_runs_own_end_counts(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path, how: str, code: int
) -> None:
    over = tmp_path / "over"
    process = begin(laptop, project, str(over), "3" if how == "failing" else "0")
    shutil.rmtree(project / "runs")
    words = read_until(process.stderr, b"were removed")
    if how == "stopped":
        laptop.ok(project, "stop", "box:g", "--grace", "0")
    over.touch()
    _, rest = process.communicate(timeout=60)
    told = (words + rest).decode()
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert told.count("nothing of the output is kept") == 1
    assert "remote-train logs box:g" in rest.decode() or code == 15
    assert str(project / "runs" / "g") in told
    assert not (project / "runs").exists()
    assert laptop.ok(project, "logs", "box:g").out == box.log("g")


def test_records_removed_at_the_very_end_cost_the_stream_nothing(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    process = begin(laptop, project, str(tmp_path / "over"), "0")
    shutil.rmtree(project / "runs" / "g")
    (tmp_path / "over").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 42, err
    assert box.log("g").endswith(out)
    assert b"has ended well" in err
    assert b"remote-train logs box:g" in err
    assert not (project / "runs" / "g").exists()


def test_a_ctrl_c_without_records_says_how_to_come_back(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    process = begin(laptop, project, str(tmp_path / "over"), "0")
    shutil.rmtree(project / "runs")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert b"remote-train logs -f box:g" in err
    assert box.processes("g") != []


def test_a_removed_mirror_of_a_run_whose_record_is_there_is_fetched_anew(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    process = begin(laptop, project, str(tmp_path / "over"), "0")
    shutil.rmtree(project / "runs" / "g" / "attempts")
    words = read_until(process.stderr, b"were removed")
    (tmp_path / "over").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 42, words + err
    assert b"`remote-train logs g` completes it" in err
    assert laptop.ok(project, "logs", "g").out == box.log("g")
    assert (project / "runs/g/attempts/1/ranks/0.log").read_bytes() == box.log("g")


def watch_twice(laptop: Laptop, project: Path, *args: str) -> Any:
    """Follow a run in two processes, kill the one that writes the mirror, and return the other one."""
    writer = begin(laptop, project, *args)
    mirror = project / "runs/g/attempts/1/ranks/0.log"
    watcher = laptop.popen(project, "logs", "-f", "--no-pull", "g")
    typed.append(watcher)
    read_until(watcher.stdout, b"step 3/")
    writer.kill()
    writer.communicate()
    for place in ("run.json", "attempts/1/exit.json"):
        (project / "runs/g" / f"{place}.{writer.pid}.tmp").write_text("{")
    held = mirror.stat().st_size
    last = b"step %d/" % (mirror.read_bytes().count(b"\n") + 5)
    read_until(watcher.stdout, last)
    assert mirror.stat().st_size == held
    return watcher


def test_who_only_watched_completes_the_mirror_of_a_killed_writer(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    watcher = watch_twice(laptop, project, str(tmp_path / "over"), "3")
    (tmp_path / "over").touch()
    _, err = watcher.communicate(timeout=60)
    log = box.log("g")
    assert watcher.returncode == 1, err
    assert b"last step %d of" % log.count(b"\n") in err
    folder = project / "runs" / "g"
    assert (folder / "attempts/1/ranks/0.log").read_bytes() == log
    assert (folder / "attempts/1/exit.json").exists()
    assert [path for path in folder.rglob("*") if path.name.endswith(".tmp")] == []


def test_who_only_watched_verifies_what_a_killed_writer_left(
    laptop: Laptop, project: Path, tmp_path: Path
) -> None:
    watcher = watch_twice(laptop, project, str(tmp_path / "over"), "0")
    with (project / "runs/g/attempts/1/ranks/0.log").open("r+b") as mirror:
        mirror.write(b"X")
    (tmp_path / "over").touch()
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 41, err
    assert b"set aside" in err


def test_leftovers_of_the_dead_go_and_what_the_living_write_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"run.json.{dead.pid}.tmp", f"run.json.{os.getpid()}.tmp", "model.7.tmpl", "mine.tmp"):
        (tmp_path / name).touch()
    drop_leftovers(tmp_path, "*")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {f"run.json.{os.getpid()}.tmp", "model.7.tmpl", "mine.tmp"}


def test_a_training_that_fails_without_a_word_has_no_last_lines(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": "raise SystemExit(3)"})
    err = laptop.type(project, "run", "--launcher", "python", "--name", "g", "train.py").expect(1).err
    assert box.log("g") == b""
    assert "the last lines" not in err
    assert "torchrun" not in err


def test_a_leftover_in_the_index_goes_behind_the_next_launch(
    laptop: Laptop, project: Path, tmp_path: Path
) -> None:
    index = laptop.home / "state" / "remote-train" / "client" / "index"
    index.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = index / f"old.{dead.pid}.tmp"
    left.write_text(str(project / "runs" / "g"))
    process = begin(laptop, project, str(tmp_path / "over"), "0")
    poll(lambda: not left.exists(), "the leftover's end")
    (tmp_path / "over").touch()
    process.communicate(timeout=60)
