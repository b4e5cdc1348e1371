"""A checkpoint on its way up to another host: cut at random bytes, it arrives whole, and little of it is sent twice."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import known_line, write_project
from tests.faults.chaos_proxy import FIN, RST, UP, Cut, Program
from tests.faults.counts import PATIENT, Goal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from tests.e2e.machines import Box, Laptop
    from tests.faults.chaos_proxy import ChaosProxy

pytestmark = [pytest.mark.sshd]

BLOCK = 4 << 20
SIZE = 7 * BLOCK + 1234
CUTS = 3
SAVING = f"""
import hashlib, os, sys
if "--resume" in sys.argv:
    print("resumed", hashlib.sha256(open("ckpt.bin", "rb").read()).hexdigest(), flush=True)
else:
    open("ckpt.bin", "wb").write(os.urandom({SIZE}))
"""


def make_program(chance: Random) -> Program:
    return Program(cuts=(Cut(UP, chance.randrange(BLOCK, SIZE // 2), chance.choice((FIN, RST))),))


def cut_first(programs: list[Program], first: int) -> Callable[[int], Program]:
    """Treat the next connections so, and those after them well."""
    return lambda line: programs[line - first] if line - first < len(programs) else Program()


@PATIENT
def test_a_checkpoint_goes_up_across_cuts(alone: Laptop, box: Box, proxy: ChaosProxy, project: Path) -> None:
    """Trained on this machine, taken to the box through the proxy."""
    alone.trust(known_line(box.sshd).replace(str(box.sshd.port), str(proxy.port)))
    alone.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(port=str(proxy.port))}')
    settings = 'checkpoints = ["ckpt.bin"]\nresume_args = ["--resume"]\n'
    write_project(project, {"train.py": SAVING, "remote-train.toml": settings})
    with Goal("G-resume cuts while a checkpoint goes up", reduced=1, nightly=20) as goal:
        for number, trial in enumerate(goal):
            with trial:
                name = f"cut-{number}"
                alone.ok(project, "run", "--local", "--name", name, "train.py")
                saved = (project / "runs" / name / "files" / "ckpt.bin").read_bytes()
                first = len(proxy.lines)
                proxy.program = cut_first([make_program(trial.chance) for _ in range(CUTS)], first)

                done = alone.ok(project, "resume", name, "--host", "box", seconds=100)

                assert done.out.decode().split() == ["resumed", hashlib.sha256(saved).hexdigest()]
                # The last cut may lie behind what was left to send.
                assert len(proxy.lines) - first >= CUTS
                sent = sum(line.flows[UP].passed for line in proxy.lines[first:])
                assert sent <= SIZE * 1.02 + CUTS * (BLOCK + (1 << 20)) + (1 << 20)
                assert [item["attempt"] for item in attempts(project, name)] == [1, 2]
                there = box.root / "runs" / name / "attempts"
                assert [path.name for path in there.iterdir()] == ["2"]


def attempts(project: Path, run: str) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads((project / "runs" / run / "run.json").read_text())["attempts"]
    return found
