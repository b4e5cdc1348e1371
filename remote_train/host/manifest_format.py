r"""The manifest as both ends know it: rows, canonical JSON, package id, delta, and the host's check.

A row is `[path, "f", mode, size, sha256]` for a file or `[path, "l", target]` for a symbolic link. Rows are
sorted by path. Paths use `/`, are relative to the project, and hold undecodable bytes as surrogate escapes,
which JSON carries as `\udcXX`. Folders are not carried: they exist because files do. Only pure functions live
here; the only import is the standard library, because the host runs this file too.
"""

from __future__ import annotations

import hashlib
import json
import re

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, List, Set, Union

    Row = List[Union[str, int]]
    Rows = List[Row]
    Delta = Dict[str, List[object]]
else:
    Row = Rows = list
    Delta = dict

MAX_ROWS = 200_000
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_PARTS = 200
"""Of a path: folders are made by recursion, and deeper ones would end the program that makes them."""
MAX_FILE_BYTES = 1 << 62
FILE_MODE, PROGRAM_MODE = 0o644, 0o755

_HASH = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """Rows or a delta that no honest client sends, or that do not fit the base."""


def make_canonical_json(rows: Rows) -> bytes:
    """Render rows as the ASCII bytes that the package id is the hash of."""
    # Rows come from JSON or from a loop over files and hold no cycle.
    return json.dumps(rows, ensure_ascii=True, check_circular=False, separators=(",", ":")).encode("ascii")


def make_package_id(rows: Rows) -> str:
    """Name a package by its content: the SHA-256, in hex, of the canonical JSON of its rows."""
    return hashlib.sha256(make_canonical_json(rows)).hexdigest()


def make_delta(base_rows: Rows, rows: Rows) -> Delta:
    """Say what changes `base_rows` into `rows`: rows to set, paths to drop."""
    base = {row[0]: row for row in base_rows}
    paths = {row[0] for row in rows}
    return {
        "set": [row for row in rows if base.get(row[0]) != row],
        "drop": [row[0] for row in base_rows if row[0] not in paths],
    }


def apply_delta(base_rows: Rows, delta: object) -> Rows:
    """Apply what make_delta said; raise ManifestError when the delta does not fit this base.

    The result still has to pass check_rows: a delta comes from the other side.
    """
    if not isinstance(delta, dict) or set(delta) != {"set", "drop"}:
        raise ManifestError("a delta has the keys 'set' and 'drop', and no other")
    merged = {row[0]: row for row in base_rows}
    for path in _read_list(delta, "drop"):
        if not isinstance(path, str) or merged.pop(path, None) is None:
            raise ManifestError("the delta drops %r, which the base does not have" % (path,))
    for row in _read_list(delta, "set"):
        if not isinstance(row, list) or not row or not isinstance(row[0], str):
            raise ManifestError("the delta sets something that is not a row: %.80r" % (row,))
        merged[row[0]] = row
    return [merged[path] for path in sorted(merged, key=str)]


def _read_list(delta: Dict[str, object], key: str) -> List[object]:
    value = delta[key]
    if not isinstance(value, list) or len(value) > MAX_ROWS:
        raise ManifestError("'%s' of the delta is not a list of at most %d" % (key, MAX_ROWS))
    return value


def check_rows(rows: object) -> None:
    """Raise ManifestError unless `rows` can be written below a fresh folder without leaving it.

    For hostile input: types, caps, relative paths without `.`, `..` or empty parts, strict order (so no
    duplicates), nothing below a file or a link, and link targets that stay inside.
    """
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ManifestError("a manifest is a list of at most %d rows" % MAX_ROWS)
    paths = set()  # type: Set[str]
    last = ""
    for row in rows:
        if not isinstance(row, list) or not row or not isinstance(row[0], str):
            raise ManifestError("not a row: %.80r" % (row,))
        path = row[0]
        check_path(path)
        if path <= last:
            raise ManifestError("%r is out of order or there twice" % path)
        last = path
        paths.add(path)
        _check_entry(path, row)
    _check_parents(paths)


def check_path(path: str) -> None:
    """Raise ManifestError unless `path` is relative, plain, and within the caps."""
    # Splitting every one of 20,000 paths takes 20 ms of a launch; only a path that could be wrong is split.
    if "/." in path or "//" in path or not path or path[0] in "./" or path[-1] == "/":
        parts = path.split("/")
        if "" in parts or "." in parts or ".." in parts:
            raise ManifestError("%.200r is not a plain relative path" % path)
    if "\0" in path:
        raise ManifestError("%.200r holds a NUL" % path)
    if len(path) > MAX_NAME_BYTES or not path.isascii():
        _check_lengths(path, path.split("/"))


def _check_lengths(path: str, parts: List[str]) -> None:
    try:
        sizes = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    except UnicodeEncodeError:
        raise ManifestError("%.200r cannot be a file name" % path) from None
    if max(sizes) > MAX_NAME_BYTES or sum(sizes) + len(sizes) - 1 > MAX_PATH_BYTES:
        raise ManifestError("%.200r is too long" % path)
    if len(parts) > MAX_PARTS:
        raise ManifestError("%.200r is too deep: %d folders" % (path, len(parts) - 1))


def _check_entry(path: str, row: Row) -> None:
    if len(row) == 5 and row[1] == "f":
        _check_file(path, row)
    elif len(row) == 3 and row[1] == "l":
        _check_target(path, row[2])
    else:
        raise ManifestError("the row of %r is neither a file nor a link" % path)


def _check_file(path: str, row: Row) -> None:
    mode, size, digest = row[2:]
    # type() and not isinstance(): True is an int to Python and would come back as another JSON.
    if type(mode) is not int or mode not in (FILE_MODE, PROGRAM_MODE):
        raise ManifestError("%r has the mode %.20r" % (path, mode))
    if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise ManifestError("%r has the size %.20r" % (path, size))
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ManifestError("%r has no SHA-256" % path)


def _check_target(path: str, target: object) -> None:
    """Allow `..` only at the start of a target.

    The folder of a link is a real folder (nothing lies below a link), so leading `..` climb as far as they
    say; a `..` after a name could climb out of what that name, itself a link, points to.
    """
    if not isinstance(target, str) or not target:
        raise ManifestError("the link %r has no target" % path)
    if target == ".":
        return
    parts = target.split("/")
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if climbs > path.count("/"):
        raise ManifestError("the link %r leaves the project: %.200r" % (path, target))
    if parts[climbs:]:
        check_path("/".join(parts[climbs:]))


def _check_parents(paths: Set[str]) -> None:
    seen = set()  # type: Set[str]
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in seen:
            if folder in paths:
                raise ManifestError("%r lies below %r, which is not a folder" % (path, folder))
            seen.add(folder)
            folder = folder.rpartition("/")[0]
