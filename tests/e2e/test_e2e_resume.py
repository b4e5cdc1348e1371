"""A run goes on: on its host, on another, on this machine; from its newest checkpoint, with its own code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from tests.e2e.machines import Box, Laptop, known_line, poll, running_box, write_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(110)]

TINY = [
    "--steps=8",
    "--layers=1",
    "--heads=1",
    "--width=16",
    "--block-size=16",
    "--batch-size=4",
    "--warmup=2",
    "--log-every=1",
    "--eval-every=4",
    "--checkpoint-every=2",
]
WHERE = [["--host", "box"], ["--host", "other"], ["--local"]]

# Counts to 9, one file a step; holds at the step that GATE names until the file is there.
COUNTING = """
import os, sys, time
start = int(open("out/ckpt.pt").read()) + 1 if "--resume" in sys.argv else 1
print("args", *sys.argv[1:], flush=True)
print("begins at", start, flush=True)
gate, _, hold = os.environ.get("GATE", "").rpartition(":")
os.makedirs("out", exist_ok=True)
for step in range(start, 10):
    while str(step) == hold and not os.path.exists(gate):
        time.sleep(0.01)
    with open("out/new", "w") as file:
        file.write(str(step))
    os.replace("out/new", "out/ckpt.pt")
    print(f"step {step}/9 | loss {1 / step:.4f} | 20.0 ms", flush=True)
"""
SETTINGS = 'checkpoints = ["out/ckpt.pt"]\nresume_args = ["--resume"]\n'


@pytest.fixture
def other(laptop: Laptop, box: Box, tmp_path: Path) -> Iterator[Box]:
    """A second host that the laptop knows."""
    with running_box(tmp_path / "second") as made:
        laptop.trust(known_line(box.sshd), known_line(made.sshd))
        laptop.write_hosts(
            f'default = ["box"]\n[hosts.box]\n{box.describe()}[hosts.other]\n{made.describe()}'
        )
        yield made


def losses(output: bytes) -> dict[int, str]:
    """Return the losses of a gpt's output by step, as they were printed."""
    return {int(step): loss for step, loss in re.findall(r"step (\d+)/\d+ \| loss ([\d.]+)", output.decode())}


def record(project: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "runs" / run / "run.json").read_text())
    return found


def mirror(project: Path, run: str, attempt: int) -> bytes:
    return (project / "runs" / run / "attempts" / str(attempt) / "ranks" / "0.log").read_bytes()


def hold(laptop: Laptop, project: Path, gate: Path, step: int, *args: str) -> str:
    """Start the counting script and stop it while it holds at a step."""
    write_project(project, {"train.py": COUNTING, "remote-train.toml": SETTINGS})
    run = laptop.ok(project, "run", "-d", *args, "--env", f"GATE={gate}:{step}", "train.py").run_id()
    poll(lambda: f"step {step - 1}/9" in laptop.ok(project, "logs", run).out.decode(), "its step")
    laptop.ok(project, "stop", "--grace", "0", run)
    return run


@pytest.mark.parametrize("where", WHERE, ids=lambda where: where[-1].strip("-"))
def test_it_goes_on_from_the_newest_checkpoint(
    laptop: Laptop, box: Box, other: Box, project: Path, tmp_path: Path, where: list[str]
) -> None:
    run = hold(laptop, project, tmp_path / "go", 5)
    (project / "train.py").write_text("raise SystemExit('this is not the code of the run')")
    (tmp_path / "go").touch()

    done = laptop.ok(project, "resume", run, *where)

    assert done.out == b"args --resume\nbegins at 5\n" + b"".join(
        b"step %d/9 | loss %.4f | 20.0 ms\n" % (step, 1 / step) for step in range(5, 10)
    )
    assert "going on from out/ckpt.pt of attempt 1" in done.err
    first, second = record(project, run)["attempts"]
    host = where[1] if len(where) > 1 else "local"
    assert (first["host"], second["host"], record(project, run)["host"]) == ("box", host, host)
    assert second["checkpoint"]["attempt"] == 1
    assert second["checkpoint"]["sha256s"].keys() == {"out/ckpt.pt"}
    assert second["checkpoint"]["step"] in (None, 1, 2, 3, 4)
    assert mirror(project, run, 2) == done.out
    assert (project / "runs" / run / "files" / "out" / "ckpt.pt").read_text() == "9"
    assert laptop.ok(project, "ps", "--json").event("run")["host"] == host
    assert laptop.ok(project, "logs", run).out == done.out
    root = {"box": box.root, "other": other.root, "local": laptop.root}[host]
    attempt = json.loads((root / "runs" / run / "attempts" / "2" / layout.ATTEMPT).read_text())
    assert [row["path"] for row in attempt["restored"]] == ["out/ckpt.pt"]
