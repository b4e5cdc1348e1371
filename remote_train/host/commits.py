"""When a checkpoint is committed: reported, renamed into place, or unchanged for a while; never while it is written.

States of a unit (`units.py`): `committed`; `settling` while it changes, was changed just now, or is held open for
writing; `incomplete` when it holds still and its container is torn. A version that is committed has sizes and times that
no other version of it has: whoever opens a file and finds those of the list has the bytes that were meant.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time

from remote_train.host import layout, writers
from remote_train.host.containers import ZIPPED, check_file, check_folder, has_container
from remote_train.host.durable import read_record
from remote_train.host.files import Shipped
from remote_train.host.reported import Reports
from remote_train.host.units import TICK, Tree, is_old, measure_tick

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

    from remote_train.host.units import Group

    Key = Tuple[Tuple[Any, ...], ...]

COMMITTED, SETTLING, INCOMPLETE = "committed", "settling", "incomplete"

SETTLE_SECONDS = 2.0
QUIET_SECONDS = 0.25
"""Settling of a zip where writers are seen: its directory is written last, so that whole and let go of it is done."""
UNFINISHED_SECONDS = 60.0
"""Settling of a folder of the Hugging Face Trainer without its last file: gathering an optimizer takes a while, and nothing is written."""
PATIENCE_SECONDS = SETTLE_SECONDS + 1.0
"""How long a list waits for what is settling: a training that rewrites all the time does not hold it up for ever."""
LOOK_SECONDS = 0.4
SHARE = 0.005
"""Of one core, for looking at the whole tree, and as much for looking near what was found, while a run is followed."""
ANNOUNCED = 100
"""Units told at once, the newest: a laptop that was away for long looks at the list for the others."""


_TRAINERS = re.compile(r"(.*/)?checkpoint-\d+\Z", re.DOTALL)
_WITH_MODEL, _LAST = "training_args.bin", "trainer_state.json"


class Unit:
    """A checkpoint as it is now."""

    def __init__(self, path: str, files: Dict[str, os.stat_result], wanted: List[str]) -> None:
        self.path = path
        self.files = files
        self.wanted = wanted
        self.state = SETTLING

    def make_key(self) -> Key:
        """Return what changes with any write, and with a change of owner or name too."""
        return tuple(
            (name, item.st_dev, item.st_ino, item.st_size, item.st_mtime_ns, item.st_ctime_ns)
            for name, item in self.files.items()
        )

    def make_version(self) -> Key:
        """Return what tells one version from another."""
        return tuple((name, item.st_ino, item.st_size, item.st_mtime_ns) for name, item in self.files.items())

    def is_unfinished(self) -> bool:
        """Tell whether it is a folder of the Hugging Face Trainer, which has written the model and not its last file."""
        has_model, has_last = (self.path + "/" + name in self.files for name in (_WITH_MODEL, _LAST))
        return bool(_TRAINERS.match(self.path)) and has_model and not has_last

    def list_rows(self) -> List[Dict[str, Any]]:
        """Return a row for each file that is wanted."""
        return [
            {
                "path": name,
                "size": self.files[name].st_size,
                "mtime_ns": self.files[name].st_mtime_ns,
                "unit": self.path,
                "state": self.state,
            }
            for name in self.wanted
        ]

    def sum_up(self) -> Dict[str, Any]:
        """Return what an event says of it."""
        kept = [self.files[name] for name in self.wanted]
        newest = max(item.st_mtime_ns for item in kept)
        size = sum(item.st_size for item in kept)
        return {"unit": self.path, "size": size, "count": len(kept), "mtime_ns": newest}


class _Memory:
    """What earlier looks have found of a unit that has not changed since."""

    def __init__(self, key: Key, since: float, *, replaced: bool) -> None:
        self.key = key
        self.since = since
        self.replaced = replaced
        self.checked = False
        self.whole: Optional[bool] = None
        self.committed = False


class Looker:
    """Looks at the checkpoints of one attempt, and remembers; used by several threads."""

    def __init__(self, root: str, folder: str, record: Dict[str, Any], globs: Sequence[str]) -> None:
        self._code = os.path.join(folder, layout.CODE)
        self._globs = list(globs)
        self._tree = Tree(self._code, globs)
        self._shipped = Shipped(root, self._code, record)
        self._reports = Reports(os.path.join(folder, layout.REPORT))
        self._memory: Dict[str, _Memory] = {}
        self._lock = threading.Lock()

    def look(self, *, ended: bool, sure: bool, near: bool = False) -> List[Unit]:
        """Return every unit with its state; of an attempt that has `ended` nobody writes any more.

        With `sure`, files that look as they were shipped are read; `near` finds new ones only beside those known. Raises OSError when there is no snapshot.
        """
        with self._lock:
            groups = self._tree.find_groups(near=near)
            began = time.monotonic()
            found = [self._make_unit(path, group, sure=sure) for path, group in groups.items()]
            units = [unit for unit in found if unit is not None]
            self._reports.refresh()
            seen = time.monotonic()
            self._memory = {unit.path: self._recall(unit, seen) for unit in units}
            # A unit is as old as it was when this look began, counted from when the look that saw it first was over.
            self._judge_all(units, began, ended=ended)
            return units

    def is_awaited(self, unit: Unit) -> bool:
        """Tell whether a list waits for this unit: where every file is wanted, not for logs that always grow."""
        named = bool(self._globs) or unit.path not in unit.files or has_container(unit.path)
        return named and unit.state == SETTLING

    def _make_unit(self, path: str, group: Group, *, sure: bool) -> Optional[Unit]:
        files: Dict[str, os.stat_result] = {}
        for name in sorted(group.files):
            status = self._stat(name)
            if status is not None:
                files[name] = status
        wanted = sorted(
            name
            for name in group.wanted
            if name in files and not self._shipped.has(name, files[name], sure=sure)
        )
        return Unit(path, files, wanted) if wanted else None

    def _recall(self, unit: Unit, now: float) -> _Memory:
        key, before = unit.make_key(), self._memory.get(unit.path)
        if before is not None and before.key == key:
            return before
        old = all(map(is_old, unit.files.values()))
        replaced = before is not None and _is_replaced(before.key, key)
        return _Memory(key, -math.inf if old else now, replaced=replaced)

    def _judge_all(self, units: List[Unit], now: float, *, ended: bool) -> None:
        due = []
        for unit in units:
            memory = self._memory[unit.path]
            if memory.committed:
                unit.state = COMMITTED
            elif ended or now - memory.since >= self._choose_wait(unit, memory):
                due.append(unit)
        written = self._find_written(due) if due and not ended else set()
        for unit in due:
            unit.state = self._judge(unit, written, now, ended=ended)
            self._memory[unit.path].committed = unit.state == COMMITTED

    def _choose_wait(self, unit: Unit, memory: _Memory) -> float:
        """Return how long a unit must have been as it is before it is looked at closely."""
        tick = max((measure_tick(item.st_mtime_ns) for item in unit.files.values()), default=TICK)
        zipped = len(unit.files) == 1 and unit.path in unit.files and unit.path.endswith(ZIPPED)
        if self._reports.covers(unit.path, unit.files) or (zipped and memory.replaced):
            return tick
        if unit.is_unfinished():
            return UNFINISHED_SECONDS
        return max(tick, QUIET_SECONDS if zipped and writers.can_tell() else SETTLE_SECONDS)

    def _find_written(self, units: List[Unit]) -> Set[Tuple[int, int]]:
        files = {(item.st_dev, item.st_ino) for unit in units for item in unit.files.values()}
        return writers.find_written(files) or set()

    def _judge(self, unit: Unit, written: Set[Tuple[int, int]], now: float, *, ended: bool) -> str:
        """Return the state of a unit that has been as it is for long enough; `written` was found after it was."""
        memory = self._memory[unit.path]
        if any((item.st_dev, item.st_ino) in written for item in unit.files.values()):
            return SETTLING
        if not memory.checked:
            try:
                memory.whole = self._check(unit)
            except OSError:  # rotated away meanwhile
                return SETTLING
            memory.checked = True
        if memory.whole is False:
            settled = ended or now - memory.since >= SETTLE_SECONDS
            return INCOMPLETE if settled else SETTLING
        if not self._is_settled(unit, memory, now, ended=ended):
            return SETTLING
        return COMMITTED if ended or self._is_same(unit) else SETTLING

    def _is_settled(self, unit: Unit, memory: _Memory, now: float, *, ended: bool) -> bool:
        """Tell whether there is enough to go by: a container that tells nothing needs the training's word, or time."""
        enough = ended or memory.whole is True or now - memory.since >= SETTLE_SECONDS
        return enough or self._reports.covers(unit.path, unit.files)

    def _check(self, unit: Unit) -> Optional[bool]:
        place = os.path.join(self._code, unit.path)
        if unit.path in unit.files:
            # Of one that is empty nothing can be said but that it is no checkpoint.
            return check_file(place) if unit.files[unit.path].st_size else False
        return check_folder(place, [name[len(unit.path) + 1 :] for name in unit.files])

    def _is_same(self, unit: Unit) -> bool:
        """Tell whether nothing has changed while its container was read."""
        now = {name: self._stat(name) for name in unit.files}
        files = {name: status for name, status in now.items() if status is not None}
        return Unit(unit.path, files, unit.wanted).make_key() == self._memory[unit.path].key

    def _stat(self, name: str) -> Optional[os.stat_result]:
        """Return a file's state, None when it was rotated away."""
        try:
            return os.lstat(os.path.join(self._code, name))
        except OSError:
            return None


def _is_replaced(before: Key, now: Key) -> bool:
    """Tell whether the one file of a unit has become another under the same name."""
    return len(before) == len(now) == 1 and before[0][0] == now[0][0] and before[0][1:3] != now[0][1:3]


_LOOKERS: Dict[Any, Looker] = {}


def find_looker(root: str, folder: str, record: Dict[str, Any], globs: Sequence[str]) -> Looker:
    """Return the looker for these checkpoints, with what it remembers: one for all requests of a connection."""
    key = (folder, record.get("token"), tuple(globs))
    if key not in _LOOKERS:
        _LOOKERS[key] = Looker(root, folder, record, globs)
    return _LOOKERS[key]


def list_checkpoints(looker: Looker, *, ended: bool) -> List[Dict[str, Any]]:
    """Return the rows of all checkpoints, by path; waits while some are settling, PATIENCE_SECONDS at most."""
    until = time.monotonic() + PATIENCE_SECONDS
    units = looker.look(ended=ended, sure=True)
    while any(map(looker.is_awaited, units)) and time.monotonic() < until:
        time.sleep(TICK)
        units = looker.look(ended=ended, sure=True, near=True)
    rows = [row for unit in units for row in unit.list_rows()]
    return sorted(rows, key=lambda row: str(row["path"]))


class Watching:
    """Checkpoints of an attempt that is followed: each look returns those that were committed since the one before it."""

    def __init__(self, folder: str, globs: Sequence[str]) -> None:
        self.due = self._wide = 0.0
        self._folder = folder
        self._globs = list(globs)
        self._told: Dict[str, Key] = {}

    def look(self) -> List[Dict[str, Any]]:
        """Return what to tell, oldest first, and set when the next look is `due`."""
        began, spent = time.monotonic(), time.thread_time()
        near = began < self._wide
        try:
            return self._find_new(near=near)
        except OSError:  # the snapshot is not there yet, or not any more
            return []
        finally:
            busy, now = time.thread_time() - spent, time.monotonic()
            # By the wall clock too: a file system that is slow to answer is not asked all the time.
            pause = max(LOOK_SECONDS, busy / SHARE, 2 * (now - began))
            if near:
                self.due = now + pause
            else:  # the whole tree again only then; near what was found much earlier
                self.due, self._wide = now + LOOK_SECONDS, now + pause

    def _find_new(self, *, near: bool) -> List[Dict[str, Any]]:
        record = read_record(os.path.join(self._folder, layout.ATTEMPT))
        if record is None:
            return []
        looker = find_looker(str(record["root"]), self._folder, record, self._globs)
        units = looker.look(ended=False, sure=False, near=near)
        told = {unit.path: self._told[unit.path] for unit in units if unit.path in self._told}
        new = [
            unit for unit in units if unit.state == COMMITTED and told.get(unit.path) != unit.make_version()
        ]
        self._told = {**told, **{unit.path: unit.make_version() for unit in new}}
        events = sorted((unit.sum_up() for unit in new), key=lambda event: int(event["mtime_ns"]))
        return events[-ANNOUNCED:]
