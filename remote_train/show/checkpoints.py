"""A run's checkpoints as lines of `show`. Pure: rows in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.show.neutral import neutral_text
from remote_train.show.words import get_number, render_bytes, render_time

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST = 20


def list_lines(rows: object) -> list[str]:
    """Return a line for each checkpoint, and one that counts those that are too many to show."""
    items = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    lines = [render_checkpoint(row) for row in items[:MOST]]
    return [*lines, *([f"and {len(items) - MOST:,} more"] if items[MOST:] else [])]


def render_checkpoint(row: Mapping[str, object]) -> str:
    """Return one checkpoint: `files/out/ckpt.pt, 128 MB, 2026-11-26 15:20, step 250: model 10.7 M parameters, float32`."""
    size, saved, step = (get_number(row, key) for key in ("size", "saved", "step"))
    parts = [
        str(row.get("path")),
        None if size is None else render_bytes(size),
        None if saved is None else render_time(saved),
        None
        if step is None
        else f"step {step:.0f}" + (" by the output" if row.get("step_source") == "metrics" else ""),
        "changed here since it was pulled" if row.get("intact") is False else None,
    ]
    line = ", ".join(part for part in parts if part)
    return neutral_text(f"{line}: {row['contents']}" if row.get("contents") else line)
