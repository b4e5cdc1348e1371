"""A real terminal for end-to-end tests: a pty that is the command's controlling one, and pyte to see what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

import pyte

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.e2e.machines import Laptop

COLUMNS, LINES = 120, 40


class Terminal:
    """One command on a terminal: what it wrote, byte for byte, and the screen that this makes."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.master = master
        self.raw = b""
        self.screen = pyte.HistoryScreen(COLUMNS, LINES, history=5000)
        self.answers: list[str] = []
        # what the terminal would type back: a program that makes it speak can type commands
        setattr(self.screen, "write_process_input", self.answers.append)  # noqa: B010  (a method, to mypy)
        self._stream = pyte.ByteStream(self.screen)

    def key(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def read(self, seconds: float) -> bool:
        """Take what comes within some time; False once the terminal is closed."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the last process that had it open is gone
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
        """Read until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}\n{self.text}"
            assert self.read(0.05) or condition(), f"closed before {what}\n{self.text}"

    def wait_for(self, words: str) -> None:
        """Read until the screen shows some words."""
        self.wait(lambda: words in self.text, repr(words))

    def end(self, seconds: float = 20.0) -> int:
        """Read to the end; return the exit code."""
        until = time.monotonic() + seconds
        while self.read(0.05):
            assert time.monotonic() < until, f"waited {seconds:g} s for its end\n{self.text}"
        return self.process.wait(seconds)

    @property
    def text(self) -> str:
        """What stands on the screen, lines that scrolled away first."""
        gone = ["".join(line[x].data for x in range(COLUMNS)).rstrip() for line in self.screen.history.top]
        return "\n".join([*gone, *(line.rstrip() for line in self.screen.display)])


@contextlib.contextmanager
def open_terminal(laptop: Laptop, cwd: Path, *args: str) -> Iterator[Terminal]:
    """Type a command of ours on a terminal of its own; it is killed when the block ends."""
    with open_command([*laptop.command, *args], cwd, laptop.environment) as terminal:
        yield terminal


@contextlib.contextmanager
def open_command(argv: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Type any command on a terminal of its own; it is killed when the block ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**environment, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        ["setsid", "--ctty", *argv],
        cwd=cwd,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)
