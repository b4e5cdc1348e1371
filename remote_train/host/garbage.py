"""What nobody will ask for again: starts that died, half-written files, manifests, blobs and agents out of use."""

from __future__ import annotations

import os
import re
import time

from remote_train.host import layout, locks, store, system
from remote_train.host.attempt import list_attempts, list_runs
from remote_train.host.durable import read_record
from remote_train.host.trees import measure, own_blocks, throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Callable, Iterator, List, Set, Tuple

HOUR = 3600.0
DAY = 24 * HOUR
CLAIM_SECONDS = 600.0
"""A claim without a start is left alone so long: whoever made it may be on the way back with its token."""
LEFTOVER_SECONDS = HOUR
BLOB_SECONDS = DAY
MANIFEST_SECONDS = 7 * DAY
AGENT_SECONDS = 30 * DAY
BATCH = 500
"""Files removed while starts wait."""
START_SECONDS = 10.0
_TEMPORARY = re.compile(r"incoming\.(\d+)\.\d+\Z|.*\.(\d+)\.tmp\Z", re.DOTALL)


def age(path: str, now: float) -> float:
    """Return the seconds since a file was changed, 0 when it is gone; a time to come counts as long ago as it is ahead."""
    try:
        return abs(now - os.lstat(path).st_mtime)
    except OSError:
        return 0.0


def find_dead_starts(root: str, now: float) -> List[str]:
    """Return the folders of attempts that were claimed or prepared long ago, and never begun."""
    found = []
    for run in list_runs(root):
        for number in list_attempts(root, run):
            folder = layout.attempt_dir(root, run, number)
            if os.path.exists(os.path.join(folder, layout.ATTEMPT)):
                continue
            newest = min(age(folder, now), _age_of(os.path.join(folder, layout.CLAIM), folder, now))
            if newest > CLAIM_SECONDS:
                found.append(folder)
    return found


def _age_of(path: str, instead: str, now: float) -> float:
    return age(path if os.path.exists(path) else instead, now)


def remove_dead_start(root: str, folder: str) -> bool:
    """Take a start that died away, unless somebody has taken it up again."""
    cleaning = locks.hold_off_starts(root, START_SECONDS)
    if cleaning is None:
        return False
    path = os.path.join(folder, layout.LOCK)
    lock = locks.open_lock(path)
    try:
        free = locks.try_lock(lock) and locks.is_at(lock, path)
        if not free or os.path.exists(os.path.join(folder, layout.ATTEMPT)):
            return False
        throw_away(root, folder)
    finally:
        os.close(lock)
        os.close(cleaning)
    return True


def remove_empty_runs(root: str) -> None:
    """Remove the folders of runs that have no attempt any more."""
    cleaning = locks.hold_off_starts(root, START_SECONDS)
    if cleaning is None:
        return
    try:
        for run in list_runs(root):
            folder = layout.run_dir(root, run)
            for empty in (os.path.join(folder, layout.ATTEMPTS), folder):
                if os.path.isdir(empty) and not os.listdir(empty):
                    os.rmdir(empty)
    finally:
        os.close(cleaning)


def find_leftovers(root: str, now: float) -> List[str]:
    """Return files that were being written by processes that are gone."""
    found = []
    for folder in (
        root,
        *(os.path.join(root, name) for name in (layout.BLOBS, layout.PACKAGES, layout.PEAKS)),
    ):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            match = _TEMPORARY.match(name)
            path = os.path.join(folder, name)
            if match and age(path, now) > LEFTOVER_SECONDS:
                pid = int(match.group(1) or match.group(2))
                if system.start_time(pid) is None:
                    found.append(path)
    return found


def _used_packages(root: str) -> Set[str]:
    used = set()
    for run in list_runs(root):
        for number in list_attempts(root, run):
            record = read_record(os.path.join(layout.attempt_dir(root, run, number), layout.ATTEMPT)) or {}
            used.add(str((record.get("plan") or {}).get("package")))
    data = os.path.join(root, layout.DATA)
    return used.union(os.listdir(data) if os.path.isdir(data) else ())


def _list_packages(root: str) -> List[str]:
    names = os.listdir(os.path.join(root, layout.PACKAGES))
    return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))


def find_manifests(root: str, now: float) -> List[str]:
    """Return manifests that no run and no data folder here has, and no launch has asked for lately."""
    used = _used_packages(root)
    paths = [layout.package_path(root, package) for package in _list_packages(root) if package not in used]
    return [path for path in paths if age(path, now) > MANIFEST_SECONDS]


def find_blobs(root: str, now: float, dropped: Set[str]) -> List[str]:
    """Return contents that no manifest has, those in `dropped` aside, and that have been here for a day."""
    wanted: Set[str] = set()
    for package in _list_packages(root):
        if layout.package_path(root, package) not in dropped:
            rows = store.read_package(root, package) or []
            wanted.update(row[4] for row in rows if row[1] == "f")
    return [
        path for sha256, path in _list_blobs(root) if sha256 not in wanted and age(path, now) > BLOB_SECONDS
    ]


def _list_blobs(root: str) -> Iterator[Tuple[str, str]]:
    blobs = os.path.join(root, layout.BLOBS)
    for first in sorted(os.listdir(blobs)):
        folder = os.path.join(blobs, first)
        for rest in sorted(os.listdir(folder)) if len(first) == 2 and os.path.isdir(folder) else ():
            if layout.is_hash(first + rest):
                yield first + rest, os.path.join(folder, rest)


def sign_packages(root: str) -> List[Tuple[str, int]]:
    """Return the names and times of all manifests: another list means that something was launched since."""
    paths = [layout.package_path(root, package) for package in _list_packages(root)]
    return [(path, os.stat(path).st_mtime_ns) for path in paths if os.path.exists(path)]


def remove_unwanted(root: str, find: Callable[[], List[str]]) -> int:
    """Remove what `find` finds while nothing is launched, and return its bytes; what is left is for next time."""
    signed = sign_packages(root)
    unwanted = find()
    total = 0
    for begin in range(0, len(unwanted), BATCH):
        cleaning = locks.hold_off_starts(root, START_SECONDS)
        if cleaning is None:
            break
        try:
            if sign_packages(root) != signed:
                break
            for path in unwanted[begin : begin + BATCH]:
                total += measure(path, own_blocks)
                os.unlink(path)
            signed = sign_packages(root)
        finally:
            os.close(cleaning)
    return total


def find_agents(folder: str, now: float) -> List[str]:
    """Return our own programs that nothing has used for a month and no process runs, and half-written ones."""
    found = []
    commands: List[bytes] = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        whole = layout.is_hash(name)
        if age(path, now) <= (AGENT_SECONDS if whole else LEFTOVER_SECONDS):
            continue
        commands = commands or _list_commands()
        # A supervisor has the command line of the agent it was forked from; what it started has our PYTHONPATH.
        if not any(name.encode() in command for command in commands):
            found.append(path)
    return found


def _list_commands() -> List[bytes]:
    """Return the command lines of all processes, with their environments where these can be read."""
    if not os.path.exists("/proc/self/cmdline"):
        import subprocess  # noqa: PLC0415  (rare, and not cheap to import)

        return subprocess.run(["ps", "-axww", "-o", "command="], stdout=-1, check=True).stdout.splitlines()
    return [_read_command(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_command(pid: str) -> bytes:
    return b"".join(_read_words("/proc/%s/%s" % (pid, name)) for name in ("cmdline", "environ"))


def _read_words(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # another account's, or it has ended
        return b""


def is_recent(path: str, seconds: float) -> bool:
    """Tell whether a file was written within so many seconds."""
    return os.path.exists(path) and age(path, time.time()) < seconds
