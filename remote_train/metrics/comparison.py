"""Two runs beside each other: their typical pace, their loss at a common step, and what may be said of the ratio. Pure.

A pace is the median over the records of the attempt that counts, so that a compilation, an evaluation and a checkpoint do not
decide it; each figure is from the best source that has it: report, then meter, then log (DESIGN §10).
"""

from __future__ import annotations

import math
import statistics
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.metrics.configuration import Contrast, Difference
    from remote_train.metrics.record import MetricRecord

FIGURES = ("step_seconds", "tokens_per_second", "flops_per_second", "mfu")
ABOUT = ("peak_flops", "peak_source", "dtype", "dtype_source", "devices")
AS_FAST = 0.01
"""Paces within a hundredth of each other are called the same."""
TOKENS_TOLERANCE = 0.02
"""A step of the same configuration has the same tokens; printed rates are rounded."""


def rank_source(source: str) -> int:
    """Return how good a source is for pace and MFU, 0 is the best."""
    return {"report": 0, "meter": 1}.get(source, 2)


class Tally:
    """The records of one run's newest attempt, reduced as they come: a run of weeks fits."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], array[float]] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._losses: dict[int, dict[int, tuple[float, float | None]]] = {}

    def add(self, record: MetricRecord, *, pace: bool) -> None:
        """Take one record; `pace`: it is of the attempt whose pace counts."""
        self._add_loss(record)
        if not pace:
            return
        for name in FIGURES:
            value = getattr(record, name)
            if value is not None and math.isfinite(value):
                self._figures.setdefault((name, record.source), array("d")).append(value)
        known = {name: getattr(record, name) for name in ABOUT if getattr(record, name) is not None}
        self._about.setdefault(record.source, {}).update(known)

    def _add_loss(self, record: MetricRecord) -> None:
        if record.step is not None and record.loss is not None:
            of_source = self._losses.setdefault(rank_source(record.source), {})
            of_source[record.step] = (record.loss, record.run_time)

    def figure(self, name: str) -> tuple[float | None, str | None]:
        """Return the median of a figure and its source; None and None where no record has it."""
        sources = sorted((source for key, source in self._figures if key == name), key=rank_source)
        if not sources:
            return None, None
        return statistics.median(self._figures[name, sources[0]]), sources[0]

    def about(self, source: str | None) -> dict[str, Any]:
        """Return what the records of a source, by default of the best there is, say of device and denominator."""
        best = sorted(self._about, key=rank_source)
        chosen = source if source in self._about else best[0] if best else None
        return {name: self._about.get(chosen or "", {}).get(name) for name in ABOUT}

    @property
    def losses(self) -> dict[int, tuple[float, float | None]]:
        """Step -> loss and seconds since the run began, of the best source that has losses."""
        return self._losses[min(self._losses)] if self._losses else {}


@dataclass(frozen=True, slots=True)
class Side:
    """One run's figures, as they are shown; unknown is None."""

    run: str
    host: str
    device: str | None
    duration: float | None
    bottleneck: str | None
    attempts: int
    tally: Tally = field(repr=False)

    def as_json(self, common: int | None) -> dict[str, Any]:
        """Give every figure with its source, and the loss at the common step."""
        figures = {name: self.tally.figure(name) for name in FIGURES}
        loss, reached = self.tally.losses.get(common, (None, None)) if common is not None else (None, None)
        return {
            "run": self.run,
            "host": self.host,
            "device": self.device,
            **self.tally.about(figures["mfu"][1]),
            **{name: value for name, (value, _) in figures.items()},
            "sources": {name: source for name, (_, source) in figures.items() if source},
            "common_step": common,
            "loss": loss,
            "time_to_step": reached,
            "bottleneck": self.bottleneck,
            "duration": self.duration,
            "attempts": self.attempts,
        }


def find_common_step(a: Tally, b: Tally) -> int | None:
    """Return the last step of which both runs have a loss."""
    return max(a.losses.keys() & b.losses.keys(), default=None)


def compare(a: Side, b: Side, found: Contrast) -> dict[str, Any]:
    """Return both sides and the verdict, ready for JSON: `same`, `ratio` (of a's step time to b's), `differences`, `sentence`."""
    common = find_common_step(a.tally, b.tally)
    one, other = a.as_json(common), b.as_json(common)
    ratio = _divide(one["step_seconds"], other["step_seconds"])
    settings = [*map(str, found.settings), *_check_tokens(one, other, settled=bool(found.settings))]
    same = found.same and not settings
    device = [*map(str, found.device), *_contrast_dtypes(one, other, found.device)]
    verdict = {
        "same": same,
        "ratio": ratio,
        "differences": settings,
        "device_arguments": device,
        "labels": list(map(str, found.labels)),
        "unknown": list(found.unknown),
    }
    return {"a": one, "b": other, **verdict, "sentence": render_verdict(verdict, a.run, b.run)}


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _check_tokens(a: Mapping[str, Any], b: Mapping[str, Any], *, settled: bool) -> list[str]:
    """Name tokens per step where they differ although nothing else was found that does: a script may look at its host."""
    counts = [
        side["step_seconds"] * side["tokens_per_second"]
        for side in (a, b)
        if side["step_seconds"] and side["tokens_per_second"]
    ]
    if settled or len(counts) < 2 or math.isclose(*counts, rel_tol=TOKENS_TOLERANCE):
        return []
    return [f"tokens per step ({counts[0]:,.0f} and {counts[1]:,.0f})"]


def _contrast_dtypes(a: Mapping[str, Any], b: Mapping[str, Any], named: Sequence[Difference]) -> list[str]:
    if not a["dtype"] or not b["dtype"] or a["dtype"] == b["dtype"]:
        return []
    return [] if any(item.name == "dtype" for item in named) else [f"dtype ({a['dtype']} and {b['dtype']})"]


def render_verdict(verdict: Mapping[str, Any], a: str, b: str) -> str:
    """Say how the second run's step compares to the first's, and call it faster only for one configuration."""
    ratio, reasons = verdict["ratio"], _render_reasons(verdict)
    beside = f"; beside it: {', '.join(verdict['device_arguments'])}" if verdict["device_arguments"] else ""
    if ratio is None:
        known = "the configuration is the same" if verdict["same"] else f"no gain could be stated: {reasons}"
        return f"the step time of one of them is not known; {known}{beside}"
    if not verdict["same"]:
        return f"a step of {b} takes {1 / ratio:.3g} x the time of one of {a}, which is no gain and no loss: {reasons}{beside}"
    if abs(ratio - 1) <= AS_FAST:
        return f"{b} is as fast per step as {a}, on the same configuration{beside}"
    words = f"{_factor(ratio)} faster" if ratio > 1 else f"{_factor(1 / ratio)} slower"
    return f"{b} is {words} per step than {a}, on the same configuration{beside}"


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 99.5 else f"{ratio:.3g}x" if ratio >= 9.95 else f"{ratio:.2f}x"


def _render_reasons(verdict: Mapping[str, Any]) -> str:
    parts = []
    if verdict["differences"]:
        parts.append(f"they differ in {', '.join(verdict['differences'])}")
    if verdict["unknown"]:
        parts.append(f"not known is {', '.join(verdict['unknown'])}")
    return "; ".join(parts)
