"""The table of `bench`: what each device is, and what it does with the same models. Pure: rows of benching.py in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.metrics.benchmark import SEED, render_ratios
from remote_train.metrics.figures import MFU_DOUBTFUL, render_percent
from remote_train.show.columns import render_columns, show_cell, show_number
from remote_train.show.neutral import neutral_text
from remote_train.show.words import (
    get_number,
    render_bytes,
    render_count,
    render_flops,
    render_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.metrics.benchmark import Model

FEW = 10
"""Steps; a time from fewer is marked."""
_HEADERS = ("HOST", "MODEL", "DTYPE", "STEP", "STEPS", "TOKENS/S", "MFU", "TIME FOR", "BOTTLENECK")


def render_bench(rows: Sequence[Mapping[str, Any]], models: Sequence[Model], width: int | None) -> str:
    """Return devices with their peaks, the table, ratios, and what was trained; `width` in columns of a terminal."""
    devices = "".join(_render_device(row) for row in rows)
    table = [_HEADERS, *(_make_cells(row, item) for row in rows for item in row["models"])]
    parts = [devices]
    if len(table) > 1:
        parts += [
            render_columns(table, width),
            "".join(f"{neutral_text(line)}\n" for line in render_ratios(rows)),
        ]
        few = any(item["steps"] < FEW for row in rows for item in row["models"])
        parts.append(_render_models(models) + (f"?: a time from fewer than {FEW} steps.\n" if few else ""))
    return "\n".join(part for part in parts if part)


def _render_device(row: Mapping[str, Any]) -> str:
    lines = [f"{neutral_text(row['host'])}: {show_cell(row.get('device'))}"] if row.get("device") else []
    if row["reason"]:
        reason = str(row["reason"]).removeprefix(f"{row['host']}: ")  # most errors begin with it
        lines.append(f"{neutral_text(row['host'])}: not measured: {neutral_text(reason)}")
        lines += [f"  {neutral_text(row['hint'])}"] if row.get("hint") else []
    if row.get("device"):
        if row["threads"]:
            lines[0] += f", {row['threads']} threads"
        lines += [f"  {line}" for line in _list_peaks(row)]
    return "".join(f"{line}\n" for line in lines)


def _list_peaks(row: Mapping[str, Any]) -> list[str]:
    """Return the denominators with their sources, then what was measured of the device."""
    peaks = {
        item["dtype"]: f"peak {render_flops(item['peak_flops'])} ({neutral_text(item['peak_source'])})"
        for item in row["models"]
        if item["peak_flops"]
    }
    rates = [f"{neutral_text(dtype)} {render_flops(rate)}" for dtype, rate in row["measured"].items()]
    measured = [f"measured matmul: {', '.join(rates)}"] if rates else []
    bandwidth, dispatch = get_number(row, "bandwidth"), get_number(row, "dispatch")
    measured += [] if bandwidth is None else [f"memory {render_bytes(bandwidth)}/s"]
    measured += [] if dispatch is None else [f"an operation at least {dispatch * 1e6:.1f} µs"]
    busy = ["the machine was busy: these figures are lower than it could do"] if row["busy"] else []
    return [*peaks.values(), *([", ".join(measured)] if measured else []), *busy]


def _make_cells(row: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[str, ...]:
    doubt = "?" if (get_number(item, "mfu") or 0.0) > MFU_DOUBTFUL else ""
    return (
        show_cell(row["host"]),
        show_cell(item["model"]),
        show_cell(item["dtype"]),
        show_number(item, "step_seconds", render_seconds),
        show_number(item, "steps", lambda steps: f"{steps:,.0f}{'?' if steps < FEW else ''}"),
        show_number(item, "tokens_per_second", render_count),
        show_number(item, "mfu", render_percent) + doubt,
        f"{item['iterations']:,} steps: {show_number(item, 'estimated_seconds', render_seconds)}",
        show_cell(item["bottleneck"]),
    )


def _render_models(models: Sequence[Model]) -> str:
    """Say what was the same on every host; a table without it says nothing."""
    lines = [
        f"{model.name}: GPT of {model.layers} layers, {model.heads} heads, width {model.width}, block {model.block}, "
        f"batch {model.batch}, vocabulary {model.vocab}\n"
        for model in models
    ]
    same = (
        f"The same on every host: batch, seed {SEED}, eager PyTorch, AdamW (fused on CUDA); the dtype is what the device\n"
        "usually trains in. Times are of steps alone, without evaluations and checkpoints.\n"
    )
    return "".join(lines) + same
