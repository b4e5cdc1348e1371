"""What uv has built here and nobody uses any more: environments, what their builders left, and uvs that laptops brought."""

from __future__ import annotations

import os
import re

from remote_train.host import layout, locks, shared
from remote_train.host.garbage import DAY, START_SECONDS, age
from remote_train.host.trees import measure, throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Tuple

UNUSED_SECONDS = 30 * DAY
_PYTHON = re.compile(r"(.*)/([0-9a-f]{64})/", re.DOTALL)


def list_environments(root: str) -> List[str]:
    """Return the keys of the environments that are here."""
    folder = os.path.join(root, layout.ENVS)
    return sorted(filter(layout.is_hash, os.listdir(folder))) if os.path.isdir(folder) else []


def _list_uses(root: str) -> Iterator[Tuple[str, str, str]]:
    """Yield the environment's key, the run and the folder of every attempt that was begun with an environment."""
    above = os.path.realpath(os.path.join(root, layout.ENVS))
    for folder, plan in shared.list_plans(root):
        found = _PYTHON.match(str(plan.get("python")))
        # Not by the text: a root has many names. Nor by where the Python leads: it is a link.
        if found and os.path.realpath(found.group(1)) == above:
            run = os.path.basename(os.path.dirname(os.path.dirname(folder)))
            yield found.group(2), run, folder


def _read_uses(root: str, now: float) -> Dict[str, float]:
    """Return of each environment that attempts were started with the seconds since the last; 0 while one is under way."""
    uses: Dict[str, float] = {}
    for key, _, folder in _list_uses(root):
        since = 0.0 if shared.is_live(folder) else age(os.path.join(folder, layout.ATTEMPT), now)
        uses[key] = min(since, uses.get(key, since))
    return uses


def list_users(root: str, key: str) -> List[str]:
    """Return the runs under way that use an environment."""
    return sorted({run for used, run, folder in _list_uses(root) if used == key and shared.is_live(folder)})


def find_unused(root: str, now: float) -> List[str]:
    """Return the keys of environments that no run has wanted for a month."""
    uses = _read_uses(root, now)
    return [
        key
        for key in list_environments(root)
        if min(uses.get(key, UNUSED_SECONDS + 1), age(layout.env_path(root, key), now)) > UNUSED_SECONDS
    ]


def remove_unused(root: str, key: str, now: float) -> bool:
    """Take an environment away, unless a start or a builder has wanted it since it was looked at."""
    cleaning = locks.hold_off_starts(root, START_SECONDS)
    if cleaning is None:
        return False
    try:
        path = layout.env_path(root, key)
        lock = locks.open_lock(path + layout.ENV_LOCK)
        try:
            if not locks.try_lock(lock) or key not in find_unused(root, now):
                return False
            throw_away(root, path)
            os.unlink(path + layout.ENV_LOCK)
        finally:
            os.close(lock)
    finally:
        os.close(cleaning)
    return True


def find_parts(root: str) -> List[Tuple[str, str]]:
    """Return what builders were writing, and the lock that one of them holds while it lives."""
    folder = os.path.join(root, layout.ENVS)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [
        (os.path.join(folder, name), os.path.join(folder, name[:64] + layout.ENV_LOCK))
        for name in sorted(names)
        if name.endswith(layout.ENV_PART) and layout.is_hash(name[:64])
    ]


def clear_parts(root: str, *, dry: bool) -> int:
    """Take away what builders have left that are gone; return its bytes."""
    freed = 0
    for path, name in find_parts(root):
        lock = locks.open_lock(name)
        try:
            if locks.try_lock(lock) and os.path.exists(path):
                freed += measure(path)
                if not dry:
                    throw_away(root, path)
        finally:
            os.close(lock)
    return freed


def find_programs(root: str, now: float) -> List[str]:
    """Return the folders of uvs that laptops brought and that have built nothing for a month."""
    folder = os.path.join(root, layout.UV)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [
        path for path in (os.path.join(folder, name) for name in names) if age(path, now) > UNUSED_SECONDS
    ]
