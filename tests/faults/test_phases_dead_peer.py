"""A peer that is gone is noticed within 15 s in every phase, though every socket stays open; a slow one is not."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import PYTHON, running_box
from tests.faults.counts import PATIENT, is_nightly, note
from tests.faults.phases import PHASES, Stage, World, entered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, PATIENT]

DEADLINE, SLACK = 15.0, 2.0
LOGIN, LOGGING_IN = 30.0, {"login", "ps", "show", "logs", "attach", "hosts check"}
"""A host may be silent for as long as a login may take: it may be asking somebody's telephone."""
NOT_HERE = {"reconnecting"}  # there is no peer
AT_NIGHT = {"show", "logs", "attach", "hosts check"}
"""By day `ps`, `stream` and `login` stand for those that wait at the same places."""
GIVES_UP = {"probe": 10, "login": 30, "bootstrap": 30, "ps": 0, "show": 0, "logs": 0}
"""What a command ends with that does not come back by itself; the others dial anew."""
SLOW = 16.0  # seconds: longer than a silence may be


@dataclass
class Found:
    """What one phase came to."""

    took: float
    code: int | None
    text: str


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_box(tmp_path / "box") as box:
        yield World.make(tmp_path, box)


def watch(stage: Stage) -> Found:
    """Freeze the network, and wait until the command ends or dials anew."""
    terminal, lines = stage.terminal, len(stage.proxy.lines)
    stage.freeze()
    began = time.monotonic()
    while terminal.process.poll() is None and len(stage.proxy.lines) == lines:
        assert time.monotonic() - began < 40.0, f"nothing was noticed\n{terminal.text}"
        terminal.read(0.05)
    took = time.monotonic() - began
    while terminal.read(0.1) and terminal.process.poll() is not None:
        pass
    return Found(took, terminal.process.poll(), terminal.text)


def test_a_dead_peer_is_noticed_in_every_phase(world: World) -> None:
    """All at once: what takes time is the silence."""
    left_out = NOT_HERE if is_nightly() else NOT_HERE | AT_NIGHT
    phases = [phase for phase in PHASES if phase not in left_out]
    found: dict[str, Found] = {}
    slow: list[tuple[int, float]] = []
    entering = threading.Semaphore(2)

    def one(phase: str) -> None:
        with entering:
            opened = entered(world, phase)
            stage = opened.__enter__()
        try:
            found[phase] = watch(stage)
        finally:
            opened.__exit__(None, None, None)

    threads = [threading.Thread(target=one, args=(phase,)) for phase in phases]
    threads.append(threading.Thread(target=lambda: slow.append(launch_slowly(world))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    late: list[str] = []
    for phase in phases:
        took, text = found[phase].took, found[phase].text
        print(f"{phase:12} noticed after {took:5.1f} s, exit {found[phase].code}")
        limit = LOGIN if phase in LOGGING_IN else DEADLINE
        late += [phase] if took > limit + SLACK else []
        assert "Traceback" not in text, f"{phase}\n{text}"
        if phase in GIVES_UP:
            assert found[phase].code == GIVES_UP[phase], f"{phase}\n{text}"
    assert not late
    worst = max(item.took for item in found.values())
    note("dead peer in every phase", len(phases), 0, worst, f"at most {worst:.1f} s")
    ((code, seconds),) = slow
    assert code == 0
    assert seconds > SLOW, "it was slower than a silence may be, and alive"


def launch_slowly(world: World) -> tuple[int, float]:
    """Run a training on a host whose Python takes longer to come up than a dead peer may be silent."""
    slow = world.folder / "slow"
    slow.write_text(f'#!/bin/sh\nsleep {SLOW:.0f}\nexec {PYTHON} "$@"\n')
    slow.chmod(0o755)
    hosts = world.folder / "slow.toml"
    hosts.write_text(
        f'default = ["slowbox"]\n[hosts.slowbox]\n{world.box.describe(python=chr(34) + str(slow) + chr(34))}'
    )
    hosts.chmod(0o600)
    project = world.project({"train.py": "print('slow and well')"})
    began = time.monotonic()
    done = world.laptop.type(project, "run", "--hosts-file", str(hosts), "train.py", seconds=100)
    assert b"slow and well" in done.out, done.err
    return done.code, time.monotonic() - began
