"""A window of steps and what is said of it."""

from __future__ import annotations

from operator import sub

from .clock import elapsed

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .clock import Mark

_MEDIAN_OF = 1024


class Window:
    """Steps from one mark to another. `moments` are the host's times of the steps' ends, the begin's first."""

    __slots__ = ("begin", "end", "iterations", "moments", "shares", "step")

    def __init__(self, begin: Mark) -> None:
        self.begin = begin
        self.end: Optional[Mark] = None
        self.step = 0
        self.moments: List[float] = [begin.host]
        self.shares: Dict[str, float] = {}
        self.iterations = 0

    def close(self, end: Mark, step: int, skipped: int, shares: Dict[str, float]) -> None:
        """End the window at a step: `skipped` iterations had no step of their own, `shares` are seconds of phases."""
        self.end, self.step, self.shares = end, step, shares
        self.iterations = len(self.moments) - 1 + skipped

    def make_line(self) -> Optional[Dict[str, Any]]:
        """Return the window's figures but for FLOPs; None as long as the device has not come to its end."""
        seconds = elapsed(self.begin, self.end) if self.end is not None else None
        if seconds is None:
            return None
        line: Dict[str, Any] = {
            "step": self.step,
            "steps": len(self.moments) - 1,
            "seconds": round(seconds, 6),
        }
        line.update({name: round(share, 6) for name, share in self.shares.items()})
        return dict(line, **summarise(self.moments))


def summarise(moments: List[float]) -> Dict[str, Optional[float]]:
    """Return the median and the longest of the times between moments; of very many the median is of some."""
    gaps = list(map(sub, moments[1:], moments))
    if not gaps:
        return {"median": None, "longest": None}
    few = sorted(gaps[:: len(gaps) // _MEDIAN_OF + 1])
    half = len(few) // 2
    middle = few[half] if len(few) % 2 else (few[half - 1] + few[half]) / 2
    return {"median": round(middle, 7), "longest": round(max(gaps), 7)}
