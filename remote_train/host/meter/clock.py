"""Moments of the training, on the host's clock and, with a GPU, on the device's own; the device is never waited for."""

from __future__ import annotations

import time

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, List, Optional


class Mark:
    """A moment: `host` seconds of `time.perf_counter`, and the event that the device will pass, or None."""

    __slots__ = ("device", "event", "host")

    def __init__(self, host: float, event: Any = None, device: int = 0) -> None:  # noqa: ANN401  (torch's event)
        self.host, self.event, self.device = host, event, device

    def passed(self) -> bool:
        """Tell whether the device has come to it; on the host a moment is always past."""
        return self.event is None or bool(self.event.query())


class Clock:
    """Makes marks: with events on CUDA, unless a graph is being captured, which an event would spoil."""

    __slots__ = ("_cuda",)

    def __init__(self, torch: Any, device: str) -> None:  # noqa: ANN401  (a module)
        self._cuda: Any = torch.cuda if device == "cuda" else None

    def mark(self, host: Optional[float] = None) -> Mark:
        """Mark this moment; `host` is the host's clock where it was read already."""
        now = time.perf_counter() if host is None else host
        if self._cuda is None or self._cuda.is_current_stream_capturing():
            return Mark(now)
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return Mark(now, event, self._cuda.current_device())


def elapsed(first: Mark, last: Mark) -> Optional[float]:
    """Return the seconds from one mark to a later one; None as long as the device has not come to both.

    Between devices, and where there is no event, it is the host's time.
    """
    if first.event is None or last.event is None or first.device != last.device:
        return last.host - first.host
    if not (first.passed() and last.passed()):
        return None
    return float(first.event.elapsed_time(last.event)) / 1000.0


def all_passed(marks: List[Mark]) -> bool:
    """Tell whether the device is past all of them."""
    return all(mark.passed() for mark in marks)
