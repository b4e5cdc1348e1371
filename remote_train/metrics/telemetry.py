"""What a host was doing while an attempt trained: lines of telemetry.jsonl in, medians and shares out. Nothing is believed unseen."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.metrics.numbers import (
    parse_lines,
    pick_count,
    pick_flag,
    pick_number,
    pick_table,
    pick_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SAMPLES = 4096
GPUS = 64
WORDS = 16


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU over the samples: medians, and shares of the samples; None is unknown. Utilisation is not MFU."""

    uuid: str
    index: int | None
    utilization: float | None
    memory_used: float | None
    watts: float | None
    watt_limit: float | None
    watt_default: float | None
    sm_mhz: float | None
    celsius: float | None
    throttle: Mapping[str, float]
    """Why the clock was not higher: word to share of the samples."""
    others: int | None
    """The most other computing processes that were seen."""


@dataclass(frozen=True, slots=True)
class HostUse:
    """A host over the samples: medians, and shares of the samples; None is unknown."""

    samples: int = 0
    busy: float | None = None
    """Of all CPUs, 0 to 1."""
    run: float | None = None
    """CPUs' worth that the run's own processes took."""
    mhz: float | None = None
    load: float | None = None
    throttled: float | None = None
    """Share of the samples in which heat held a core down."""
    celsius: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    memory_run: float | None = None
    gpus: tuple[GpuUse, ...] = ()


def parse_telemetry(lines: Iterable[bytes]) -> HostUse:
    """Sum up the newest SAMPLES lines; an empty HostUse when there are none."""
    rows = deque((row for row in parse_lines(lines) if row.get("kind") == "sample"), maxlen=SAMPLES)
    cpus = [pick_table(row, "cpu") for row in rows]
    memories = [pick_table(row, "memory") for row in rows]
    flags = [flag for flag in (pick_flag(cpu, "throttled") for cpu in cpus) if flag is not None]
    return HostUse(
        samples=len(rows),
        busy=_median(cpus, "busy", 1.0),
        run=_median(cpus, "run", 1e6),
        mhz=_median(cpus, "mhz", 1e6),
        load=_median(cpus, "load", 1e6),
        throttled=sum(flags) / len(flags) if flags else None,
        celsius=_median(cpus, "celsius", 1e3),
        memory_used=_median(memories, "used"),
        memory_total=_median(memories, "total"),
        memory_run=_median(memories, "run"),
        gpus=_sum_gpus(rows),
    )


def _sum_gpus(rows: Iterable[Mapping[str, Any]]) -> tuple[GpuUse, ...]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        gpus = row.get("gpus")
        for gpu in gpus[:GPUS] if isinstance(gpus, list) else ():
            uuid = pick_text(gpu, "uuid") if isinstance(gpu, dict) else None
            if uuid is not None and (uuid in found or len(found) < GPUS):
                found.setdefault(uuid, []).append(gpu)
    return tuple(_sum_gpu(uuid, samples) for uuid, samples in found.items())


def _sum_gpu(uuid: str, samples: Sequence[Mapping[str, Any]]) -> GpuUse:
    others = [
        count for count in (pick_count(sample, "others", 1 << 16) for sample in samples) if count is not None
    ]
    return GpuUse(
        uuid=uuid,
        index=pick_count(samples[-1], "index", 1 << 16),
        utilization=_median(samples, "utilization", 1.0),
        memory_used=_median(samples, "memory_used"),
        watts=_median(samples, "watts", 1e6),
        watt_limit=_median(samples, "watt_limit", 1e6),
        watt_default=_median(samples, "watt_default", 1e6),
        sm_mhz=_median(samples, "sm_mhz", 1e6),
        celsius=_median(samples, "celsius", 1e3),
        throttle=_share_words(samples),
        others=max(others, default=None),
    )


def _share_words(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    lists = [sample["throttle"] for sample in samples if isinstance(sample.get("throttle"), list)]
    counts: dict[str, int] = {}
    for words in lists:
        for word in {word[:32] for word in words[:WORDS] if isinstance(word, str)}:
            if word in counts or len(counts) < WORDS:
                counts[word] = counts.get(word, 0) + 1
    return {word: count / len(lists) for word, count in counts.items()}


def _median(rows: Iterable[Mapping[str, Any]], key: str, high: float = 1e30) -> float | None:
    values = [value for value in (pick_number(row, key, 0.0, high) for row in rows) if value is not None]
    return statistics.median(values) if values else None
