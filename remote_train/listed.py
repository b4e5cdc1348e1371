"""What a host lists of a run's files: checked before any of it lands here, and which of them is the newest checkpoint."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from remote_train.errors import ProtocolError, UsageError
from remote_train.host.globs import make_pattern
from remote_train.partial import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from re import Pattern

LARGEST = 2**63 - 1

Row = dict[str, Any]


def make_patterns(globs: Sequence[str]) -> list[Pattern[str]]:
    """Return a pattern for each glob; raise UsageError for one that means nothing."""
    try:
        return [make_pattern(glob) for glob in globs]
    except ValueError as error:
        raise UsageError(str(error), hint="name the files with other globs: --match") from error


def parse_page(page: dict[str, Any], after: str, globs: Sequence[str]) -> list[Row]:
    """Return a page's rows: in order behind `after`, each as wished for; raise ProtocolError for any other page."""
    rows = [parse_row(row) for row in page["files"]]
    patterns = make_patterns(globs)
    for row in rows:
        if row["path"] <= after:
            raise ProtocolError(f"a listing that is out of order at {row['path'][:200]!r}")
        if patterns and not any(pattern.match(row["path"]) for pattern in patterns):
            raise ProtocolError(f"a listing with {row['path'][:200]!r}, which was not asked for")
        after = row["path"]
    if page["next"] is not None and (not rows or page["next"] != after):
        raise ProtocolError("a listing that does not come to an end")
    return rows


def parse_row(row: object) -> Row:
    """Check one row of the host's listing; raise ProtocolError for a path that could leave the target folder."""
    if not isinstance(row, dict):
        raise ProtocolError("a listing with something else than files")
    path, size, mtime = row.get("path"), row.get("size"), row.get("mtime_ns")
    # A bool is an int too, and no size.
    if not isinstance(path, str) or type(size) is not int or type(mtime) is not int:
        raise ProtocolError("a listing with a malformed row")
    if not 0 <= size <= LARGEST or abs(mtime) > LARGEST:
        raise ProtocolError("a listing with a size or a time that no file has")
    if len(path) > 4096 or not all(map(_is_name, path.split("/"))):
        raise ProtocolError(f"a listing with the path {path[:200]!r}")
    return {"path": path, "size": size, "mtime_ns": mtime}


def _is_name(part: str) -> bool:
    try:
        named = part not in {"", ".", ".."} and "\0" not in part and not part.endswith(PARTIAL)
        return named and len(os.fsencode(part)) <= 255
    except UnicodeEncodeError:
        return False


def choose_latest(rows: Sequence[Row]) -> list[Row]:
    """Return the newest checkpoint: one file, or every file of the newest `checkpoint-N` folder."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(unit_of(row["path"]), []).append(row)
    if not groups:
        return []
    return max(groups.values(), key=lambda group: max(row["mtime_ns"] for row in group))


def unit_of(path: str) -> str:
    """Return the checkpoint that a file belongs to: its `checkpoint-N` folder, else the file itself."""
    parents = [str(parent) for parent in PurePosixPath(path).parents if parent.name.startswith("checkpoint-")]
    return parents[0] if parents else path
