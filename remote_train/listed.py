"""What a host lists of a run's files: checked before any of it lands here, and which of them is the newest checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from remote_train.errors import ProtocolError, UsageError
from remote_train.host.commits import COMMITTED, INCOMPLETE, SETTLING
from remote_train.host.globs import make_pattern, matches
from remote_train.host.units import belongs
from remote_train.landing import is_place

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


def parse_page(
    page: dict[str, Any], after: str, globs: Sequence[str], *, checkpoints: bool = False
) -> list[Row]:
    """Return a page's rows: in order behind `after`, each as wished for; raise ProtocolError for any other page."""
    rows = [parse_row(row, checkpoints=checkpoints) for row in page["files"]]
    patterns = make_patterns(globs)
    for row in rows:
        if row["path"] <= after:
            raise ProtocolError(f"a listing that is out of order at {row['path'][:200]!r}")
        beside = checkpoints and belongs(row["path"], row["unit"])
        if patterns and not beside and not matches(patterns, row["path"]):
            raise ProtocolError(f"a listing with {row['path'][:200]!r}, which was not asked for")
        after = row["path"]
    if page["next"] is not None and (not rows or page["next"] != after):
        raise ProtocolError("a listing that does not come to an end")
    return rows


def parse_row(row: object, *, checkpoints: bool = False) -> Row:
    """Check one row of the host's listing; raise ProtocolError for a path that could leave the target folder.

    With `checkpoints` it must say of which unit the file is, and the state of that.
    """
    if not isinstance(row, dict):
        raise ProtocolError("a listing with something else than files")
    path, size, mtime = row.get("path"), row.get("size"), row.get("mtime_ns")
    # A bool is an int too, and no size.
    if not isinstance(path, str) or type(size) is not int or type(mtime) is not int:
        raise ProtocolError("a listing with a malformed row")
    if not 0 <= size <= LARGEST or abs(mtime) > LARGEST:
        raise ProtocolError("a listing with a size or a time that no file has")
    if not is_place(path):
        raise ProtocolError(f"a listing with the path {path[:200]!r}")
    found = {"path": path, "size": size, "mtime_ns": mtime}
    return {**found, **_parse_unit(row, path)} if checkpoints else found


def _parse_unit(row: Row, path: str) -> Row:
    unit, state = row.get("unit"), row.get("state")
    if not isinstance(unit, str) or not is_place(unit) or not f"{path}/".startswith(f"{unit}/"):
        raise ProtocolError(f"a listing with {path[:200]!r} in {str(unit)[:200]!r}, where it does not lie")
    if not isinstance(state, str) or state not in {COMMITTED, SETTLING, INCOMPLETE}:
        raise ProtocolError(f"a listing with {path[:200]!r} in the state {str(state)[:40]!r}")
    return {"unit": unit, "state": state}


@dataclass(frozen=True)
class Unit:
    """A checkpoint as it stands on the host: a file, or the files that belong together."""

    name: str
    rows: tuple[Row, ...]

    @property
    def mtime_ns(self) -> int:
        """When it was written to last."""
        return max(int(row["mtime_ns"]) for row in self.rows)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(row["size"]) for row in self.rows)

    @property
    def is_folder(self) -> bool:
        """Tell whether it is a folder of its own."""
        return all(row["path"].startswith(self.name + "/") for row in self.rows)

    @property
    def glob(self) -> str:
        """Return what `--match` takes for it."""
        name = re.sub(r"[][*?]", lambda found: f"[{found[0]}]", self.name)
        return f"{name}/**" if self.is_folder else name

    @property
    def state(self) -> str:
        """Return `committed`, or the first other state of a file of it."""
        return next(
            (str(row["state"]) for row in self.rows if row.get("state", COMMITTED) != COMMITTED), COMMITTED
        )


def make_units(rows: Sequence[Row], *, single: bool = False) -> list[Unit]:
    """Return what belongs together, the newest first; every file by itself when it is `single`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = row["path"] if single else row.get("unit") or unit_of(row["path"])
        groups.setdefault(name, []).append(row)
    units = [Unit(name, tuple(group)) for name, group in groups.items()]
    return sorted(units, key=lambda unit: (-unit.mtime_ns, unit.name))


def choose_latest(rows: Sequence[Row]) -> list[Row]:
    """Return the newest checkpoint: one file, or every file of the newest `checkpoint-N` folder."""
    return [row for unit in make_units(rows)[:1] for row in unit.rows]


def unit_of(path: str) -> str:
    """Return the checkpoint that a file belongs to: its `checkpoint-N` folder, else the file itself."""
    parents = [str(parent) for parent in PurePosixPath(path).parents if parent.name.startswith("checkpoint-")]
    return parents[0] if parents else path
