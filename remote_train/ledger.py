"""Which files here a pull has brought, and from which file of the host: `runs/ID/pulled.json`, by absolute path.

While a pull is under way what it changes stands in `pulled.jsonl`, a line for each change: of thousands of files each would
else cost the writing of all. Who reads the one reads the other too; the end of a pull, or the next, folds them into one.
A file here is only ever replaced, or removed, when its hash is the one that stands here for it. Of a checkpoint each file
has its `checkpoint`, once all of it is here: of how many files it is, and the digest of what was listed of them. Files
whose digests differ are of two versions, and too few are half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.host.durable import read_plain, sync_folder
from remote_train.host.trees import open_parent
from remote_train.mirror import hash_file
from remote_train.private import make_private, open_append
from remote_train.records import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable

PULLED = "pulled.json"
JOURNAL_ENDING = ".jsonl"
JOURNAL = Path(PULLED).with_suffix(JOURNAL_ENDING).name

Row = dict[str, Any]
Below = tuple[Path, int]
"""A folder below which no link is gone through, and the same one open."""


def read_ledger(path: Path) -> Row:
    """Return what is known of files here: what was folded, and the changes since; a torn line ends them."""
    try:
        lines = read_plain(str(path.with_suffix(JOURNAL_ENDING))).split(b"\n")
    except OSError:
        lines = []
    entries = read_json(path)  # after the journal: what is folded in between is seen twice, not missed
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        for line in lines:
            _apply(entries, json.loads(line))
    return entries


def _apply(entries: Row, changes: Row) -> None:
    for place, entry in changes.items():
        if entry is None:
            entries.pop(place, None)
        else:
            entries[place] = entry


class Ledger:
    """One ledger, as it was read and as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal = path.with_suffix(JOURNAL_ENDING)
        self._whole = not self._journal.exists()
        """The journal does not end in half a line."""
        self.entries: Row = read_ledger(path)

    def find(self, place: Path) -> Row | None:
        """Return what is known of a file here."""
        entry = self.entries.get(str(place))
        return entry if isinstance(entry, dict) else None

    def is_here(self, row: Row, place: Path) -> bool:
        """Tell whether a file of the host is here already, untouched since it was brought."""
        entry = self.find(place)
        if entry is None or not place.is_file() or ("weights_of" in entry and "weights_of" not in row):
            return False
        status = place.stat()
        here = (status.st_size, status.st_mtime_ns) == (entry["size"], entry["here_mtime_ns"])
        return here and (row["size"], row["mtime_ns"]) == (entry["size"], entry["mtime_ns"])

    def may_replace(self, place: Path, held: str | None) -> bool:
        """Tell whether nothing is there, or what a pull put there: the last, or the one it did not come to replace."""
        entry = self.find(place)
        if held is None:
            return not os.path.lexists(place)
        return entry is not None and held in (entry["sha256"], entry.get("before"))

    def note(self, entries: dict[Path, Row]) -> None:
        """Say what will stand somewhere, and what stood there: killed on either side of the rename, both are ours.

        Written after the rename instead, a death between the two left a file that no later pull would touch.
        """
        self._change({str(place): entry for place, entry in entries.items()})

    def mark(self, rows: Iterable[Row], target: Path, unit: str) -> None:
        """Say that files below `target` are, together, all of a checkpoint in one version."""
        rows = list(rows)
        mark = {"unit": unit, "checkpoint": make_mark(rows)}
        entries = {target / row["path"]: self.entries[str(target / row["path"])] for row in rows}
        if any(entry.get("checkpoint") != mark["checkpoint"] for entry in entries.values()):
            self.note({place: {**entry, **mark} for place, entry in entries.items()})

    def find_same(self, place: Path) -> Path | None:
        """Return under which other name a pull brought the file that is here, where upper and lower case are one."""
        for name in self.entries:
            other = Path(name)
            if other != place and fold(other) == fold(place) and other.exists() and other.samefile(place):
                return other
        return None

    def drop(self, places: list[Path]) -> None:
        """Forget files that are here no more."""
        self._change(dict.fromkeys(map(str, places)))

    def _change(self, changes: Row) -> None:
        """Make a change, and make it durable. Raises OSError."""
        _apply(self.entries, changes)
        if not self._whole:
            self.fold()
            return
        self._whole = False
        made = not self._journal.exists()
        make_private(self._path.parent)
        with open_append(self._journal) as journal:
            journal.write(json.dumps(changes, separators=(",", ":")).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        if made:
            sync_folder(str(self._journal.parent))
        self._whole = True

    def fold(self) -> None:
        """Write all of it, and begin a new journal with the next change. Raises OSError."""
        if self._journal.exists() or not self._whole:
            write_json(self._path, self.entries, sync=True)
            self._journal.unlink(missing_ok=True)
            self._whole = True


def make_mark(rows: Iterable[Row]) -> Row:
    """Return what tells this version of a checkpoint from any other, and from a part of it."""
    facts = sorted([row["path"], row["size"], row["mtime_ns"]] for row in rows)
    return {"files": len(facts), "digest": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}


def fold(place: Path) -> str:
    """Return what names that a disk takes for one have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(place)).casefold())


def drop_old(ledger: Ledger, folder: Path, keep: int, below: Below) -> list[Path]:
    """Remove all but the `keep` newest checkpoints that pulls brought to a folder; return the files that went.

    A file that is not what the pull brought, by its hash, stays, and so does one behind a link `below` the folder that
    all of a pull lands in. Raises OSError.
    """
    gone: list[Path] = []
    try:
        for place in (place for unit in _list_units(ledger, folder)[keep:] for place in unit):
            if _remove(ledger, place, folder, below):
                gone.append(place)  # noqa: PERF401  (what went is to be known if the next cannot go)
    finally:
        if gone:
            ledger.drop(gone)
    return gone


def _list_units(ledger: Ledger, folder: Path) -> list[list[Path]]:
    """Return the files of each checkpoint, the newest first: that of the last attempt, then the last that was written."""
    units: dict[str, list[Path]] = {}
    for name, entry in ledger.entries.items():
        place = Path(name)
        if "weights_of" not in entry and "unit" in entry and place.is_relative_to(folder) and place.is_file():
            units.setdefault(entry["unit"], []).append(place)
    found = {name: [ledger.entries[str(place)] for place in places] for name, places in units.items()}
    ages = {
        name: max((entry["attempt"], entry["mtime_ns"]) for entry in entries)
        for name, entries in found.items()
        if any("checkpoint" in entry for entry in entries)
    }
    return [units[name] for name in sorted(ages, key=ages.__getitem__, reverse=True)]


def _remove(ledger: Ledger, place: Path, folder: Path, below: Below) -> bool:
    """Remove a file that is as it was brought, and the folders that are empty then."""
    try:
        opened, name = _open_parent(place, below)
    except OSError:  # it lies behind a link
        return False
    try:
        if place.is_symlink() or _hash_in(opened, name) != ledger.entries[str(place)]["sha256"]:
            return False
        os.unlink(name, dir_fd=opened)
    except OSError as error:
        error.filename = str(place)  # not the name alone
        raise
    finally:
        os.close(opened)
    with contextlib.suppress(OSError):  # something else is in it, or it lies behind a link by now
        for parent in place.parents:
            if parent == folder:
                break
            _remove_folder(parent, below)
    return True


def _open_parent(place: Path, below: Below) -> tuple[int, str]:
    base, top = below
    return open_parent(top, place.relative_to(base).as_posix())


def _hash_in(folder: int, name: str) -> str:
    return hash_file(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder))


def _remove_folder(place: Path, below: Below) -> None:
    opened, name = _open_parent(place, below)
    try:
        os.rmdir(name, dir_fd=opened)
    finally:
        os.close(opened)
