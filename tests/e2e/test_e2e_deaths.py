"""What a person is told when a run dies: of itself, of a killed rank, launcher or supervisor, or with its host."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.machines import Laptop, poll, read_until, write_project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.torch, pytest.mark.timeout(200)]

TRAINING = """
import os, sys, time
rank = os.environ.get("RANK", "0")
os.makedirs("out", exist_ok=True)
if rank == "0":
    for step in (1, 2, 3):
        print(f"step {step}/100 | loss {5 - step:.4f} | 20.0 ms | 100 tok/s", flush=True)
    open("out/ckpt.pt", "w").write("saved")
print("up", os.getpid(), flush=True)
if sys.argv[1:] == ["fail"]:
    sys.exit(3)
time.sleep(600)
"""


@pytest.fixture
def training(project: Path) -> Path:
    return write_project(project, {"train.py": TRAINING})


def record_of(laptop: Laptop, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((laptop.attempt(run) / "attempt.json").read_text())
    return found


def pid_of(laptop: Laptop, run: str, rank: int = 0) -> int:
    log = laptop.attempt(run) / "ranks" / f"{rank}.log"

    def find() -> int | None:
        lines = log.read_text().splitlines() if log.exists() else []
        return next((int(line.split()[1]) for line in lines if line.startswith("up ")), None)

    poll(find, "the training's pid")
    return find() or 0


def attach(alone: Laptop, training: Path, *options: str) -> Any:
    process = alone.popen(training, "run", "--local", "--name", "r", *options, "train.py")
    pid_of(alone, "r")
    read_until(process.stdout, b"up ")
    return process


def test_a_killed_supervisor_is_a_lost_run_with_its_last_step_and_checkpoint(
    alone: Laptop, training: Path
) -> None:
    process = attach(alone, training)
    os.kill(record_of(alone, "r")["pid"], signal.SIGKILL)
    warned = read_until(process.stderr, b"not be known")
    assert b"its supervisor was killed: the training runs on" in warned
    shown = alone.ok(training, "show", "r").out.decode()
    assert "running" in shown
    assert "it runs on" in shown
    os.kill(pid_of(alone, "r"), signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 31
    assert b"r is lost: its supervisor was killed (local); how it ended is not known" in err
    assert b"last step 3 of 100; newest checkpoint " in err
    assert (training / "runs/r/files/out/ckpt.pt").read_text() == "saved"
    assert (
        "its supervisor was killed; how it ended is not known" in alone.ok(training, "show", "r").out.decode()
    )
    alone.type(training, "logs", "-f", "r").expect(31)


def test_a_restarted_host_is_told_from_a_killed_supervisor(
    alone: Laptop, training: Path, tmp_path: Path
) -> None:
    boot = tmp_path / "boot"
    boot.write_text("first")
    alone.extra["REMOTE_TRAIN_BOOT_ID_FILE"] = str(boot)
    process = attach(alone, training)
    boot.write_text("second")
    _, err = process.communicate(timeout=30)
    os.kill(record_of(alone, "r")["pid"], signal.SIGTERM)
    assert process.returncode == 31
    assert b"r is lost: the host was restarted (local)" in err
    assert b"last step 3 of 100; newest checkpoint " in err


def test_a_killed_rank_is_named_and_its_last_lines_are_shown(alone: Laptop, training: Path) -> None:
    process = attach(alone, training, "--nproc-per-node", "2")
    os.kill(pid_of(alone, "r", rank=1), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"the last lines of rank 1:\n  up " in err
    assert b"ended by signal 9 (SIGKILL); rank 1 failed first" in err
    assert b"last step 3 of 100; newest checkpoint " in err
    assert b"remote-train logs --rank 1 r" in err


def test_a_killed_torchrun_is_named(alone: Laptop, training: Path) -> None:
    process = attach(alone, training, "--nproc-per-node", "2")
    poll(lambda: record_of(alone, "r").get("child"), "the launcher's pid")
    os.kill(record_of(alone, "r")["child"], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"torchrun ended by signal 9 (SIGKILL)" in err


def test_a_failed_training_says_how_far_it_came(alone: Laptop, training: Path) -> None:
    done = alone.type(training, "run", "--local", "--name", "r", "train.py", "fail").expect(1)
    assert "the training ended with code 3" in done.err
    assert "last step 3 of 100; newest checkpoint " in done.err


def test_without_a_pull_the_newest_checkpoint_is_named_where_it_lies(alone: Laptop, training: Path) -> None:
    done = alone.type(training, "run", "--local", "--no-pull", "--name", "r", "train.py", "fail").expect(1)
    assert "newest checkpoint out/ckpt.pt (on the host: `remote-train pull r`)" in done.err


def test_restarts_are_torchruns_alone(alone: Laptop, training: Path) -> None:
    options = ("run", "--local", "--launcher", "python", "--max-restarts", "1", "train.py")
    assert "--max-restarts is torchrun's" in alone.type(training, *options).expect(2).err
