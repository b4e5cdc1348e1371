"""Leaving by a signal: quickly, quietly, and whatever the program is doing. What runs on a host goes on.

The first signal is an exception in the main thread, so that whoever is interrupted says what is true. Python runs a
handler only when the main thread comes back to it, which a write to a stopped terminal or a disk may keep it from.
So a thread hears of every signal too, straight from the C level, and ends the process at the second one, or when
the first has not done so in time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAVE_SECONDS = 0.9
"""From the first signal to the end; the contract has 1 s."""
ECHO_SECONDS = 0.03
"""A terminal sends the signal of a Ctrl-C first and echoes ^C then."""
DOUBLED = 0.5
"""A second Ctrl-C sooner than this only means the first, also where one was asked for."""
SWALLOWING = ("__set_name__", "__del__")
"""What is raised in the one becomes a RuntimeError of the class being made (up to Python 3.11), in the other it is lost."""
AGAIN_SECONDS = 0.001


class Ended(BaseException):
    """A signal asked us to end; the run goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Leaving:
    """How far this process has come on its way out."""

    first: int | None = None
    deadline: float | None = None
    offered: float | None = None
    """Since when one more Ctrl-C is asked for; the watching thread takes it back."""
    armed = True
    """The next signal raises Ended; the main thread takes it back."""
    restore: Callable[[], bytes] = staticmethod(lambda: b"\r\x1b[K")  # what a terminal echoes: ^C
    give_back: Callable[[], object] = staticmethod(lambda: None)


_leaving = _Leaving()


def end_on_signals() -> None:
    """Raise Ended in the main thread on Ctrl-C, SIGTERM and a closed terminal; what `nohup` ignores stays ignored."""
    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    if not heard:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    for number in heard:
        signal.signal(number, _end)


def restore_with(restore: Callable[[], bytes]) -> None:
    """Have these bytes written to stderr, when it is a terminal, should the process be ended at once."""
    _leaving.restore = restore


def give_back_with(give_back: Callable[[], object]) -> None:
    """Have this called when the process ends: it ends whatever question a thread is asking at the terminal."""
    _leaving.give_back = give_back


def give_back() -> None:
    """End the questions that are being asked."""
    _leaving.give_back()


def settle() -> None:
    """Raise nothing any more: the command is over, only the process has to end."""
    _leaving.armed = False


@contextlib.contextmanager
def offering(seconds: float) -> Iterator[None]:
    """Let one more Ctrl-C raise Ended within the block, and take as long as it wants then."""
    _leaving.offered = time.monotonic()
    _leaving.deadline = _leaving.offered + seconds + LEAVE_SECONDS
    _leaving.armed = True
    yield
    _leaving.armed, _leaving.offered = False, None


def stay_for(seconds: float) -> None:
    """Allow so long for what the user has just asked for; another signal still ends it at once."""
    _leaving.deadline = time.monotonic() + seconds


def _end(number: int, frame: FrameType | None) -> None:
    if not _leaving.armed:
        return
    if _is_swallowed(frame):
        signal.signal(signal.SIGALRM, lambda _number, later: _end(number, later))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    _leaving.armed = False
    raise Ended(number)


def _is_swallowed(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in SWALLOWING:
            return True
        frame = frame.f_back
    return False


def _watch(reading: int) -> None:
    while True:
        left = None if _leaving.deadline is None else max(0.0, _leaving.deadline - time.monotonic())
        if select.select([reading], [], [], left)[0]:
            for number in os.read(reading, 64):
                _hear(number)
        elif _leaving.deadline is not None and time.monotonic() >= _leaving.deadline:
            _exit(_leaving.first or signal.SIGINT)


def _hear(number: int) -> None:
    if number not in ENDING:
        return
    now = time.monotonic()
    if _leaving.first is None:
        _leaving.first = number
        _leaving.deadline = _leaving.deadline or now + LEAVE_SECONDS
        return
    offered, _leaving.offered = _leaving.offered, None
    if number != signal.SIGINT or offered is None or now - offered < DOUBLED:
        _exit(number)


def restore_terminal() -> None:
    """Leave the terminal as a person wants it: no status, no echoed ^C, no colours, the cursor at the start of a line."""
    give_back()
    with contextlib.suppress(OSError, ValueError):
        if not os.isatty(2):
            return
        time.sleep(ECHO_SECONDS)
        words = _leaving.restore()
        if words and select.select([], [2], [], 0)[1]:  # a terminal that is stopped (Ctrl-S) takes nothing
            os.write(2, words)


def _exit(number: int) -> None:
    restore_terminal()
    os._exit(128 + number)
