"""The truth about one attempt, read from its folder and the process table; `life.py` says what follows from it.

An exit record decides; without one the identity (boot_id, pid, start time of the pid) of the supervisor does,
and then the cookie on any process that is left: those run on unsupervised.
"""

from __future__ import annotations

import os
import time

from remote_train.host import layout, life, system
from remote_train.host.durable import read_record, sync_folder

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

RESTARTED = "the host was restarted"
KILLED = "its supervisor was killed"


def read_exit(folder: str) -> Optional[Dict[str, Any]]:
    """Return the exit record, or None while there is none."""
    return read_record(os.path.join(folder, layout.EXIT))


def read_state(folder: str) -> Dict[str, Any]:
    """Return `state` and what is known beside it.

    With an attempt record: `attempt`, `exit` and `peak` records, `phase`, `supervised`, `why` (of a run that is lost
    or unsupervised), `quiet`, the seconds since any output of a run under way grew, and `queue`, what it waits for.
    """
    record = read_record(os.path.join(folder, layout.ATTEMPT))
    if record is None:
        claimed = os.path.exists(os.path.join(folder, layout.CLAIM))
        return {"state": life.choose_state([life.CLAIMED] if claimed else [])}
    peak = read_record(os.path.join(folder, layout.PEAK))
    alive = _supervisor_lives(record)
    # The exit record is looked for after the process: a run that ends in between is ended, not lost.
    ended = read_exit(folder)
    if ended is not None and alive:
        sync_folder(
            folder
        )  # its writer may not have come to it, and nobody hears of an end that is not durable
    events = _observe(folder, record, ended, alive=alive)
    state = life.choose_state(events)
    return {
        "state": state,
        "phase": record.get("phase"),
        "attempt": record,
        "exit": ended,
        "peak": peak,
        "supervised": alive,
        "why": _explain(record) if ended is None and not alive else None,
        "quiet": None if state in life.FINAL else measure_quiet(folder),
        "queue": _read_wait(folder, record) if alive and state == life.STARTING else None,
    }


def _read_wait(folder: str, record: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Return what an attempt waits for in the queue for GPUs, None when it does not wait."""
    return read_record(os.path.join(folder, layout.QUEUE)) if record.get("phase") == "queued" else None


def _supervisor_lives(record: Dict[str, Any]) -> bool:
    return record.get("boot_id") == system.boot_id() and system.is_alive(record["pid"], record["start_time"])


def _observe(
    folder: str, record: Dict[str, Any], ended: Optional[Dict[str, Any]], *, alive: bool
) -> List[str]:
    events = [life.CLAIMED, life.RECORDED]
    if record.get("phase") == "running":
        events.append(life.LAUNCHED)
    if alive and os.path.exists(os.path.join(folder, layout.STOP)):
        events.append(life.STOP_ASKED)
    if ended is not None:
        events.append(life.EXIT_RECORDED)
    elif not alive:
        events.append(life.ORPHANED if _has_processes(record) else life.GONE)
    return events


def _has_processes(record: Dict[str, Any]) -> bool:
    return record.get("boot_id") == system.boot_id() and bool(system.marked_processes(record["cookie"]))


def _explain(record: Dict[str, Any]) -> str:
    return KILLED if record.get("boot_id") == system.boot_id() else RESTARTED


def measure_quiet(folder: str) -> Optional[float]:
    """Return seconds since an output was written to, by this machine's clock; None while there is none."""
    newest = None
    try:
        with os.scandir(os.path.join(folder, layout.RANKS)) as entries:
            for entry in entries:
                if entry.name.endswith(".log"):
                    changed = entry.stat().st_mtime
                    newest = changed if newest is None else max(newest, changed)
    except OSError:
        return None
    return None if newest is None else max(0.0, time.time() - newest)


def list_attempts(root: str, run: str) -> List[int]:
    """Return the numbers of a run's attempts, lowest first."""
    folder = os.path.join(layout.run_dir(root, run), layout.ATTEMPTS)
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except FileNotFoundError:
        return []


def list_runs(root: str) -> List[str]:
    """Return the ids of all runs of this state root, by name."""
    try:
        names = os.listdir(os.path.join(root, layout.RUNS))
    except FileNotFoundError:
        return []
    return sorted(name for name in names if layout.is_run_id(name))
