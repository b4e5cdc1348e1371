"""A screen with a thread of its own: a terminal that takes nothing more holds up neither the mirror nor Ctrl-C.

While a run is followed, the follower hands over what is to be seen and goes on. Messages wait in order. Output waits
up to WAITING bytes; when more has come, all of it that waits is left out and counted, so that the view is live as
soon as the terminal takes something again. Nothing of that touches the mirror. Output that does not go to a terminal
must be exact: it is written by the follower itself, at the pace of its reader.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from remote_train.show.screen import OutputClosed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from remote_train.show.screen import Screen

WAITING = 4 << 20
PIECE = 64 * 1024
"""Bytes shown in one go: what a message or the end waits for at most."""
MESSAGES = 1000
REDRAW_SECONDS = 0.05
FLOOD_SECONDS = 0.02
"""Pause behind a piece while output is left out: nobody reads faster, and the mirror needs the time."""
LOOK_SECONDS = 0.25
LEAVE_SECONDS = 0.4
"""A signal asks for the prompt within 1 s: what a terminal has not taken by then it does not get."""

_COLOURS = re.compile(rb"\x1b\[[0-9;:]*m")


class Display:
    """What the commands write to: a screen, and from `go_live` on a thread that has it to itself."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._waiting: deque[bytes | Callable[[], None]] = deque()
        self._size = self._messages = 0  # bytes of output and messages that wait
        self._gap = Gap()
        self._status: tuple[str | None] | None = None
        self._ending = False
        self._failure: OutputClosed | None = None
        self._log: Path | None = None
        self._quiet_until = 0.0

    @property
    def stderr_is_terminal(self) -> bool:
        """Whether there is a status line."""
        return self._screen.stderr_is_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        asked_to_leave = kind is not None and not issubclass(kind, Exception)
        self.close(LEAVE_SECONDS if asked_to_leave else None)

    def go_live(self, log: Path) -> None:
        """Show what comes from now on from a thread, where anything is a terminal; `log` has what is left out."""
        self._log = log
        if self._thread is None and (self._screen.stdout_is_terminal or self._screen.stderr_is_terminal):
            self._thread = threading.Thread(target=self._run, name="display", daemon=True)
            self._thread.start()

    def output(self, data: bytes) -> None:
        """Show a training's output, or leave it out. Raises OutputClosed when nobody reads it any more."""
        if self._thread is None or not self._screen.stdout_is_terminal:
            self._screen.output(data)
            return
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._size + len(data) > WAITING:
                self._leave_out()
            self._waiting.append(data)
            self._size += len(data)
            self._changed.notify_all()

    def _leave_out(self) -> None:
        """Count the output that waits as left out; messages stay."""
        for entry in self._waiting:
            if isinstance(entry, bytes):
                self._gap.add(entry)
        self._waiting = deque(entry for entry in self._waiting if not isinstance(entry, bytes))
        self._size = 0

    def say(self, text: str) -> None:
        """Write one message of ours."""
        self._talk(lambda: self._screen.say(text))

    def warn(self, text: str) -> None:
        """Write one warning."""
        self._talk(lambda: self._screen.warn(text))

    def error(self, message: str, hint: str | None = None) -> None:
        """Write an error and the next step."""
        self._talk(lambda: self._screen.error(message, hint))

    def wipe(self) -> None:
        """Take away what the terminal echoed where our next message will stand."""
        self._talk(self._screen.wipe)

    def status(self, text: str | None) -> None:
        """Set the line that stays last; of several that wait the newest counts."""
        if self._thread is None:
            self._screen.status(text)
            return
        with self._changed:
            self._status = (text,)
            self._changed.notify_all()

    def _talk(self, message: Callable[[], None]) -> None:
        if self._thread is None:
            message()
            return
        with self._changed:
            if self._messages < MESSAGES:
                self._waiting.append(message)
                self._messages += 1
            self._changed.notify_all()

    def farewell(self) -> bytes:
        """Return what leaves the terminal as a person wants it, for who has to end at once."""
        return self._screen.farewell()

    def close(self, seconds: float | None = None) -> None:
        """Show what waits and end the output; a terminal that is stuck is waited for, or given so many seconds."""
        thread, self._thread = self._thread, None
        if thread is None and seconds is None:
            self._screen.close()
            return
        if thread is None:
            thread = threading.Thread(target=self._run, name="display", daemon=True)
            thread.start()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        thread.join(seconds)

    def _run(self) -> None:
        """Be the only one who writes, until the end."""
        try:
            while (work := self._next()) is not None:
                work()
            self._screen.close()
        except OutputClosed as error:
            self._fail(error)
        except OSError as error:
            self._fail(OutputClosed(error.strerror))

    def _fail(self, error: OutputClosed) -> None:
        with self._changed:
            self._failure = error
            self._waiting.clear()
            self._size = 0

    def _next(self) -> Callable[[], None] | None:
        """Wait for what is to be written next; None at the end."""
        with self._changed:
            while True:
                if self._status is not None:
                    (text,), self._status = self._status, None
                    return lambda: self._screen.status(text)
                pause = 0.0 if self._ending else self._quiet_until - time.monotonic()
                if self._waiting and (pause <= 0 or not isinstance(self._waiting[0], bytes)):
                    return self._take()
                if self._ending:
                    return None
                if not self._changed.wait(pause if pause > 0 else LOOK_SECONDS):
                    return self._screen.tick

    def _take(self) -> Callable[[], None]:
        """Return the work for what stands first: a message, or as much output as fits a piece."""
        first = self._waiting[0]
        if not isinstance(first, bytes):
            self._waiting.popleft()
            self._messages -= 1
            return first
        gap, self._gap = self._gap, Gap()
        data = gap.cut_line_rest(self._take_piece())
        return lambda: self._show(gap, data)

    def _take_piece(self) -> bytes:
        pieces, room = [], PIECE
        while room and self._waiting and isinstance(entry := self._waiting[0], bytes):
            self._waiting.popleft()
            if len(entry) > room:
                self._waiting.appendleft(entry[room:])
            pieces.append(entry[:room])
            room -= len(pieces[-1])
        self._size -= PIECE - room
        return b"".join(pieces)

    def _show(self, gap: Gap, data: bytes) -> None:
        if gap.size:
            self._screen.leave_out(f"… {gap.describe()} skipped, all of it is in {self._log}")
        self._screen.output(collapse_redraws(data))
        redraws = b"\r" in data[data.rfind(b"\n") + 1 :]
        pause = REDRAW_SECONDS if redraws else FLOOD_SECONDS if gap.size else 0.0
        self._quiet_until = time.monotonic() + pause


class Gap:
    """What was left out between two pieces of output."""

    def __init__(self) -> None:
        self.lines = 0
        self.size = 0
        self._open = False  # the last line left out goes on in what comes next

    def add(self, data: bytes) -> None:
        """Count it."""
        self.lines += data.count(b"\n")
        self.size += len(data)
        self._open = not data.endswith(b"\n")

    def cut_line_rest(self, data: bytes) -> bytes:
        """Return what follows the gap without the rest of a line whose beginning is missing."""
        end = data.find(b"\n") + 1 if self._open else 0
        if end:
            self.add(data[:end])
        return data[end:]

    def describe(self) -> str:
        """Return how much it is."""
        return f"{self.lines:,} lines" if self.lines else f"{self.size:,} bytes"


def collapse_redraws(data: bytes) -> bytes:
    r"""Return output in which a line drawn again and again behind \r is drawn once, as it stands at the end.

    A redraw stays when it reaches further than all after it, since those leave its end standing; of the others the
    colours stay. What stands before the first \r may go on a line that is on the screen, and stays.
    """
    if data.count(b"\r") < 2:
        return data
    return b"\n".join(map(_collapse_line, data.split(b"\n")))


def _collapse_line(line: bytes) -> bytes:
    first, *redraws = line.split(b"\r")
    kept, reach = [], -1
    for redraw in reversed(redraws):
        length = len(_COLOURS.sub(b"", redraw).decode("utf-8", "replace"))
        if length > reach:
            kept.append(b"\r" + redraw)
            reach = length
        else:
            kept.append(b"".join(_COLOURS.findall(redraw)))
    return first + b"".join(reversed(kept))
