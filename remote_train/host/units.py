"""Which files of a snapshot make which checkpoint, found by looking again only at folders that have changed.

A unit is a folder that a glob matches or that is named `checkpoint-…`, with all that lies below it; or a folder of shards
or of DCP's files, with those of its files that belong to them; else each matching file is one.
"""

from __future__ import annotations

import os
import time

from remote_train.host.containers import is_shard
from remote_train.host.globs import make_pattern
from remote_train.host.manifest_format import MAX_PARTS

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Sequence, Set

FOLDERS = "checkpoint-"
COMPANIONS = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin", ".distcp", ".metadata")
"""Endings of what belongs to the shards it lies beside, named by a glob or not."""

TICK, COARSE_TICK = 0.05, 2.1
"""Seconds in which a file system may give two changes one time: a kernel's tick is at most 10 ms, FAT's two seconds."""
OLD = 10.0
"""Seconds by the wall clock after which a change is over whatever that clock has done: no set-up is off by so much."""


def measure_tick(mtime_ns: int) -> float:
    """Return how long after a change of this time a second one may hide behind it."""
    return TICK if mtime_ns % 1_000_000_000 else COARSE_TICK


def is_old(status: os.stat_result) -> bool:
    """Tell whether a file or folder was last changed long ago, by the change time that no program can set."""
    return time.time() - max(status.st_mtime, status.st_ctime) > OLD


def is_nameable(path: str) -> bool:
    """Tell whether a laptop takes a file of this name: none with a control character, which a terminal might obey, nor too deep."""
    return path.count("/") < MAX_PARTS and not any(
        ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in path
    )


def belongs(path: str, unit: str) -> bool:
    """Tell whether a file that no glob names may come with the shards of the folder it lies in."""
    folder, _, name = path.rpartition("/")
    return bool(folder) and folder == unit and name.endswith(COMPANIONS)


class Group:
    """The files of one unit, by relative path: all of them, and those that are wanted."""

    def __init__(self) -> None:
        self.files: List[str] = []
        self.wanted: List[str] = []


class _Folder:
    def __init__(self, status: os.stat_result, since: float, scanned: float) -> None:
        self.mark = (status.st_ino, status.st_mtime_ns)
        self.since = since
        self.settled = is_old(status) or scanned - since > measure_tick(status.st_mtime_ns)
        self.files: List[str] = []
        self.folders: List[str] = []
        self.matched: Set[str] = set()
        self.shards = False


class Tree:
    """The folders of one snapshot as they were seen last; without globs every file is wanted."""

    def __init__(self, code: str, globs: Sequence[str]) -> None:
        self._code = code
        self._patterns = [make_pattern(glob) for glob in globs]
        self._known: Dict[str, _Folder] = {}
        self._near: Set[str] = set()

    def find_groups(self, *, near: bool = False) -> Dict[str, Group]:
        """Return the units with a file that is wanted; raise OSError when there is no snapshot.

        `near` looks only where units were found before, beside them, and at what is new there.
        """
        before = self._known if near else {}
        known = dict(before)
        groups: Dict[str, Group] = {}
        begun = set(self._near if near else ())
        waiting = [(path, "", False) for path in begun] or [("", "", False)]
        while waiting:
            path, unit, chosen = waiting.pop()
            known.pop(path, None)
            folder = self._read(path)
            if folder is None:
                continue
            known[path] = folder
            chosen = chosen or self._is_meant(path)
            unit = unit or (path if self._is_unit(path) else "")
            self._note_near(path, unit, folder)
            self._sort(groups, path, unit, chosen=chosen)
            below = [os.path.join(path, name) for name in folder.folders]
            waiting += [
                (inner, unit, chosen)
                for inner in below
                if unit or (inner not in begun and (inner not in before or self._is_unit(inner)))
            ]
        self._known = known
        return {unit: group for unit, group in groups.items() if group.wanted}

    def _note_near(self, path: str, unit: str, folder: _Folder) -> None:
        """Note the folders in which units lie, and those around them, where others will appear."""
        if path == unit and unit:
            self._near.add(os.path.dirname(path))
        elif folder.matched and not unit:
            self._near.update((path, os.path.dirname(path)))

    def _is_unit(self, path: str) -> bool:
        return bool(path) and (path.rpartition("/")[2].startswith(FOLDERS) or self._is_meant(path))

    def _is_meant(self, path: str) -> bool:
        return bool(path) and any(pattern.match(path) for pattern in self._patterns)

    def _sort(self, groups: Dict[str, Group], path: str, unit: str, *, chosen: bool) -> None:
        """Put a folder's files where they belong."""
        folder = self._known[path]
        shards = bool(path) and not unit and folder.shards and bool(folder.matched)
        if not (unit or folder.matched):
            return
        for name in folder.files:
            file = os.path.join(path, name)
            wanted = chosen or name in folder.matched or (shards and name.endswith(COMPANIONS))
            if unit or wanted:
                group = groups.setdefault(unit or (path if shards else file), Group())
                group.files.append(file)
                if wanted:
                    group.wanted.append(file)

    def _read(self, path: str) -> Optional[_Folder]:
        """Return what a folder holds; None for one that has gone or is closed to us."""
        place = os.path.join(self._code, path) if path else self._code
        before = self._known.get(path)
        try:
            status = os.lstat(place)
            if before is not None and before.settled and before.mark == (status.st_ino, status.st_mtime_ns):
                return before
            self._known[path] = self._scan(path, place, status, before)
        except OSError:
            if not path:
                raise
            return None
        return self._known[path]

    def _scan(self, path: str, place: str, status: os.stat_result, before: Optional[_Folder]) -> _Folder:
        now = time.monotonic()
        same = before is not None and before.mark == (status.st_ino, status.st_mtime_ns)
        folder = _Folder(status, before.since if before is not None and same else now, now)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name == "__pycache__" or not is_nameable(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if path.count("/") < MAX_PARTS - 3:
                        folder.folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    folder.files.append(entry.name)
        matched = [name for name in folder.files if self._is_meant(os.path.join(path, name))]
        folder.matched = set(matched if self._patterns else folder.files)
        folder.shards = any(map(is_shard, folder.files))
        return folder
