"""A screen on a terminal that takes nothing, takes it slowly, or is drawn on a thousand times a second."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import threading
import tty
from pathlib import Path
from typing import TYPE_CHECKING

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.show import display
from remote_train.show.display import Display, collapse_redraws
from remote_train.show.live import LiveListener
from remote_train.show.screen import OutputClosed, Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 30.0
SKIPPED = re.compile(rb"\xe2\x80\xa6 ([\d,]+) lines skipped, all of it is in /the/log\r?\n")


class Glass:
    """A terminal in raw mode, read only when told to, with a display on it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.out = os.fdopen(slave, "wb")
        self.err = os.fdopen(os.dup(slave), "w", encoding="utf-8")
        self.seen = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        screen = Screen(
            self.out,
            self.err,
            stdout_is_terminal=True,
            stderr_is_terminal=True,
            width=lambda: 80,
            colour=False,
        )
        self.display = Display(screen)
        self.display.go_live(Path("/the/log"))

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self.master, 65536):
                self.seen += piece

    def end(self) -> None:
        """Hang up, and let go of everything."""
        with contextlib.suppress(OSError):
            os.close(self.master)
        self.display.close(SECONDS)
        for stream in (self.out, self.err):
            stream.close()

    def read_to_the_end(self) -> bytes:
        """Begin to read, end the display, and return everything that was shown."""
        if self.reader.ident is None:
            self.reader.start()
        self.display.close()
        self.out.close()
        self.err.close()
        self.reader.join(SECONDS)
        assert not self.reader.is_alive()
        return self.seen


@pytest.fixture
def glass() -> Iterator[Glass]:
    """A terminal that nobody reads yet."""
    made = Glass()
    yield made
    made.end()


def count_shown(seen: bytes) -> tuple[list[int], int]:
    """Return the numbers of the lines that were shown, and how many lines were said to be skipped."""
    skipped = sum(int(match[1].replace(b",", b"")) for match in SKIPPED.finditer(seen))
    return [int(match[1]) for match in re.finditer(rb"line (\d+)\n", seen)], skipped


def test_a_terminal_that_takes_nothing_holds_up_nobody(glass: Glass) -> None:
    """Twenty times what may wait goes through while not one byte is read; then the end of it is seen."""
    total = 0
    while total < 20 * display.WAITING // 16:
        lines = b"".join(b"line %09d\n" % number for number in range(total, total + 10_000))
        glass.display.output(lines)
        total += 10_000
        assert glass.display._size <= display.WAITING
    glass.display.say("a message")
    seen = glass.read_to_the_end()
    shown, skipped = count_shown(seen)
    assert skipped > total // 2
    assert len(shown) + skipped == total
    assert shown == sorted(shown)
    assert shown[-1] == total - 1
    assert seen.count(b"remote-train: a message\n") == 1


def test_a_terminal_that_keeps_up_gets_every_byte_in_order(glass: Glass) -> None:
    glass.reader.start()
    for number in range(2000):
        glass.display.output(b"line %d\n" % number)
        if number % 100 == 0:
            glass.display.say(f"message {number}")
    seen = glass.read_to_the_end()
    expected = b"".join(
        b"line %d\n" % number + (b"remote-train: message %d\n" % number if number % 100 == 0 else b"")
        for number in range(2000)
    )
    assert seen == expected


def test_messages_and_statuses_for_a_stuck_terminal_take_no_memory_without_end(glass: Glass) -> None:
    glass.display.output(b"x" * 200_000)  # more than a terminal's buffer: its thread is stuck from here on
    for number in range(50_000):
        glass.display.status(f"step {number}")
        glass.display.say(f"message {number}")
    assert len(glass.display._waiting) <= display.MESSAGES + 4
    seen = glass.read_to_the_end()
    assert b"remote-train: message 0\n" in seen


def test_a_signal_leaves_a_stuck_terminal_at_once(glass: Glass) -> None:
    def interrupt() -> None:
        with glass.display as shown:
            shown.output(b"x" * 1_000_000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()  # comes back with the terminal still stuck


def test_a_terminal_that_is_gone_ends_the_output(glass: Glass) -> None:
    os.close(glass.master)

    def write_until_told() -> None:
        for _ in range(100_000):
            glass.display.output(b"line\n")

    with pytest.raises(OutputClosed):
        write_until_told()


def test_what_does_not_go_to_a_terminal_is_exact_and_waits_for_its_reader() -> None:
    read_end, write_end = os.pipe()
    master, slave = pty.openpty()  # nobody reads the messages, and nobody waits for them
    received: list[bytes] = []
    with os.fdopen(write_end, "wb") as out, os.fdopen(slave, "w", encoding="utf-8") as err:
        screen = Screen(
            out, err, stdout_is_terminal=False, stderr_is_terminal=True, width=lambda: 80, colour=False
        )
        shown = Display(screen)
        shown.go_live(Path("/the/log"))
        with os.fdopen(read_end, "rb") as source:
            reader = threading.Thread(target=lambda: received.append(source.read()))
            reader.start()
            for number in range(300):
                shown.say("x" * 1000)
                shown.output(bytes([number % 256]) * 65536)
            out.close()
            reader.join(SECONDS)
        os.close(master)
        shown.close(SECONDS)
    assert b"".join(received) == b"".join(bytes([number % 256]) * 65536 for number in range(300))


def test_a_bar_drawn_a_thousand_times_is_drawn_now_and_then(glass: Glass) -> None:
    glass.reader.start()
    for step in range(5001):
        glass.display.output(b"\r%4d/5000 |%-20s|" % (step, b"#" * (step // 250)))
    glass.display.output(b"\ndone\n")
    seen = glass.read_to_the_end()
    assert seen.count(b"\r") < 1000
    assert seen.endswith(b"\r5000/5000 |" + b"#" * 20 + b"|\ndone\n")


def screen_of(data: bytes) -> tuple[list[str], list[list[str]]]:
    screen = pyte.Screen(60, 12)
    screen.set_mode(pyte.modes.LNM)
    pyte.ByteStream(screen).feed(data)
    cells = [[screen.buffer[row][column].fg for column in range(60)] for row in range(12)]
    return list(screen.display), cells


BARS = st.lists(
    st.sampled_from([b"\r", b"\r", b"\n", b"abc", b"x", b"12345", b"\r\n", b"\x1b[31m", b"\x1b[0m"]),
    max_size=24,
).map(b"".join)


@given(BARS)
def test_a_collapsed_bar_leaves_the_screen_as_all_of_it_would(data: bytes) -> None:
    assert screen_of(collapse_redraws(data))[0] == screen_of(data)[0]
    plain = re.sub(rb"\x1b\[\d*m", b"", data)
    assert screen_of(collapse_redraws(plain)) == screen_of(plain)


@given(BARS)
def test_a_collapsed_bar_leaves_the_colour_as_it_was(data: bytes) -> None:
    colours = re.compile(rb"\x1b\[[0-9;]*m")
    assert colours.findall(collapse_redraws(data)) == colours.findall(data)


def collect(glass: Glass, *outputs: tuple[int, bytes]) -> bytes:
    listener = LiveListener(glass.display, prefix_ranks=True)
    for rank, data in outputs:
        listener.output(rank, data)
    listener.tell("ended", run="run", verdict=None)
    return glass.read_to_the_end()


def test_ranks_are_told_apart_line_by_line(glass: Glass) -> None:
    seen = collect(glass, (0, b"a\nb"), (1, b"c\n\nd\n"), (0, b"e\n"), (1, b"rest"))
    assert seen == b"[0] a\n[1] c\n[1] \n[1] d\n[0] be\n[1] rest\nremote-train: run is done\n"


def test_an_endless_line_of_a_rank_is_not_held_without_end(glass: Glass) -> None:
    glass.reader.start()
    listener = LiveListener(glass.display, prefix_ranks=True)
    for _ in range(200):
        listener.output(0, b"x" * 10_000)
        listener.output(1, b"short\n")
        assert sum(map(len, listener._partial.values())) < 128 * 1024
    listener.tell("ended", run="run", verdict=None)
    lines = glass.read_to_the_end().split(b"\n")
    assert lines.count(b"[1] short") == 200
    assert all(line.startswith((b"[0] x", b"[1] short", b"remote-train: ")) for line in lines if line)
