"""Whole runs over a real sshd: the output byte for byte, a laptop that dies, an end that fails, a stop."""

from __future__ import annotations

import hashlib
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import (
    REPOSITORY,
    Box,
    Laptop,
    find_marked,
    poll,
    read_until,
    write_project,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(110)]

DATA = REPOSITORY / "tests" / "e2e" / "data"
STEADY = (DATA / "steady.py").read_text()
RANKS = (DATA / "ranks.py").read_text()
TINY = [
    "--steps=6",
    "--layers=1",
    "--heads=1",
    "--width=16",
    "--block-size=16",
    "--batch-size=4",
    "--warmup=2",
    "--log-every=1",
    "--eval-every=3",
    "--checkpoint-every=3",
]


TALKING = """
import os
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} is here", flush=True)
for step in range(1, 4):
    print(f"step {step}/3 | loss {1 / step:.4f} | 20.0 ms", flush=True)
"""


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.torch
def test_two_processes_train_a_gpt_and_everything_of_it_comes_home(
    laptop: Laptop, box: Box, tmp_path: Path
) -> None:
    project = tmp_path / "gpt"
    shutil.copytree(REPOSITORY / "examples" / "gpt", project, ignore=shutil.ignore_patterns("__pycache__"))

    done = laptop.ok(project, "run", "--nproc-per-node", "2", "train.py", *TINY, seconds=100)

    run = done.run_id()
    assert "torchrun, 2 processes" in done.err
    assert done.out == box.log(run)
    assert b"world size: 2" in done.out
    assert b"step 6/6" in done.out
    pulled = project / "runs" / run / "files" / "out" / "ckpt.pt"
    assert hash_of(pulled) == hash_of(box.code(run) / "out" / "ckpt.pt")
    assert "MFU" in done.err
    assert "of 100 GFLOP/s (hosts.toml" in done.err  # the denominator beside the figure, and where it is from
    assert box.processes(run) == []


@pytest.mark.torch
def test_two_ranks_each_have_an_output_and_the_first_one_s_is_told(
    laptop: Laptop, box: Box, project: Path
) -> None:
    """Ranks without torch: that gradients are shared is shown above, and in tests/examples."""
    write_project(project, {"train.py": TALKING})

    done = laptop.ok(project, "run", "--json", "--nproc-per-node", "2", "train.py", seconds=100)

    started, ended = done.event("started"), done.event("ended")
    run = started["run"]
    assert started["host"] == "box"
    assert started["plan"]["launcher"] == "torchrun"
    output = "".join(event["data"] for event in done.events if event["event"] == "output")
    assert output.encode() == box.log(run)
    assert "rank 0 of 2 is here" in output
    assert b"rank 1 of 2 is here" in box.log(run, 1)
    losses = [event["loss"] for event in done.events if event["event"] == "metric"]
    assert losses
    assert losses[-1] < losses[0]
    assert ended["error"] is None
    assert ended["exit"]["code"] == 0
    assert ended["exit"]["outputs"].keys() == {"0", "1"}


def test_a_killed_laptop_loses_no_byte(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    write_project(project, {"train.py": STEADY})
    process = laptop.popen(project, "run", "--env", f"GATE={gate}", "train.py")
    seen = read_until(process.stdout, b"half way\n")
    process.kill()
    process.communicate()
    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    assert box.processes(run) != []  # training does not care

    mirror = project / "runs" / run / "attempts" / "1" / "ranks" / "0.log"
    assert box.log(run).startswith(mirror.read_bytes())
    gate.touch()
    done = laptop.ok(project, "logs", "-f")

    assert done.out == box.log(run) == mirror.read_bytes()
    assert done.out.startswith(seen)
    assert done.out.count(b"\n") == 4001
    pulled = project / "runs" / run / "files" / "out" / "ckpt.pt"
    assert hash_of(pulled) == hash_of(box.code(run) / "out" / "ckpt.pt")
    assert f"{run} is done" in done.err


def test_logs_again_after_the_end_asks_nobody(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    gate.touch()
    write_project(project, {"train.py": STEADY})
    first = laptop.ok(project, "run", "--env", f"GATE={gate}", "train.py")
    laptop.hosts_file.write_text(laptop.hosts_file.read_text().replace(str(box.sshd.port), "9"))

    again = laptop.ok(project, "logs")

    assert again.out == first.out


@pytest.mark.parametrize("grace", ["0", "20"])
def test_stop_leaves_no_process(laptop: Laptop, box: Box, project: Path, grace: str) -> None:
    write_project(project, {"train.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"})
    process = laptop.popen(project, "run", "train.py")
    read_until(process.stdout, b"up\n")
    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    cookie = box.cookie(run)
    assert find_marked(cookie) != []

    stopped = laptop.ok(project, "stop", "--grace", grace)

    assert "nothing of it is left" in stopped.err
    assert find_marked(cookie) == []
    _, err = process.communicate(timeout=30)
    assert process.returncode == 15  # who was attached is told so
    assert f"{run} was stopped" in err.decode()
    assert laptop.ok(project, "ps").out.split()[-1] == b"stopped"


@pytest.mark.torch
def test_stop_ends_a_torchrun_job_and_its_ranks(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": RANKS})
    process = laptop.popen(project, "run", "--nproc-per-node", "2", "train.py")
    read_until(process.stdout, b"is here\n", 60)
    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    cookie = box.cookie(run)
    poll(lambda: len(find_marked(cookie)) >= 5, "torchrun, two shims, two ranks")

    laptop.ok(project, "stop", "--grace", "5")

    assert find_marked(cookie) == []
    process.communicate(timeout=30)
    assert process.returncode == 15


@pytest.mark.torch
def test_a_failing_rank_is_named_with_its_code_and_its_last_lines(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": RANKS})

    done = laptop.type(project, "run", "--nproc-per-node", "2", "--env", "FAIL=1", "train.py").expect(1)

    assert "the training ended with code 7; rank 1 failed first" in done.err
    assert "rank 1 of 2 is here\n  boom in rank 1\n" in done.err
    assert "--rank 1" in done.err  # the next step shows the rank that matters
    run = done.run_id()
    assert box.processes(run) == []
    assert laptop.ok(project, "logs", "--rank", "1").out == box.log(run, 1)


@pytest.mark.torch
def test_json_says_the_same_of_a_failing_rank(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": RANKS})

    done = laptop.type(
        project, "run", "--json", "--nproc-per-node", "2", "--env", "FAIL=1", "train.py"
    ).expect(1)

    ended = done.event("ended")
    assert ended["exit"]["first_failure"] == {"rank": 1, "code": 7, "signal": None}
    assert (ended["error"]["kind"], ended["error"]["exit_code"]) == ("training-failed", 1)
    assert (ended["error"]["code"], ended["error"]["rank"]) == (7, 1)
    assert done.event("failure")["tail"].endswith("boom in rank 1")


def test_a_failure_of_one_process_has_its_own_code_and_is_not_printed_twice(
    laptop: Laptop, project: Path
) -> None:
    write_project(project, {"train.py": "raise SystemExit('no data')"})

    done = laptop.type(project, "run", "train.py").expect(1)

    assert done.out == b"no data\n"
    assert "no data" not in done.err
    assert "the training ended with code 1" in done.err
    assert "rank" not in done.err


def test_a_training_killed_by_a_signal_says_which(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "import os\nos.kill(os.getpid(), 9)\n"})

    done = laptop.type(project, "run", "--json", "train.py").expect(1)

    assert done.event("ended")["error"]["signal"] == signal.SIGKILL
    assert "ended by signal 9 (SIGKILL)" in done.event("ended")["error"]["message"]


def test_binary_output_is_exact(laptop: Laptop, box: Box, project: Path) -> None:
    blob = bytes(range(256)) * 40 + b"\x1b]0;title\x07\x9b\xff\xfe no line end"
    write_project(
        project,
        {
            "blob.dat": blob,
            "train.py": "import sys\nsys.stdout.buffer.write(open('blob.dat','rb').read())\n",
        },
    )

    done = laptop.ok(project, "run", "train.py")

    assert done.out == blob == box.log(done.run_id())


@pytest.mark.slow
def test_twenty_megabytes_of_output_arrive(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfor n in range(200_000):\n    sys.stdout.write(f'{n:08d} ' + 'y' * 91 + '\\n')\n"
        "sys.stdout.flush()\n"
    )
    write_project(project, {"train.py": script})

    with (tmp_path / "out").open("wb") as out:
        process = laptop.popen(project, "run", "train.py", stdout=out)
        process.communicate(timeout=60)

    assert process.returncode == 0
    assert (tmp_path / "out").stat().st_size == 200_000 * 101
    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    assert hash_of(tmp_path / "out") == hashlib.sha256(box.log(run)).hexdigest()


def test_two_at_once_do_not_mix(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "import sys\nprint(sys.argv[1] * 1000)\n"})
    both = [laptop.popen(project, "run", "train.py", word) for word in ("a", "b")]

    outputs = [process.communicate(timeout=60)[0] for process in both]

    assert outputs == [b"a" * 1000 + b"\n", b"b" * 1000 + b"\n"]
    assert len(list((box.root / "runs").iterdir())) == 2


def test_a_second_attachment_sees_everything_too(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    write_project(project, {"train.py": STEADY})
    first = laptop.popen(project, "run", "--env", f"GATE={gate}", "train.py")
    seen = read_until(first.stdout, b"half way\n")
    second = laptop.popen(project, "logs", "-f")
    again = read_until(second.stdout, b"half way\n")
    gate.touch()

    rest = [process.communicate(timeout=40) for process in (first, second)]

    (run,) = [path.name for path in (box.root / "runs").iterdir()]
    assert (first.returncode, second.returncode) == (0, 0), rest
    assert seen + rest[0][0] == again + rest[1][0] == box.log(run)


def test_ended_while_nobody_looked(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    write_project(project, {"train.py": STEADY})
    started = laptop.ok(project, "run", "-d", "--env", f"GATE={gate}", "train.py")
    run = started.run_id()
    assert f"remote-train logs -f {run}" in started.err
    assert started.out == b""
    gate.touch()
    poll((box.attempt(run) / "exit.json").exists, "the run's end")

    assert laptop.ok(project, "logs").out == box.log(run)
