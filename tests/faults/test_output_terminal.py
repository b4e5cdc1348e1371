"""A person's terminal under hostile output: it gets colours and nothing else, and when it is stuck nothing waits for it."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from tests.e2e.machines import write_project
from tests.e2e.terminal import Terminal, open_terminal
from tests.faults.counts import PATIENT, is_nightly, note
from tests.faults.memory import Growth
from tests.faults.test_output_exact import SCRIPT, SECONDS, check_everywhere, find_attempt, only_run
from tests.host.account_kit import until

if TYPE_CHECKING:
    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

SKIPPED = re.compile(rb"\xe2\x80\xa6 ([\d,]+) lines skipped, all of it is in (\S+)\r\n")
TYPED = {"a signal": False, "the key": True}


def read_raw(terminal: Terminal, seconds: float = 300.0) -> bytes:
    """Read a terminal to its end, past pyte, which would take minutes for megabytes."""
    pieces: list[bytes] = []
    deadline = time.monotonic() + seconds
    while True:
        assert select.select([terminal.master], [], [], max(0.0, deadline - time.monotonic()))[0], "stuck"
        try:
            data = os.read(terminal.master, 1 << 20)
        except OSError:  # EIO: closed
            return b"".join(pieces)
        pieces.append(data)


def await_end(project: Path, box: Box) -> Path:
    """Wait until the run's end is recorded on its host; return its folder there."""
    until(lambda: (project / "runs").exists() and list((project / "runs").glob("*/run.json")), "the run")
    there = find_attempt(project, box)
    until((there / layout.EXIT).exists, "the end on the host", SECONDS)
    return there


def test_a_stuck_terminal_slows_neither_the_training_nor_the_mirror(
    box: Box, laptop: Laptop, project: Path
) -> None:
    size = 1_000_000_000 if is_nightly() else 30_000_000
    write_project(project, {"train.py": SCRIPT})
    with open_terminal(laptop, project, "run", "--no-pull", "train.py", "lines", str(size)) as terminal:
        growth = Growth(terminal.process.pid, box.home)
        there = await_end(project, box)
        mirror = only_run(project) / "attempts" / "1" / "ranks" / "0.log"
        growth.look()
        log = Path(layout.rank_log(str(there), 0))

        def is_whole() -> bool:
            growth.look()
            return mirror.exists() and mirror.stat().st_size == log.stat().st_size

        until(is_whole, "the mirror, while nobody reads the terminal", SECONDS)
        assert terminal.process.poll() is None
        seen = read_raw(terminal)
        assert terminal.process.wait(20) == 0
    check_everywhere(project, box, None)
    lines = log.read_bytes().count(b"\n")
    shown = len(re.findall(rb"(?m)^\d{9}\r$", seen))
    skips = [(int(count.replace(b",", b"")), path) for count, path in SKIPPED.findall(seen)]
    assert shown + sum(count for count, _ in skips) == lines
    assert {path for _, path in skips} == {os.fsencode(mirror)}
    assert b"%09d\r\n" % (lines - 1) in seen
    note(f"a stuck terminal, {size:,} bytes", 1, 0, 0.0, growth.check())


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize("way", TYPED)
def test_ctrl_c_gives_the_prompt_although_the_terminal_is_stuck(
    way: str, laptop: Laptop, project: Path
) -> None:
    write_project(project, {"train.py": SCRIPT + "\nimport time; time.sleep(600)\n"})
    with open_terminal(laptop, project, "run", "--no-pull", "train.py", "lines", "10000000") as terminal:
        until(lambda: (project / "runs").exists() and list((project / "runs").glob("*/run.json")), "the run")
        mirror = only_run(project) / "attempts" / "1" / "ranks" / "0.log"
        until(lambda: mirror.exists() and mirror.stat().st_size >= 10_000_000, "the mirror")
        began = time.monotonic()
        if TYPED[way]:
            terminal.key(b"\x03")
        else:
            terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(20) == 130
        took = time.monotonic() - began
    note(f"G4 prompt from a stuck terminal, {way}", 1, int(took > 1.5), took)
    assert took < 5
    laptop.ok(project, "stop", "--grace", "0")


def test_no_escape_of_a_training_moves_a_real_terminal(box: Box, laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": SCRIPT})
    with open_terminal(laptop, project, "run", "--no-pull", "train.py", "escapes", "20000") as terminal:
        before = (set(terminal.screen.mode), terminal.screen.margins, set(terminal.screen.tabstops))
        assert terminal.end() == 0
        screen = terminal.screen
    assert (set(screen.mode), screen.margins, set(screen.tabstops)) == before
    assert (screen.title, screen.icon_name, screen.cursor.hidden) == ("", "", False)
    assert terminal.answers == []
    ours = {b"\x1b[K", b"\x1b[m", b"\x1b[2m", b"\x1b[31m", b"\x1b[0m", b"\x1b[38;2;1;2;3m"}
    assert set(re.findall(rb"\x1b(?:\[[0-9;:]*[@-~])?", terminal.raw)) <= ours
    assert not set(terminal.raw) & set(b"\x07\b\x0e")
    assert r"\x1b]0;owned\x07" in terminal.text
    assert "<U+202E>" in terminal.text
    check_everywhere(project, box, None)


@pytest.mark.usefixtures("box")
def test_a_bar_is_drawn_some_times_and_mirrored_every_time(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": SCRIPT + "\nprint()\nprint('after the bar')\n"})
    with open_terminal(laptop, project, "run", "--no-pull", "train.py", "bars", "1000000") as terminal:
        seen = read_raw(terminal)
        assert terminal.process.wait(20) == 0
    mirror = (only_run(project) / "attempts" / "1" / "ranks" / "0.log").read_bytes()
    bars = re.findall(rb"\r *\d+%\|[# ]{50}\|", mirror)
    assert len(bars) > 15_000
    assert len(re.findall(rb"\r *\d+%\|", seen)) < len(bars) // 10
    assert bars[-1] + b"\r\nafter the bar\r\n" in seen
