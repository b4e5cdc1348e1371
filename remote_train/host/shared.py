"""What outlives runs: data folders that they share, downloads that persist, uploads that were broken off.

Data goes when no run that is under way uses it and none has for a month, or when it is asked for; a project's persistent
folders go only when they are asked for; the parts of an upload that nobody went on with go after a day.
"""

from __future__ import annotations

import os
import re
import time

from remote_train.host import arrivals, layout, life, locks, store, system
from remote_train.host.attempt import list_attempts, list_runs, read_state
from remote_train.host.durable import read_record
from remote_train.host.garbage import DAY, HOUR, START_SECONDS, age
from remote_train.host.trees import measure, shared_blocks, throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

DATA_SECONDS = 30 * DAY
INCOMING_SECONDS = DAY
MOST_NAMED = 5
"""Places of one data folder that are told."""
LEAST_SILENCE = 120.0
"""A supervisor writes something every minute while it trains or waits (`telemetry`, `waiting`); file systems are late."""
_SIGNS = (layout.ATTEMPT, layout.QUEUE, layout.TELEMETRY, layout.CLOCK)
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}\.([0-9]+)\.tmp\Z")


def list_plans(root: str) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield the folder and the plan of every attempt that was begun."""
    for run in list_runs(root):
        for number in list_attempts(root, run):
            folder = layout.attempt_dir(root, run, number)
            plan = (read_record(os.path.join(folder, layout.ATTEMPT)) or {}).get("plan")
            if isinstance(plan, dict):
                yield folder, plan


def _ids_of(plan: Dict[str, Any]) -> Dict[str, str]:
    """Return the data of a plan: place -> id."""
    data = plan.get("data")
    return (
        {str(key): str(name).partition("/")[0] for key, name in data.items()}
        if isinstance(data, dict)
        else {}
    )


def is_live(folder: str) -> bool:
    """Tell whether an attempt is under way, here or on a machine that shares this home."""
    state = read_state(folder)["state"]
    return state not in life.FINAL or (state == life.LOST and _lives_elsewhere(folder))


def _lives_elsewhere(folder: str) -> bool:
    """Tell whether what looks lost was begun in another boot and shows life: then that is another machine's."""
    record = read_record(os.path.join(folder, layout.ATTEMPT)) or {}
    if record.get("boot_id") == system.boot_id():
        return False
    now = time.time()
    signs = [path for path in (os.path.join(folder, name) for name in _SIGNS) if os.path.exists(path)]
    return any(age(path, now) <= choose_silence(time.monotonic()) for path in signs)


def choose_silence(uptime: float) -> float:
    """Return for how long an attempt of another boot may be silent; one of this machine's has been since the restart."""
    return min(HOUR, max(uptime, LEAST_SILENCE))


def find_used(root: str) -> Set[str]:
    """Return the ids of data folders that attempts under way use; note that, for when they end."""
    used: Set[str] = set()
    for folder, plan in list_plans(root):
        ids = _ids_of(plan)
        if ids and is_live(folder):
            used.update(ids.values())
    for data_id in used:
        store.note_use(root, data_id)
    return used


def list_data(root: str) -> List[str]:
    """Return the ids of the data folders that are here."""
    folder = os.path.join(root, layout.DATA)
    return sorted(filter(layout.is_hash, os.listdir(folder))) if os.path.isdir(folder) else []


def _unused_seconds(root: str, data_id: str, now: float) -> float:
    manifest = layout.package_path(root, data_id)
    return (
        age(manifest, now) if os.path.exists(manifest) else DATA_SECONDS + 1
    )  # gone, or never will be again


def describe_data(root: str, now: float, *, asked: bool) -> List[Dict[str, Any]]:
    """Return of each data folder its size, where runs have it, for how long none wanted it, and whether it may go."""
    used = find_used(root)
    places: Dict[str, Set[str]] = {}
    for _, plan in list_plans(root):
        for place, data_id in _ids_of(plan).items():
            places.setdefault(data_id, set()).add("%s/%s" % (plan.get("project"), place))
    rows = []
    for data_id in list_data(root):
        unused = _unused_seconds(root, data_id, now)
        rows.append(
            {
                "id": data_id,
                "bytes": measure(layout.data_path(root, data_id), shared_blocks),
                "places": sorted(places.get(data_id, ()))[:MOST_NAMED],
                "unused": unused,
                "used": data_id in used,
                "removed": data_id not in used and (asked or unused > DATA_SECONDS),
            }
        )
    return rows


def remove_data(root: str, data_id: str, now: float, *, asked: bool) -> bool:
    """Take a data folder away with its manifest, unless a start has wanted it since it was looked at."""
    cleaning = locks.hold_off_starts(root, START_SECONDS)
    if cleaning is None:
        return False
    try:
        if data_id in find_used(root) or not (asked or _unused_seconds(root, data_id, now) > DATA_SECONDS):
            return False
        place = layout.data_path(root, data_id)
        os.chmod(place, 0o700)  # or it could not be moved
        throw_away(root, place)
        manifest = layout.package_path(root, data_id)
        if os.path.exists(manifest):
            os.unlink(manifest)
    finally:
        os.close(cleaning)
    return True


def find_unfinished(root: str, now: float) -> List[str]:
    """Return data folders that were being made by processes that are gone."""
    folder = os.path.join(root, layout.DATA)
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = _TEMPORARY.match(name)
        path = os.path.join(folder, name)
        if match and age(path, now) > HOUR and system.start_time(int(match.group(1))) is None:
            found.append(path)
    return found


def find_incoming(root: str, now: float) -> List[str]:
    """Return the hashes of contents whose upload was broken off more than a day ago."""
    folder = os.path.join(root, layout.BLOBS, layout.INCOMING)
    names = sorted(filter(layout.is_hash, os.listdir(folder))) if os.path.isdir(folder) else []
    return [name for name in names if age(os.path.join(folder, name), now) > INCOMING_SECONDS]


def remove_incoming(root: str, sha256: str, now: float) -> bool:
    """Remove the part of an upload, unless somebody has gone on with it."""
    path = layout.incoming_path(root, sha256)
    return age(path, now) > INCOMING_SECONDS and arrivals.drop_incoming(root, sha256)


def describe_persist(root: str, asked: Optional[str]) -> List[Dict[str, Any]]:
    """Return the size of each project's persistent folders, and whether they are to go."""
    folder = os.path.join(root, layout.PERSIST)
    names = sorted(filter(layout.is_run_id, os.listdir(folder))) if os.path.isdir(folder) else []
    used = _find_persisting(root) if names else set()
    return [
        {
            "project": name,
            "bytes": measure(os.path.join(folder, name)),
            "used": name in used,
            "removed": name == asked and name not in used,
        }
        for name in names
    ]


def _find_persisting(root: str) -> Set[str]:
    """Return the projects of attempts under way that write to persistent folders."""
    plans = list_plans(root)
    return {str(plan.get("project")) for folder, plan in plans if plan.get("persist") and is_live(folder)}


def remove_persist(root: str, project: str) -> bool:
    """Take a project's persistent folders away, unless a run uses them."""
    cleaning = locks.hold_off_starts(root, START_SECONDS)
    if cleaning is None:
        return False
    try:
        if project in _find_persisting(root):
            return False
        throw_away(root, os.path.join(root, layout.PERSIST, project))
    finally:
        os.close(cleaning)
    return True
