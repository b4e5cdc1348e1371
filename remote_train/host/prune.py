"""Which runs may leave this host: over, with no process left, and all that matters of them at the laptop that asks.

The laptop states what it has: the token each attempt was started with, the sizes of its mirrors, and of every file
it pulled path, size, mtime_ns and SHA-256 as this host stated them. What is here and not in that list keeps the run.
"""

from __future__ import annotations

import os

from remote_train.host import files, layout, life, locks, system
from remote_train.host.attempt import list_attempts, read_state
from remote_train.host.trees import measure, throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

    Reason = Tuple[str, str]
    Why = Tuple[str, str, int]
    Home = Dict[Tuple[str, int, int], str]

COARSE = 1_000_000_000
"""Nanoseconds of a whole second: what time a file has where the file system, or who set it, knows no better."""
START_SECONDS = 10.0


def parse_wish(item: Dict[str, Any]) -> Dict[str, Any]:
    """Return what a laptop says of one run, checked; raise ValueError, KeyError or TypeError for nonsense."""
    if not layout.is_run_id(item["run"]):
        raise ValueError("not a run id: %r" % (item["run"],))
    home: Home = {}
    for path, size, mtime_ns, sha256 in item["files"]:
        home[str(path), int(size), int(mtime_ns)] = str(sha256)
    attempts = {int(number): dict(facts) for number, facts in item["attempts"].items()}
    return {"run": item["run"], "attempts": attempts, "home": home}


def remove_run(root: str, wish: Dict[str, Any], *, dry: bool) -> Dict[str, Any]:
    """Take one run away if it may go, and return what became of it: `removed` or `gone`, else `why` it stays, and which `attempt` keeps it."""
    run = wish["run"]
    folder = layout.run_dir(root, run)
    result: Dict[str, Any] = {"run": run, "removed": False}
    numbers = list_attempts(root, run)
    if not os.path.isdir(folder) or not numbers:
        return dict(result, gone=True)
    held: List[int] = []
    try:
        why = _hold(root, run, numbers, held) or _find_reason(root, wish, numbers)
        result["bytes"] = measure(folder)
        if why is None:
            result["unpulled"] = sum(
                _count_unpulled(root, layout.attempt_dir(root, run, number), wish["home"])
                for number in numbers
            )
        if why is None and not dry:
            why = _take_away(root, run, numbers)
    finally:
        for fd in held:
            os.close(fd)
    if why is not None:
        return dict(result, kind=why[0], why=why[1], attempt=why[2])
    return dict(result, removed=True)


def _hold(root: str, run: str, numbers: List[int], held: List[int]) -> Optional[Why]:
    """Take the lock of every attempt, into `held`."""
    for number in numbers:
        path = os.path.join(layout.attempt_dir(root, run, number), layout.LOCK)
        held.append(locks.open_lock(path))
        if not locks.try_lock(held[-1]):
            return "busy", "somebody starts or supervises it", number
    return None


def _take_away(root: str, run: str, numbers: List[int]) -> Optional[Why]:
    lock = locks.hold_off_starts(root, START_SECONDS)
    if lock is None:
        return "busy", "something is being started on this host", numbers[-1]
    try:
        if list_attempts(root, run) != numbers:
            return "busy", "another attempt of it has been started", numbers[-1]
        throw_away(root, layout.run_dir(root, run))
    finally:
        os.close(lock)
    return None


def _find_reason(root: str, wish: Dict[str, Any], numbers: List[int]) -> Optional[Why]:
    """Return why a run must stay, None when it may go."""
    for number in numbers:
        facts = wish["attempts"].get(number)
        folder = layout.attempt_dir(root, wish["run"], number)
        why = ("foreign", "attempt %d is unknown to this laptop" % number) if facts is None else None
        why = why or _find_reason_of(root, folder, facts or {}, wish["home"])
        if why is not None:
            return why[0], why[1], number
    return None


def _find_reason_of(root: str, folder: str, facts: Dict[str, Any], home: Home) -> Optional[Reason]:
    state = read_state(folder)
    record = state.get("attempt")
    if record is None:
        return "running", "it was claimed and has not begun"
    if record.get("token") != facts.get("token"):
        return "foreign", "another laptop started it"
    if state["state"] not in life.FINAL:
        return "running", "it is %s" % state["state"]
    if system.marked_processes(record["cookie"]):
        return "running", "processes of it are still there"
    replaced = {str(path) for path in facts.get("replaced") or ()}
    why = _find_output(folder, facts.get("outputs") or {})
    return why or _find_checkpoint(root, folder, record, home, replaced)


def _find_output(folder: str, sizes: Dict[str, Any]) -> Optional[Reason]:
    """Look for an output that is not as long at home."""
    ranks = os.path.join(folder, layout.RANKS)
    names = os.listdir(ranks) if os.path.isdir(ranks) else []
    paths = {name[:-4]: os.path.join(ranks, name) for name in names if name.endswith(".log")}
    paths["launcher"] = os.path.join(folder, layout.LAUNCHER_LOG)
    for name, path in sorted(paths.items()):
        size = os.stat(path).st_size if os.path.exists(path) else 0
        if size != sizes.get(name, 0):
            return "output", "the output of %s is not at home" % (
                "rank " + name if name.isdigit() else "torchrun"
            )
    return None


def _find_checkpoint(
    root: str, folder: str, record: Dict[str, Any], home: Home, replaced: Set[str]
) -> Optional[Reason]:
    """Look for a checkpoint that is not at home in this form, nor as a later attempt left it."""
    globs = list(record["plan"].get("checkpoints") or files.CHECKPOINTS)
    for made in files.list_made(root, folder, record, globs):
        if made["path"] in replaced:
            continue
        sha256 = home.get((made["path"], made["size"], made["mtime_ns"]))
        if sha256 is None or not _is_same(os.path.join(folder, layout.CODE, made["path"]), made, sha256):
            return "checkpoint", made["path"]
    return None


def _count_unpulled(root: str, folder: str, home: Home) -> int:
    """Return how many files that are no checkpoints go with a run, and are not at home."""
    record = read_state(folder).get("attempt")
    made = files.list_made(root, folder, record, [], sure=False) if record else []
    return sum((item["path"], item["size"], item["mtime_ns"]) not in home for item in made)


def _is_same(path: str, made: Dict[str, Any], sha256: str) -> bool:
    """Tell whether a file of this size and time is the one that was pulled; whole seconds prove nothing."""
    if made["mtime_ns"] % COARSE:
        return True
    return files.hash_file(path) == sha256
