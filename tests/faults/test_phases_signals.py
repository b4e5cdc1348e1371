"""Ctrl-C, twice, SIGTERM and SIGHUP in every phase of every command, with the network frozen at just that place."""

from __future__ import annotations

import array
import fcntl
import random
import signal
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, poll, running_box
from tests.faults.counts import PATIENT, Goal, is_nightly, seed
from tests.faults.phases import PHASES, Stage, World, await_end, entered

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sshd, PATIENT]

PROMPT, AT_ONCE, SLACK = 1.0, 0.2, 2.0
CODES = {"ctrl-c": 130, "twice": 130, "term": 143, "hup": 129}
NUMBERS = {"term": signal.SIGTERM, "hup": signal.SIGHUP}
# What a Ctrl-C says; it is true, because the network is frozen and the host was held where it was.
WORDS = {
    "probe": "nothing was started",
    "login": "nothing was started",
    "bootstrap": "nothing was started",
    "ship": "nothing was started",
    "start": "may have been started on box",
    "stream": "goes on",
    "reconnecting": "goes on",
    "pull": "that came whole are kept",
    "stop": "the host goes on stopping",
}
STATES = {"ship": "not started", "start": "unknown", "stream": "running", "reconnecting": "running"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("phases")
    with running_box(folder / "box") as box:
        yield World.make(folder, box)


@dataclass
class Ended:
    """How a command ended, and how soon the prompt was back."""

    code: int
    took: float


def inflict(stage: Stage, fault: str) -> Ended:
    """Freeze the network and send a signal."""
    stage.freeze()
    terminal = stage.terminal
    if fault in NUMBERS:
        terminal.process.send_signal(NUMBERS[fault])
    else:
        terminal.key(b"\x03")
    if fault != "twice":
        return Ended(*await_end(terminal, 20.0))
    time.sleep(0.05)  # what the fault is
    terminal.key(b"\x03")
    return Ended(*await_end(terminal, 20.0))


def check(stage: Stage, phase: str, fault: str, ended: Ended) -> None:
    text, at = stage.terminal.text, f"{fault} in {phase}"
    print(f"{at}: the prompt is back after {ended.took:.2f} s")
    assert ended.code == CODES[fault], f"{at}: exit {ended.code}\n{text}"
    assert ended.took < (AT_ONCE if fault == "twice" else PROMPT) + SLACK, f"{at}: {ended.took:.2f} s\n{text}"
    assert "Traceback" not in text, f"{at}\n{text}"
    assert "bug of ours" not in text, f"{at}\n{text}"
    if fault != "twice":  # the second one may be echoed by the terminal when nobody is left to wipe it away
        assert stage.terminal.screen.cursor.x == 0, f"{at}: the prompt would stand in a line\n{text}"
    assert stage.terminal.screen.cursor.attrs.fg == "default"
    assert "reaching" not in text.rstrip().rpartition("\n")[2], f"{at}: the status line is still there"
    if fault != "twice":
        assert WORDS.get(phase, "") in text, f"{at}\n{text}"
        if phase in STATES:
            assert stage.record()["state"] == STATES[phase], at


def choose_faults(phase: str) -> set[str]:
    chance = random.Random(seed())
    chosen = {name: {"ctrl-c" if name in WORDS else chance.choice(list(CODES))} for name in PHASES}
    for fault in ("twice", "term", "hup"):
        chosen[chance.choice(list(WORDS))].add(fault)
    return chosen[phase]


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_gives_the_prompt_back(world: World, phase: str) -> None:
    """Reduced: the faults that the seed chooses, and a Ctrl-C where it has words; at night all, Ctrl-C 100 times."""
    for fault in CODES if is_nightly() else choose_faults(phase):
        times: list[float] = []
        with Goal(f"{fault} in {phase}", reduced=1, nightly=100 if fault == "ctrl-c" else 10) as goal:
            for trial in goal:
                with trial, entered(world, phase) as stage:
                    ended = inflict(stage, fault)
                    times.append(ended.took)
                    check(stage, phase, fault, ended)
            times.sort()
            goal.remark = f"p50 {times[len(times) // 2]:.2f} s, p99 {times[int(len(times) * 0.99)]:.2f} s"


def test_a_ctrl_c_during_a_start_that_is_answered_says_so(world: World) -> None:
    with entered(world, "start") as stage:
        stage.terminal.key(b"\x03")
        stage.release()
        code, took = await_end(stage.terminal, 20.0)
        text = stage.terminal.text
    assert code == 130
    print(f"prompt after {took:.2f} s")
    box: Box = world.box
    if "goes on" in text:  # the answer came in time
        assert stage.record()["state"] == "running"
        assert box.processes(stage.run) != []
    else:  # a busy machine
        assert "may have been started" in text
        assert stage.record()["state"] == "unknown"


def test_a_ctrl_c_while_nobody_reads_the_output(world: World) -> None:
    """The command is stuck in a write: `run | less` where nobody scrolls."""
    project = world.project({"train.py": "while True:\n    print('x' * 1000)\n"})
    name = world.name()
    process = world.laptop.popen(project, "run", "--name", name, "train.py")
    # A page of a pipe that a piece does not fit into stays half empty: it is full from somewhere above 32 KiB on.
    poll(lambda: bytes_waiting(process.stdout.fileno()) >= 32_000, "a full pipe")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code = process.wait(20)
    took = time.monotonic() - began
    err = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    world.laptop.ok(project, "stop", "--grace", "0", name)
    print(f"the prompt is back after {took:.2f} s")
    assert code == 130
    assert took < PROMPT + SLACK
    assert "goes on" in err


def bytes_waiting(fd: int) -> int:
    waiting = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    return waiting[0]
