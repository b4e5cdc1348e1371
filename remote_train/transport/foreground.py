"""The terminal while a person is asked something, by us or by a child that is lent it.

There is one, so one asks at a time. However the process leaves, it is left as it was found: a question may be asked by
any thread, and the main one ends the process without waiting for the others.

A child of a process group of its own is not reached by Ctrl-C, and may not read from the terminal either: it would be
stopped. So for the time of a login its group is the terminal's foreground, and Ctrl-C means the login. Ctrl-Z would
stop the child alone, and nothing could then be typed to anybody: for that time it is a key like others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ONE_AT_A_TIME = threading.RLock()
_SUSPENDING = ("VSUSP", "VDSUSP")
_LOCAL_FLAGS, _KEYS = 3, 6  # of what termios tells


class Terminal:
    """The controlling terminal of this process, which has its foreground; raise OSError where it has not."""

    def __init__(self) -> None:
        self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._groups = {os.getpgrp()}
        try:
            if not self._is_ours():
                raise BlockingIOError
            self._modes = _read_modes(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise

    def lend(self, group: int) -> None:
        """Give the foreground to a process group; one that had stopped for want of it goes on."""
        modes = _read_modes(self._descriptor)
        keys = list(modes[_KEYS])
        for name in _SUSPENDING:
            if hasattr(termios, name):
                keys[getattr(termios, name)] = bytes([os.fpathconf(self._descriptor, "PC_VDISABLE") & 0xFF])
        self._groups.add(group)
        self._set(group, [*modes[:_KEYS], keys])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)

    def is_hidden(self) -> bool:
        """Say whether what is typed is not shown: somebody is being asked for a secret."""
        with contextlib.suppress(OSError):
            return not _read_modes(self._descriptor)[_LOCAL_FLAGS] & termios.ECHO
        return False

    def restore(self) -> None:
        """Take the foreground back and leave the terminal as it was found, unless somebody else has it by now."""
        if self._is_ours():
            self._set(os.getpgrp(), self._modes)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def _is_ours(self) -> bool:
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(self._descriptor) in self._groups
        return False

    def _set(self, group: int, modes: list[Any]) -> None:
        # Whoever is not in the foreground and sets it would be stopped.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(OSError, termios.error):  # the group is gone, or the terminal
                os.tcsetpgrp(self._descriptor, group)
                termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_taken: list[Terminal] = []


@contextlib.contextmanager
def taken() -> Iterator[Terminal | None]:
    """Yield the terminal, nobody else's for the time of a question; None without one, or in the background."""
    with _ONE_AT_A_TIME:
        try:
            terminal = Terminal()
        except OSError:
            yield None
            return
        _taken.append(terminal)
        try:
            yield terminal
        finally:
            terminal.restore()
            _taken.remove(terminal)
            terminal.close()


def leave() -> None:
    """Leave the terminal as it was found, for the process ends, whoever is being asked."""
    for terminal in reversed(_taken):
        terminal.restore()


def _read_modes(descriptor: int) -> list[Any]:
    """Return what termios says of it; raise OSError."""
    try:
        return termios.tcgetattr(descriptor)
    except termios.error as error:
        raise OSError(*error.args) from error
