"""The MFU of a run by each of its sources, for `show`. Pure: plain mappings in, lines out; values from hosts come out neutral."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.metrics.figures import ESTIMATE, render_mfu
from remote_train.show.neutral import neutral_text
from remote_train.show.words import get_number, render_peak

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = {"report": "by the script's own report", "meter": "by the meter"}


def list_mfu_lines(found: object) -> list[str]:
    """Return a line for each source; the denominator is told once where it is the same for all.

    `found`: `sources`, metric records, the best first, and `why`, what stands in the way of the meter's figure.
    """
    if not isinstance(found, dict):
        return []
    records = [record for record in found.get("sources") or () if get_number(record, "mfu") is not None]
    denominators = [render_denominator(record) for record in records]
    same = len(set(denominators)) == 1
    lines = [
        render_source(record) + (f", of {of}" if of and (not same or not place) else "")
        for place, (record, of) in enumerate(zip(records, denominators, strict=True))
    ]
    why = found.get("why")
    return [*lines, neutral_text(str(why))] if why else lines


def render_source(record: Mapping[str, object]) -> str:
    """Return `6.10 % by the meter`, or `6.00 % by its log (nanogpt)`; FLOPs that are an estimate are called one."""
    source = str(record.get("source"))
    family = source.removeprefix("log:")
    who = NAMES.get(source, f"by its log ({family})")
    if record.get("flops_source") == ESTIMATE:
        who += " (6N: 6 x parameters x tokens, not counted)"
    return f"{render_mfu(get_number(record, 'mfu') or 0.0)} {neutral_text(who)}"


def render_denominator(record: Mapping[str, object]) -> str:
    """Return the peak, its source, and the dtype that chose it."""
    dtype, said_by = record.get("dtype"), record.get("dtype_source")
    named = f"; {dtype}" + (f" ({said_by})" if said_by else "") if dtype else ""
    return neutral_text(render_peak(record) + named) if record.get("peak_flops") else ""
