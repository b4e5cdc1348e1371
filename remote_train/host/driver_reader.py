"""Ask the driver who uses its GPUs, again and again, in a process of its own: a broken driver may never answer.

One at a time: a process that hangs in a driver cannot be killed, and nobody is asked beside it.
"""

from __future__ import annotations

import os
import threading
import time

from remote_train.host.commands import finish_commands, hear_commands
from remote_train.host.facts import parse_gpus, start_gpu_reader
from remote_train.host.turns import mark_busy

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from remote_train.host.commands import Command

READER_SECONDS = 20.0
"""A machine with many cards and no persistence mode wakes each of them first."""
END_SECONDS = 1.0
SILENT = "its driver does not answer"
WHY = 256
"""Characters of the driver's own words that are told."""


class DriverReader:
    """The process that asks now, and whether the last one got an answer (`why` it did not, in words)."""

    def __init__(self) -> None:
        self._command: Optional[Command] = None
        self._until = 0.0
        self._given_up: Optional[int] = None
        self.why: Optional[str] = None

    def ask(self) -> None:
        """Ask, unless somebody is asking."""
        if self._command is None and not self._hangs():
            self._command = start_gpu_reader()
            self._until = time.monotonic() + READER_SECONDS

    def hear(self, seconds: float) -> Optional[List[Dict[str, Any]]]:
        """Return the GPUs, each with `busy`, once the answer has come; None while it has not within `seconds`."""
        command = self._command
        if command is None:
            return None
        heard = hear_commands([command], seconds)
        if not heard and time.monotonic() < self._until:
            return None
        self._command = None
        answer = parse_gpus(finish_commands([command], END_SECONDS)[0])
        self._given_up = command.process.pid if command.process is not None else None
        error = str(answer["gpu_error"] or SILENT)[:WHY] if heard else SILENT
        self.why = None if answer["gpus"] else error
        return mark_busy(answer["gpus"]) or None

    def _hangs(self) -> bool:
        """Tell whether the last process that asked is still there, though it was killed."""
        if self._given_up is None:
            return False
        try:
            hangs = os.waitpid(self._given_up, os.WNOHANG)[0] == 0
        except ChildProcessError:  # it has ended, and that was seen
            hangs = False
        if not hangs:
            self._given_up = None
        return hangs


_alone, _reader = threading.Lock(), DriverReader()
"""This process's own: one for all who ask it, or each that asks a driver that hangs would stay."""


def read_now() -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """Return the GPUs as the driver tells them now, each with `busy`; none where it does not, and why."""
    with _alone:
        _reader.ask()
        return _reader.hear(READER_SECONDS) or [], _reader.why
