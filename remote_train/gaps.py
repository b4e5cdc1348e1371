"""Gaps in a run's output: times at which the host's disk took nothing, as the host noted them, in words.

What a training could not write is nowhere, so nobody can say which bytes are missing: only behind which byte.
"""

from __future__ import annotations

import json
import time
from typing import Any

REASONS = {
    "ENOSPC": "the disk was full",
    "EDQUOT": "the disk was over its quota",
    "EROFS": "the disk was read-only",
    "EIO": "the disk failed (input/output error)",
    "EFBIG": "an output had the size that the login's `ulimit -f` allows",
}
MOST_TOLD = 20
LINE_LIMIT = 64 * 1024

Gap = dict[str, Any]


class GapReader:
    """Find gaps in the host's clock as it comes, in any cutting; each is given once, those of the exit record too."""

    def __init__(self) -> None:
        self._held = b""
        self._seen: set[float] = set()

    def feed(self, data: bytes) -> list[Gap]:
        """Take bytes of clock.jsonl and return the gaps that they tell of."""
        *lines, self._held = (self._held + data).split(b"\n")
        self._held = self._held[-LINE_LIMIT:]
        return self.sift([_parse_gap(line) for line in lines if line.startswith(b'{"gap"')])

    def sift(self, gaps: object) -> list[Gap]:
        """Return those that were not given before and can be told."""
        found = []
        for gap in gaps if isinstance(gaps, list) else []:
            if not is_gap(gap) or gap["begin"]["wall"] in self._seen or len(self._seen) >= MOST_TOLD:
                continue
            self._seen.add(gap["begin"]["wall"])
            found.append(gap)
        return found


def _parse_gap(line: bytes) -> object:
    try:
        return json.loads(line)["gap"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_gap(gap: object) -> bool:
    """Tell whether this is a gap as a host notes them."""
    if not isinstance(gap, dict) or not isinstance(gap.get("begin"), dict):
        return False
    ends = [gap["begin"], *([gap["end"]] if isinstance(gap.get("end"), dict) else [])]
    return all(isinstance(end.get("wall"), (int, float)) and _is_time(end["wall"]) for end in ends)


def _is_time(seconds: float) -> bool:
    try:
        time.localtime(seconds)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def render_gap(host: str, gap: Gap) -> str:
    """Return what a user is told of a gap."""
    what = REASONS.get(str(gap.get("reason")), f"the disk took nothing ({str(gap.get('reason'))[:20]})")
    begin, end = gap["begin"], gap.get("end")
    until = f"to {_clock_time(end['wall'])}" if isinstance(end, dict) else "to the end of the run"
    return (
        f"{host}: {what} from {_clock_time(begin['wall'])} {until}; "
        f"output behind {_render_places(begin)} may be missing"
    )


def _clock_time(wall: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(wall))


def _render_places(begin: dict[str, Any]) -> str:
    sizes = begin.get("sizes")
    known = (
        [(rank, size) for rank, size in sizes.items() if isinstance(size, int)]
        if isinstance(sizes, dict)
        else []
    )
    places = [f"byte {size:,} of rank {rank[:20]}" for rank, size in known[:8] if isinstance(rank, str)]
    return ", ".join(places) or "its first byte"


def render_gap_hint(ended: dict[str, Any]) -> str:
    """Return what a failed training's hint says when its disk took nothing at times; empty when it always did."""
    gaps = ended.get("gaps")
    told = [gap for gap in gaps if is_gap(gap)] if isinstance(gaps, list) else []
    if not told:
        return ""
    what = REASONS.get(str(told[-1].get("reason")), "the disk took nothing")
    return f"\non the host {what} while it ran: that may be why, and words of it may be missing"
