"""Whose a comment is that stands between two tables of a TOML text, where a library gives it to the table above.

A block right above a header is that table's, one right below a table's last line is this one's, and what has blank
lines on both sides is nobody's: it outlives either. Text in, text out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from remote_train.config.toml_lines import KeyPath, parse_gaps

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Between:
    """What was cut out above one header; the path of the text's end is ()."""

    path: KeyPath
    free: str
    """Blank lines, and comments of nobody's."""
    own: str = ""


def cut_between(text: str) -> tuple[str, list[Between]]:
    """Return the text without what stands between its tables, and that; a text without tables stays whole."""
    gaps = parse_gaps(text)
    if len(gaps) < 2:
        return text, []
    pieces, cut, at = [], [], 0
    for start, end, path in gaps:
        lines = text[start:end].splitlines(keepends=True)
        own = _count_comments(lines[::-1]) if path else 0
        free = lines[: len(lines) - own]
        above = _count_comments(free) if start else 0
        pieces.append(text[at:start] + "".join(lines[:above]))
        cut.append(Between(path, "".join(free[above:]), "".join(lines[len(free) :])))
        at = end
    return "".join([*pieces, text[at:]]), cut


def put_between(text: str, cut: Sequence[Between]) -> str:
    """Put it back above the headers that are still there; of one that is gone, what was nobody's goes to the next."""
    if not cut:
        return text
    gaps = parse_gaps(text)
    left = {path for _, _, path in gaps}
    above: dict[KeyPath, str] = {}
    carried = ""
    for each in cut:
        if each.path in left:
            above[each.path] = _join(carried, each.free) + each.own
            carried = ""
            continue
        # Only tables below one are ever taken out: a bare [hosts] goes with the last of them, and what stood above it was about all.
        left_over = each.free + ("\n" + each.own if each.own and len(each.path) == 1 else "")
        if left_over.strip():
            carried = _join(carried, left_over)
    known = {each.path for each in cut}
    new = next((path for _, _, path in gaps if path not in known), ())
    pieces, at = [], 0
    for _, start, path in gaps:
        # What stood at the end of the text stays above what was added there.
        put = above.get(path, "") if path in known - {()} else above[()] if path == new else ""
        before = text[at:start].rstrip("\n") + "\n" if path not in known else text[at:start]
        pieces.append(before + put + ("\n" if path not in known and not put.endswith("\n\n") else ""))
        at = start
    return "".join(pieces).lstrip("\n") + text[at:]


def _join(first: str, second: str) -> str:
    """One blank line is enough between them."""
    if not first or not second:
        return first or second
    return first.rstrip("\n") + "\n" + (second if second.startswith("\n") else "\n" + second)


def _count_comments(lines: Sequence[str]) -> int:
    return len(list(takewhile(lambda line: line.lstrip().startswith("#"), lines)))
