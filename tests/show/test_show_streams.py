"""Writing to real pipes, files and a real terminal. What is shown there is tested in test_show_screen.py."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import BinaryIO, TextIO

import pyte
import pytest

from remote_train.errors import LocalSpace
from remote_train.show.screen import OutputClosed, Screen, write_all


def make_screen(stdout: BinaryIO, stderr: TextIO) -> Screen:
    return Screen(
        stdout, stderr, stdout_is_terminal=False, stderr_is_terminal=False, width=lambda: 80, colour=False
    )


def make_dead_pipe() -> int:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


def test_a_reader_who_left_ends_the_output_with_a_name() -> None:
    with os.fdopen(make_dead_pipe(), "wb") as stdout, pytest.raises(OutputClosed):
        make_screen(stdout, sys.stderr).output(b"nobody reads this")
    # leaving the block closes the stream: nothing is left in a buffer that would fail there


def test_without_a_reader_of_stderr_the_output_goes_on() -> None:
    stdout = io.BytesIO()
    with os.fdopen(make_dead_pipe(), "w", encoding="utf-8") as stderr:
        screen = make_screen(stdout, stderr)
        screen.say("nobody hears this")
        screen.say("nor this")
        screen.output(b"data")
    assert stdout.getvalue() == b"data"


def test_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("wb") as full, pytest.raises(LocalSpace, match="No space left") as caught:
        write_all(full, b"data")
    assert caught.value.hint


class Reluctant(io.FileIO):
    """A non-blocking pipe whose reader begins only when the writer met a full pipe."""

    def __init__(self, descriptor: int, reader: threading.Thread) -> None:
        super().__init__(descriptor, "w")
        self.reader = reader

    def write(self, data: object) -> int:
        written = super().write(data)  # type: ignore[arg-type]  # any buffer
        if written is None and self.reader.ident is None:
            self.reader.start()
        return written


@pytest.mark.parametrize("buffered", [False, True])
def test_a_stream_that_would_block_gets_every_byte(*, buffered: bool) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    received: list[bytes] = []
    with os.fdopen(read_end, "rb") as source:
        reader = threading.Thread(target=lambda: received.append(source.read()))
        data = bytes(range(256)) * 8192  # 2 MiB: thirty times what a pipe holds
        raw = Reluctant(write_end, reader)
        with io.BufferedWriter(raw) if buffered else raw as stream:
            write_all(stream, data)
        reader.join()
    assert received == [data]


CHILD = """
import os, sys
from remote_train.show.screen import Screen
width = lambda: os.get_terminal_size(1).columns
with Screen(sys.stdout.buffer, sys.stderr, stdout_is_terminal=sys.stdout.isatty(),
            stderr_is_terminal=sys.stderr.isatty(), width=width, colour=True, clock=iter(range(99)).__next__) as screen:
    screen.status("step 1")
    screen.output(b"iter 1\\x1b]0;owned\\x07\\n")
    screen.status("step 2")
    screen.output(b"half a ")
    screen.say("still here")
    screen.output(b"line\\n")
    screen.status("step 3")
"""


def test_on_a_real_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={"PYTHONPATH": str(Path.cwd()), "HOME": str(tmp_path)},
    )
    os.close(slave)
    data = b"".join(iter(lambda: read_terminal(master), b""))
    os.close(master)
    assert child.wait() == 0
    screen = pyte.Screen(80, 24)
    pyte.ByteStream(screen).feed(data)
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert screen.title == ""
    assert shown == [r"iter 1\x1b]0;owned\x07", "half a", "remote-train: still here", "line"]
    assert b"step 3" in data


def read_terminal(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # EIO: the child closed it
        return b""
