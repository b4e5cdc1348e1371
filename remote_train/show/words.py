"""Numbers, durations and metric records as text, and text cut to a width.

Pure: values in, text out. Unknown values (None) are left out or shown as a dash, never as 0.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING

from remote_train.metrics.families import FIXED_PEAKS
from remote_train.metrics.figures import DOUBT, ESTIMATE, is_suspect, render_percent
from remote_train.show.neutral import neutral_text

if TYPE_CHECKING:
    from collections.abc import Mapping

DASH = "-"


def render_seconds(seconds: float) -> str:
    """Return a duration in the two largest units that matter: `61.4 ms`, `3.2 s`, `4 min 05 s`, `2 h 10 min`."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    if seconds < 59.5:
        return _render_under_a_minute(seconds)
    return _render_pair(seconds)


def _render_under_a_minute(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1e3)} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def _render_pair(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def render_time(epoch: float, zone: tzinfo | None = None) -> str:
    """Return a moment as local date and time; `zone` stands in for the local one."""
    return datetime.fromtimestamp(epoch, tz=UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M")


def render_bytes(count: float) -> str:
    """Return a size in decimal units: `999 B`, `12.3 MB`."""
    return f"{count:.0f} B" if count < 999.5 else f"{_scale(count)}B"


def render_flops(flops_per_second: float) -> str:
    """Return a rate of floating-point operations: `80.2 TFLOP/s`."""
    return f"{_scale(flops_per_second)}FLOP/s"


def render_count(count: float) -> str:
    """Return a rate or a count with three digits or more, grouped: `12,500`, `3.25`."""
    return f"{count:,.0f}" if count >= 99.95 else _three_digits(count)


def render_loss(loss: float) -> str:
    """Return a loss with four digits; nan and inf stay, they are news."""
    return f"{loss:.4g}"


def _scale(value: float) -> str:
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    # a value that would round up to 1000 belongs to the next prefix
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1e3
        prefixes.pop(0)
    return f"{_three_digits(value)} {prefixes[0]}"


def _three_digits(value: float) -> str:
    if value == 0 or abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def render_metric(record: Mapping[str, object], eta: float | None = None, *, steps: int | None = None) -> str:
    """Return one metric record as one line, for the status and for periodic lines.

    `eta` is in seconds, `steps` is how many the run will do. What is unknown is left out.
    """
    parts = [
        _render_step(record, steps),
        _render_loss_part(record),
        _render_step_seconds(record),
        _render_tokens(record),
        render_mfu(record),
        None if eta is None else f"ETA {render_seconds(eta)}",
    ]
    return " · ".join(part for part in parts if part)


def render_mfu(record: Mapping[str, object]) -> str | None:
    """Return the MFU beside its denominator and where that comes from; without an MFU, the achieved rate."""
    mfu, flops = get_number(record, "mfu"), get_number(record, "flops_per_second")
    if mfu is None:
        return None if flops is None else render_flops(flops)
    doubt = f" ({DOUBT})" if is_suspect(mfu) else ""
    about = "~" if record.get("flops_source") == ESTIMATE else ""
    return f"MFU {about}{render_percent(mfu)} of {render_peak(record)}{doubt}"


def render_peak(record: Mapping[str, object]) -> str:
    """Return a record's denominator and its source: `80.2 TFLOP/s (table: RTX 4070 Ti, bf16 dense)`."""
    peak, source = get_number(record, "peak_flops"), record.get("peak_source")
    named = neutral_text(str(source)) if source else "source unknown"
    return f"{'an unknown peak' if peak is None else render_flops(peak)} ({named})"


def render_reported(record: Mapping[str, object]) -> str | None:
    """Return what the script itself printed as MFU, when that is something else than ours; else None.

    Two figures that both read the same to one hundredth part are not worth a line.
    """
    said, ours = get_number(record, "reported_mfu"), get_number(record, "mfu")
    if said is None or (ours is not None and math.isclose(said, ours, rel_tol=0.01)):
        return None
    fixed = FIXED_PEAKS.get(str(record.get("source")))
    return f"script says {render_percent(said)}{f' (of {fixed})' if fixed else ''}"


def _render_step(record: Mapping[str, object], steps: int | None) -> str | None:
    step = get_number(record, "step")
    if step is None:
        return None
    return f"step {step:.0f}" if steps is None else f"step {step:.0f}/{steps}"


def _render_loss_part(record: Mapping[str, object]) -> str | None:
    loss = record.get("loss")
    return f"loss {render_loss(loss)}" if isinstance(loss, (int, float)) else None


def _render_step_seconds(record: Mapping[str, object]) -> str | None:
    seconds = get_number(record, "step_seconds")
    return None if seconds is None else f"{render_seconds(seconds)}/step"


def _render_tokens(record: Mapping[str, object]) -> str | None:
    rate = get_number(record, "tokens_per_second")
    return None if rate is None else f"{render_count(rate)} tok/s"


def get_number(record: Mapping[str, object], key: str) -> float | None:
    """Return a record's number, or None when it is absent, not a number, or not finite."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def measure_cells(text: str) -> int:
    """Return how many columns of a terminal a neutral text takes."""
    return len(text) if text.isascii() else sum(map(_measure_character, text))


def _measure_character(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def truncate_cells(text: str, width: int) -> str:
    """Return a text that takes at most `width` columns, ending in … where it was cut."""
    if measure_cells(text) <= width:
        return text
    if width < 1:
        return ""
    used = 0
    for index, character in enumerate(text):
        used += _measure_character(character)
        if used > width - 1:
            return text[:index] + "…"
    return text
