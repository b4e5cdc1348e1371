"""Two runs beside each other: their typical pace, their loss at a common step, and what may be said of the ratio. Pure.

A pace is the typical one that `show` has (metrics/rated.py), of the newest attempt. It is from the best source that both runs have it
from: report, then meter, then log (DESIGN §10). What a log prints and what the meter measures may be far apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    """One run reduced: the losses of its records as they come, and its typical pace by each source (`Watch.list_sources`)."""

    def __init__(self, paces: Iterable[MetricRecord] = ()) -> None:
        self._paces = sorted(paces, key=lambda record: rank_source(record.source))
        self._losses: dict[int, dict[int, tuple[float, float | None]]] = {}

    def add(self, record: MetricRecord) -> None:
        """Take one record's loss."""
        if record.step is not None and record.loss is not None:
            of_source = self._losses.setdefault(rank_source(record.source), {})
            of_source[record.step] = (record.loss, record.run_time)

    def list_ranks(self, name: str) -> list[int]:
        """Return the ranks of the sources that have a figure, the best first."""
        return [rank_source(record.source) for record in self._paces if _has(record, name)]

    def figure(self, name: str, rank: int | None = None) -> tuple[float | None, str | None]:
        """Return a figure and its source, by default the best that has it; None and None where none has."""
        for record in self._paces:
            if _has(record, name) and rank in (None, rank_source(record.source)):
                return getattr(record, name), record.source
        return None, None

    def about(self, source: str | None) -> dict[str, Any]:
        """Return what the records of a source, by default of the best there is, say of device and denominator."""
        chosen = [record for record in self._paces if record.source == source] or self._paces
        return {name: getattr(chosen[0], name) if chosen else None for name in ABOUT}

    @property
    def losses(self) -> dict[int, tuple[float, float | None]]:
        """Step -> loss and seconds since the run began, of the best source that has losses."""
        return self._losses[min(self._losses)] if self._losses else {}


def _has(record: MetricRecord, name: str) -> bool:
    value = getattr(record, name)
    return value is not None and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Side:
    """One run's figures, as they are shown; unknown is None. `exit` says how it ended, in words."""

    run: str
    host: str
    device: str | None
    duration: float | None
    bottleneck: str | None
    attempts: int
    tally: Tally = field(repr=False)
    state: str | None = None
    exit: str | None = None

    def as_json(self, common: int | None, ranks: Mapping[str, int | None]) -> dict[str, Any]:
        """Give every figure with its source, of the rank that `ranks` names it, and the loss at the common step."""
        figures = {name: self.tally.figure(name, ranks.get(name)) for name in FIGURES}
        loss, reached = self.tally.losses.get(common, (None, None)) if common is not None else (None, None)
        return {
            "run": self.run,
            "host": self.host,
            "state": self.state,
            "exit": self.exit,
            "device": self.device,
            **self.tally.about(figures["mfu"][1] or figures["step_seconds"][1]),
            **{name: value for name, (value, _) in figures.items()},
            "sources": {name: source for name, (_, source) in figures.items() if source},
            "common_step": common,
            "loss": loss,
            "time_to_step": reached,
            "bottleneck": self.bottleneck,
            "duration": self.duration,
            "attempts": self.attempts,
        }


def choose_ranks(a: Tally, b: Tally) -> dict[str, int | None]:
    """Return the rank of the best source that both have a figure from, None where there is none: then each shows its own best."""
    return {name: min(set(a.list_ranks(name)) & set(b.list_ranks(name)), default=None) for name in FIGURES}


def find_common_step(a: Tally, b: Tally) -> int | None:
    """Return the last step of which both runs have a loss."""
    return max(a.losses.keys() & b.losses.keys(), default=None)


def compare(a: Side, b: Side, found: Contrast) -> dict[str, Any]:
    """Return both sides and the verdict, ready for JSON: `same`, `ratio` (of a's step time to b's), `differences`, `sentence`."""
    common = find_common_step(a.tally, b.tally)
    ranks = choose_ranks(a.tally, b.tally)
    one, other = a.as_json(common, ranks), b.as_json(common, ranks)
    ratio = _divide(one["step_seconds"], other["step_seconds"]) if ranks["step_seconds"] is not None else None
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
    said = {"a": one, "b": other, **verdict}
    return {**said, "sentence": render_verdict(said)}


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _check_tokens(a: Mapping[str, Any], b: Mapping[str, Any], *, settled: bool) -> list[str]:
    """Name tokens per step where they differ although nothing else was found that does: a script may look at its host."""
    counts = [
        side["step_seconds"] * side["tokens_per_second"]
        for side in (a, b)
        if side["step_seconds"]
        and side["tokens_per_second"]
        and side["sources"]["step_seconds"] == side["sources"]["tokens_per_second"]
    ]
    if settled or len(counts) < 2 or math.isclose(*counts, rel_tol=TOKENS_TOLERANCE):
        return []
    return [f"tokens per step ({counts[0]:,.0f} and {counts[1]:,.0f})"]


def _contrast_dtypes(a: Mapping[str, Any], b: Mapping[str, Any], named: Sequence[Difference]) -> list[str]:
    if not a["dtype"] or not b["dtype"] or a["dtype"] == b["dtype"]:
        return []
    return [] if any(item.name == "dtype" for item in named) else [f"dtype ({a['dtype']} and {b['dtype']})"]


def render_verdict(said: Mapping[str, Any]) -> str:
    """Say how the second run's step compares to the first's, and call it faster only for one configuration."""
    a, b, ratio, reasons = said["a"]["run"], said["b"]["run"], said["ratio"], _render_reasons(said)
    beside = f"; beside it: {', '.join(said['device_arguments'])}" if said["device_arguments"] else ""
    if a == b:
        return f"{a} is one run: there is nothing to compare it with"
    if ratio is None:
        known = "the configuration is the same" if said["same"] else reasons
        return f"no gain could be stated: {_say_incomparable(said)}; {known}{beside}"
    if not said["same"]:
        return f"a step of {b} takes {1 / ratio:.3g} x the time of one of {a}, which is no gain and no loss: {reasons}{beside}"
    if abs(ratio - 1) <= AS_FAST:
        return f"{b} is as fast per step as {a}, on the same configuration{beside}"
    words = f"{_factor(ratio)} faster" if ratio > 1 else f"{_factor(1 / ratio)} slower"
    return f"{b} is {words} per step than {a}, on the same configuration{beside}"


def _say_incomparable(said: Mapping[str, Any]) -> str:
    """Say why two step times have no ratio: one is not known, or they are from different sources."""
    unknown = [side["run"] for side in (said["a"], said["b"]) if not side["step_seconds"]]
    if unknown:
        return f"the step time of {' and of '.join(unknown)} is not known"
    named = [
        f"that of {side['run']} from {side['sources']['step_seconds']}" for side in (said["a"], said["b"])
    ]
    return f"their step times are of different sources, {' and '.join(named)}"


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 99.5 else f"{ratio:.3g}x" if ratio >= 9.95 else f"{ratio:.2f}x"


def _render_reasons(said: Mapping[str, Any]) -> str:
    parts = []
    if said["differences"]:
        parts.append(f"they differ in {', '.join(said['differences'])}")
    if said["unknown"]:
        parts.append(f"not known is {', '.join(said['unknown'])}")
    return "; ".join(parts)
