"""Resume against a full disk, a command that is killed in the middle, and an attempt that never came about."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.machines import known_line, poll, write_project
from tests.faults.counts import PATIENT, Goal
from tests.faults.tiny_disk import tiny_tmpfs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd]

SIZE = 20 << 20
SETTINGS = 'checkpoints = ["ckpt.bin"]\nresume_args = ["--resume"]\n'
SAVING = f"""
import os, sys
print("resumed" if "--resume" in sys.argv else "began", os.path.exists("ckpt.bin"), flush=True)
open("ckpt.bin", "wb").write(os.urandom({SIZE}))
"""


UNBEGUN = ("starting", "unknown", "created")
"""What is known of an attempt whose start did not arrive, or was given up on its host when its laptop was gone."""


def record(project: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "runs" / run / "run.json").read_text())
    return found


@pytest.mark.timeout(110)
def test_where_it_does_not_fit_nothing_is_started_and_the_run_is_as_it_was(
    alone: Laptop, box: Box, project: Path
) -> None:
    write_project(project, {"train.py": SAVING, "remote-train.toml": SETTINGS})
    alone.ok(project, "run", "--local", "--name", "big", "train.py")
    before = record(project, "big")
    with tiny_tmpfs(box.home / "small" / "remote-train", 30 << 20) as disk:
        known = f'default = ["box"]\n[hosts.box]\n{box.describe(state_dir=quote(disk.place))}'
        alone.write_hosts(known)
        alone.trust(known_line(box.sshd))
        refused = alone.type(project, "resume", "big", "--host", "box").expect(14)
        assert f"going on takes {2 * SIZE:,} bytes" in refused.err
        assert "remote-train gc --host box" in refused.err
        assert record(project, "big")["attempts"] == before["attempts"]
        assert record(project, "big")["state"] == "ended"
        assert list((disk.place / "blobs").glob("??/*")) == []
    done = alone.ok(project, "resume", "big", "--local")
    assert done.out == b"resumed True\n"


def quote(path: Path) -> str:
    return json.dumps(str(path))


@PATIENT
def test_a_command_that_is_killed_at_any_time_leaves_a_run_that_can_be_resumed(
    laptop: Laptop, box: Box, project: Path
) -> None:
    """Its attempt began, or never will; a later one goes on from the newest checkpoint all the same."""
    write_project(project, {"train.py": SAVING, "remote-train.toml": SETTINGS})
    with Goal("G-resume kills of the command", reduced=1, nightly=60) as goal:
        for number, trial in enumerate(goal):
            with trial:
                run = f"kill-{number}"
                laptop.ok(project, "run", "--name", run, "train.py")
                process = laptop.popen(project, "resume", run)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=trial.chance.uniform(0.2, 2.0))
                process.send_signal(signal.SIGKILL)
                process.communicate()

                def is_over(run: str = run) -> bool:
                    laptop.ok(project, "ps", "--json")
                    return record(project, run)["state"] in ("ended", *UNBEGUN)

                poll(is_over, "its end")
                done = laptop.ok(project, "resume", run)
                assert done.out == b"resumed True\n"
                numbers = [item["attempt"] for item in record(project, run)["attempts"]]
                assert numbers == list(range(1, len(numbers) + 1))
                there = {int(path.name) for path in (box.root / "runs" / run / "attempts").iterdir()}
                assert {1, numbers[-1]} <= there <= set(numbers)
