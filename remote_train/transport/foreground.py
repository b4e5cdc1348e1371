"""The terminal, lent to a child while it may ask a person something.

A child of a process group of its own is not reached by Ctrl-C, and may not read from the terminal either: it would be
stopped. So for the time of a login its group is the terminal's foreground, and Ctrl-C means the login.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ONE_AT_A_TIME = threading.Lock()


class Terminal:
    """The controlling terminal of this process, which has its foreground."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ours = os.getpgrp()

    def lend(self, group: int) -> None:
        """Give the foreground to a process group; one that had stopped for want of it goes on."""
        self._set(group)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)

    def take_back(self) -> None:
        """Take the foreground back."""
        self._set(self._ours)

    def _set(self, group: int) -> None:
        # Whoever is not in the foreground and sets it would be stopped.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(OSError):  # the group is gone, or the terminal
                os.tcsetpgrp(self._descriptor, group)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def borrowed() -> Iterator[Terminal | None]:
    """Yield the terminal, whose foreground is taken back in the end; None without one, or in the background."""
    with _ONE_AT_A_TIME:
        try:
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            if os.tcgetpgrp(descriptor) != os.getpgrp():
                yield None
                return
            terminal = Terminal(descriptor)
            try:
                yield terminal
            finally:
                terminal.take_back()
        finally:
            os.close(descriptor)
