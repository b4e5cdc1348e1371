"""The terminal: a training's output on stdout, our own talk on stderr, and a status line that stays last.

Every write of the program to either stream goes through here. What is written is decided elsewhere.

Where both streams are the same terminal they share one cursor, hence the rules of the status line: it is erased
before anything else is written, and drawn again only when the output stands at the start of a line. While a
training is in the middle of a line, or draws a bar with carriage returns, the status is withheld: its line is never
torn. A message of ours cannot wait, so it first ends such a line and stands on the next.
"""

from __future__ import annotations

import errno
import re
import select
import time
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, BinaryIO, Self, TextIO

from remote_train.errors import LocalSpace
from remote_train.redaction import Redactor, redact_text
from remote_train.show.neutral import RESET, LineCap, Neutraliser, neutral_text
from remote_train.show.words import truncate_cells

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "remote-train: "
REDRAW_SECONDS = 0.1
SETTLE_SECONDS = 0.2
ROOM = 3  # columns kept free behind the status: a terminal echoes Ctrl-C as ^C, which must not wrap
_ERASE = "\r\x1b[K"
_GONE = frozenset({errno.EPIPE, errno.EIO})  # the reader left; the terminal hung up
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_COLOURS = re.compile(rb"\x1b\[[0-9;:]*m")
_TAIL = 512  # bytes looked at to see where the cursor stands


class OutputClosed(Exception):
    """Nobody reads the stream any more (`| head` has enough, or the terminal is gone); the run is not affected."""


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Write every byte, past any buffer, waiting where the stream would block.

    A terminal may be non-blocking because another program left it so. Going past Python's buffer leaves nothing
    that fails again when the interpreter exits. Raises OutputClosed, or LocalSpace for a file on a full disk.
    """
    raw = getattr(stream, "raw", stream)
    rest = memoryview(data)
    try:
        while rest:
            written = raw.write(rest)
            if written is None:  # EAGAIN
                select.select([], [raw], [])
            else:
                rest = rest[written:]
    except OSError as error:
        raise _name_error(error) from error


def _name_error(error: OSError) -> Exception:
    if error.errno in _GONE:
        return OutputClosed(error.strerror)
    if error.errno in _FULL:
        hint = "free some space, then attach again with `remote-train logs`"
        return LocalSpace(f"cannot write the output: {error.strerror}", hint=hint)
    return error


@dataclass(eq=False)
class Screen:
    """Write output and talk to two streams that may be one terminal. For one thread; a slow stream blocks it (display.py).

    `width` gives the terminal's columns now (with 0 there is no status; some terminals say 0, so use
    shutil.get_terminal_size, which then says 80), `clock` seconds that never go back. The streams are those under
    Python's own, which nothing else writes to: sys.stdout.buffer and sys.stderr.
    """

    stdout: BinaryIO
    stderr: TextIO
    _: KW_ONLY
    stdout_is_terminal: bool
    stderr_is_terminal: bool
    width: Callable[[], int]
    colour: bool
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._shared = self.stdout_is_terminal and self.stderr_is_terminal
        self._cap, self._neutral, self._hiding = LineCap(), Neutraliser(), Redactor()
        self._at_start = True  # of a line: where the output left the cursor
        self._status: str | None = None
        self._drawn: str | None = None  # the status line as it stands on the terminal
        self._drawn_at = self._came_at = float("-inf")
        self._deaf = False  # nobody reads stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def output(self, data: bytes) -> None:
        """Write a training's output: exact bytes, or what is harmless and no secret of them when stdout is a terminal.

        Raises OutputClosed when nobody reads it any more.
        """
        if self.stdout_is_terminal:
            self._came_at = self.clock()
            self._show(self._neutral.feed(self._cap.feed(self._hiding.feed(data))))
        else:
            write_all(self.stdout, data)

    def leave_out(self, note: str) -> None:
        """End the line the output stands in, and say in the place of what is not shown how much that is."""
        self._hiding.drop()  # it may be the beginning of a secret whose end is left out
        self._show(self._flush())
        ends_line = "" if self._at_start else "\n"
        self._show(f"{ends_line}{neutral_text(note)}\n".encode())

    def say(self, text: str) -> None:
        """Write one message of ours to stderr; the lines after its first are indented."""
        self._talk(_render_message("", text))

    def warn(self, text: str) -> None:
        """Write one warning to stderr."""
        self._talk(_render_message(self._paint("33", "warning: "), text))

    def error(self, message: str, hint: str | None = None) -> None:
        """Write an error to stderr and, after an empty line, the next step."""
        text = _render_message(self._paint("31", "error: "), message)
        if hint:
            text += "\n" + _render_lines(self._paint("36", "hint: "), hint)
        self._talk(text)

    def status(self, text: str | None) -> None:
        """Set the line that stays last on the terminal, or take it away; without a terminal nothing is written."""
        self._status = text
        if text is None:
            self._write(self._take_erase())
        self.tick()

    def wipe(self) -> None:
        """Take away what the terminal echoed (`^C`) in the line where our next message will stand."""
        if self.stderr_is_terminal and self._at_start:
            self._take_erase()
            self._write(_ERASE)

    def tick(self) -> None:
        """Draw the status if it is due: at most ten times a second. For the caller's loop when nothing comes."""
        self._settle()
        if self._may_draw() and self.clock() - self._drawn_at >= REDRAW_SECONDS:
            self._draw()

    def _settle(self) -> None:
        """Show the end of an output that stands still."""
        if self.stdout_is_terminal and self.clock() - self._came_at >= SETTLE_SECONDS:
            self._came_at = float("inf")
            self._show(self._neutral.feed(self._cap.feed(self._hiding.settle())))

    def close(self) -> None:
        """End the output: show what was held back, reset colours, take the status away. May be called again."""
        self.status(None)
        if self.stdout_is_terminal:
            self._show(self._flush())

    def _flush(self) -> bytes:
        """Return what was held back of the output, harmless."""
        rest = self._cap.feed(self._hiding.flush()) + self._cap.flush()
        return self._neutral.feed(rest) + self._neutral.flush()

    def farewell(self) -> bytes:
        """Return what leaves the terminal as a person wants it, for a process that is ended at any place of its code."""
        if not self.stderr_is_terminal:
            return b""
        colours = RESET if self._shared else b""
        if self._drawn or self._at_start or not self._shared:
            return colours + _ERASE.encode()
        return colours + b"\r\n"

    def _show(self, shown: bytes) -> None:
        if not shown:
            return
        self._write(self._take_erase())
        write_all(self.stdout, shown)
        self._at_start = _is_at_start(shown, otherwise=self._at_start)
        self.tick()

    def _talk(self, lines: str) -> None:
        ends_line = "" if self._at_start or not self._shared else "\n"
        self._write(self._take_erase() + ends_line + lines)
        self._at_start = self._at_start or self._shared
        self.tick()

    def _may_draw(self) -> bool:
        free = self._at_start or not self._shared
        return self.stderr_is_terminal and self._status is not None and free

    def _draw(self) -> None:
        line = truncate_cells(neutral_text(redact_text(self._status or "")), self.width() - ROOM)
        if line == self._drawn:
            return
        self._write(self._take_erase() + self._paint("2", line))
        self._drawn, self._drawn_at = line, self.clock()

    def _take_erase(self) -> str:
        drawn, self._drawn = self._drawn, None
        return _ERASE if drawn else ""

    def _write(self, text: str) -> None:
        """Write to stderr, with the training's colours taken off around it where both are one terminal.

        When nobody reads stderr there is nobody left to tell: messages are dropped, the output goes on.
        """
        if not text or self._deaf:
            return
        data = text.encode(self.stderr.encoding or "utf-8", "backslashreplace")
        colours = self._neutral.colours if self._shared else b""
        try:
            write_all(self.stderr.buffer, RESET + data + colours if colours else data)
        except (OutputClosed, LocalSpace):
            self._deaf = True

    def _paint(self, sgr: str, text: str) -> str:
        painted = self.colour and self.stderr_is_terminal and text
        return f"\x1b[{sgr}m{text}\x1b[m" if painted else text


def _render_message(label: str, text: str) -> str:
    return _render_lines(PREFIX + label, text)


def _render_lines(lead: str, text: str) -> str:
    """Neutral lines: the first after its lead, the others indented so that none can pass for one of ours."""
    lines = redact_text(text).split("\n")
    return lead + "\n  ".join(map(neutral_text, lines)) + "\n"


def _is_at_start(shown: bytes, *, otherwise: bool) -> bool:
    """Return whether the cursor stands in an untouched line after this; colours alone leave it as it was."""
    tail = _COLOURS.sub(b"", shown[-_TAIL:])
    return tail.endswith(b"\n") if tail else otherwise
