"""What a benchmark has measured: every single figure, all of them as a table, and as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.report import render_spread, render_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.report import Budget

SIDES = ("ours", "by hand")


class Figures:
    """Everything that was measured: what, by whom, at which round-trip time."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, float], list[float]] = defaultdict(list)

    def add(self, what: str, side: str, rtt: float, *values: float) -> None:
        """Keep values, and tell that they have come."""
        self.held[what, side, rtt] += values
        say(f"  RTT {rtt:g} ms  {what}, {side}: {render_spread(values, 1)}")

    def get(self, what: str, side: str, rtt: float) -> list[float]:
        """Return the values, [] when there are none."""
        return self.held.get((what, side, rtt), [])


def pick(values: Sequence[float], percent: int) -> float:
    """Return a percentile of sorted values: the least one that so many per cent do not exceed."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def render_figures(figures: Figures, rtts: Sequence[float], sides: Sequence[str] = SIDES) -> str:
    """Return all figures as a table, a column for each side."""
    rows = []
    for what in dict.fromkeys(what for what, _, _ in figures.held):
        for rtt in rtts:
            cells = [render_figure(what, figures.get(what, side, rtt)) for side in sides]
            if not any(figures.get(what, side, rtt) for side in sides):
                continue
            rows.append((what, f"{rtt:g}", *cells))
    return render_table(["", "RTT ms", *sides], rows)


def render_figure(what: str, values: Sequence[float]) -> str:
    """Return percentiles of a latency, the spread of anything else."""
    if not what.startswith("latency") or not values:
        return render_spread(values, 1)
    p50, p99 = (pick(sorted(values), percent) for percent in (50, 99))
    return f"p50 {p50:.1f}, p99 {p99:.1f} ({len(values)} lines)"


def write_json(path: Path, machine: dict[str, str], figures: Figures, budgets: Sequence[Budget]) -> None:
    """Write every single figure and verdict."""
    raw = [
        {"what": what, "side": side, "rtt_ms": rtt, "values": values}
        for (what, side, rtt), values in figures.held.items()
    ]
    verdicts = [asdict(budget) | {"kept": budget.kept} for budget in budgets]
    path.write_text(json.dumps({"machine": machine, "figures": raw, "budgets": verdicts}, indent=1))
