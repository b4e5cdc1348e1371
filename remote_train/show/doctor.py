"""What `doctor` found, for a terminal: one line a step, the verdict last. Pure; what came from hosts comes out neutral."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from remote_train.show.neutral import neutral_text
from remote_train.show.words import measure_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MARKS = {"ok": "ok", "warn": "!", "fail": "NO"}
_COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}
_RESET = "\x1b[m"
_LABEL = 13


def render_examinations(rows: Sequence[Mapping[str, Any]], width: int | None, *, colour: bool = False) -> str:
    """Return every machine's steps, verdict and what to do next; nothing is wrapped without a width."""
    return "\n".join(_render_row(row, width, colour=colour) for row in rows)


def _render_row(row: Mapping[str, Any], width: int | None, *, colour: bool) -> str:
    lines = [neutral_text(str(row["host"]))]
    for step in row["steps"]:
        state = step["state"] if step["state"] in _MARKS else "warn"
        for index, text in enumerate(step["lines"]):
            mark = _MARKS[state] if index == 0 else ""
            label = neutral_text(str(step["step"])) if index == 0 else ""
            shown = f"{_COLOURS[state]}{mark:2}{_RESET}" if colour and mark else f"{mark:2}"
            lines += _hang(f"  {shown} {label:{_LABEL}}", 5 + _LABEL, text, width)
    state = "ok" if row["ok"] else "fail"
    verdict = _hang("", 0, str(row["verdict"]), width)
    lines += [f"{_COLOURS[state]}{line}{_RESET}" for line in verdict] if colour else verdict
    if row.get("next"):
        lines += _hang("next: ", 6, str(row["next"]), width)
    return "".join(line.rstrip() + "\n" for line in lines)


def _hang(head: str, indent: int, text: str, width: int | None) -> list[str]:
    """Return the text behind its head, its further lines below the first."""
    shown = neutral_text(text)
    if width is None or indent + measure_cells(shown) <= width:
        return [head + shown]
    first, *rest = textwrap.wrap(shown, max(width - indent, 20)) or [""]
    return [head + first, *(" " * indent + line for line in rest)]
