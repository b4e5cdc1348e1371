"""What a script says of its steps, as lines of the report: added up between two lines, of which there are few.

Standard library only. Nothing here raises or warns into the script, whatever it is given, and no tensor is read but when
a line is written. What a tensor was computed from is not kept.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import threading
import time

from remote_train.host import layout
from remote_train.host.meter.guard import Quiet, is_from_a_signal

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

LINE_SECONDS = 0.5
"""Between two lines of one process."""
LARGEST = 1e30
PLAIN = (int, float, type(None))
"""What needs no care: nothing is kept alive by it, and adding it runs no code of the script's."""


def harmless(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  (anything's answer)
    """Return the function's answer, or None where it raises: a value may raise anything, and warn of anything.

    What a signal handler of the script's raises meanwhile is the script's.
    """
    try:
        with Quiet():
            return function(*arguments)
    except (MemoryError, RecursionError):  # no room to look where it came from
        return None
    except Exception as error:
        if is_from_a_signal(error):
            raise
        return None


class Steps:
    """The steps of this process since its last line."""

    def __init__(self, path: str, began: Optional[float], rank: int) -> None:
        self._path = path
        self._began = began
        self._rank = rank
        self._writing = threading.Lock()
        self._last: Optional[float] = None
        self._due = 0.0
        self._clear()

    def _clear(self) -> None:
        self._calls = 0
        self._step: Any = None
        self._loss: Any = None
        self._tokens: Any = None
        self._flops: Any = None

    def take(self, step: Any, loss: Any, tokens: Any, flops: Any) -> None:  # noqa: ANN401  (numbers or tensors)
        """Add a step; write a line if the last one is long enough ago."""
        self._calls += 1
        self._step = _let_go(step)
        self._loss = _let_go(loss)
        if tokens is not None:
            self._tokens = _add(self._tokens, tokens)
        if flops is not None:
            self._flops = _add(self._flops, flops)
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Append what there is as a line; several threads write one."""
        if not self._calls or not self._writing.acquire(False):
            return
        try:
            harmless(self._write, time.monotonic())
        finally:
            self._writing.release()

    def _write(self, now: float) -> None:
        line = {
            "kind": "step",
            "time": None if self._began is None else now - self._began,
            "rank": self._rank,
            "step": _make_whole(self._step),
            "steps": self._calls,
            "seconds": None if self._last is None else now - self._last,
            "loss": _make_number(self._loss),
            "tokens": _make_positive(self._tokens),
            "flops": _make_positive(self._flops),
        }
        self._last, self._due = now, now + LINE_SECONDS
        self._clear()
        append(self._path, line)


def append(path: str, line: Any) -> None:  # noqa: ANN401  (a JSON object)
    """Append one line in one write; where the disk does not take it, it is lost."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(line).encode("ascii") + b"\n")
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return


def _let_go(value: Any) -> Any:  # noqa: ANN401  (anything a script passes)
    """Return a value to be read later; a tensor without the graph of what it was computed from."""
    return value if type(value) in PLAIN else harmless(_detach, value)


def _detach(value: Any) -> Any:  # noqa: ANN401  (as above)
    return value.detach() if hasattr(type(value), "detach") else value


def _add(total: Any, value: Any) -> Any:  # noqa: ANN401  (numbers, or tensors that are not read yet)
    """Add to a sum; a tensor may be changed by the script afterwards, so the sum is one of our own."""
    if type(value) in PLAIN and (total is None or type(total) in PLAIN):
        return value if total is None else total + value
    return harmless(_add_others, total, value)


def _add_others(total: Any, value: Any) -> Any:  # noqa: ANN401  (as above)
    value = value.detach() if hasattr(type(value), "detach") else float(value)
    return value + (0 if total is None else total)


def _make_number(value: Any) -> Optional[float]:  # noqa: ANN401  (anything a script passes)
    """Return a finite number; reading a tensor waits for its device."""
    number: Optional[float] = None if value is None else harmless(float, value)
    return number if number is not None and math.isfinite(number) and abs(number) < LARGEST else None


def _make_positive(value: Any) -> Optional[float]:  # noqa: ANN401  (as above)
    number = _make_number(value)
    return number if number is not None and number >= 0 else None


def _make_whole(value: Any) -> Optional[int]:  # noqa: ANN401  (as above)
    number = _make_number(value)
    return int(number) if number is not None and abs(number) < 1 << 62 else None


class _Nowhere:
    """Outside of us there is nothing to write."""

    def take(self, step: Any, loss: Any, tokens: Any, flops: Any) -> None:  # noqa: ANN401  (as above)
        """Let it be."""

    def write(self) -> None:
        """Do nothing."""


_steps: "Optional[Steps | _Nowhere]" = None


def step(
    step: Any = None,  # noqa: ANN401  (a number or a tensor)
    *,
    loss: Any = None,  # noqa: ANN401  (as above)
    tokens: Any = None,  # noqa: ANN401  (as above)
    flops: Any = None,  # noqa: ANN401  (as above)
) -> None:
    """Say that an optimizer step is done: its number, its loss, and the tokens and FLOPs of this process in it.

    Call it once a step, on one rank or all of them (alike); everything may be left out. It takes a few microseconds: a
    line is appended to the file that `$REMOTE_TRAIN_REPORT` names at most twice a second, and only then is a loss that is
    a tensor read, which waits for its device. FLOPs are the model's (forward and backward, nothing recomputed).
    """
    (_steps or _begin()).take(step, loss, tokens, flops)


def _begin() -> "Steps | _Nowhere":
    global _steps  # noqa: PLW0603  (one per process)
    path = os.environ.get(layout.REPORT_VARIABLE)
    began, rank = (_make_number(os.environ.get(name)) for name in (layout.BEGAN_VARIABLE, "RANK"))
    _steps = Steps(path, began, _make_whole(rank) or 0) if path else _Nowhere()
    return _steps


def _flush() -> None:
    if _steps is not None:
        _steps.write()


def _forget() -> None:
    """In a process that was forked off: what was not written yet is the parent's to write."""
    global _steps  # noqa: PLW0603  (as above)
    _steps = None


atexit.register(_flush)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
