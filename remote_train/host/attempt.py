"""The truth about one attempt, read from its folder: what is recorded, and whether its supervisor lives.

States: created (claimed, nothing runs yet), starting, measuring, running, stopping, ended, lost, unknown.
An exit record decides; without one the identity (boot_id, pid, start time of the pid) of the supervisor does,
and then the cookie on any process that is left: those run on unsupervised.
"""

from __future__ import annotations

import os

from remote_train.host import layout, system
from remote_train.host.durable import read_record

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional


def read_exit(folder: str) -> Optional[Dict[str, Any]]:
    """Return the exit record, or None while there is none."""
    return read_record(os.path.join(folder, layout.EXIT))


def read_state(folder: str) -> Dict[str, Any]:
    """Return `state` and what is known beside it: `attempt` record, `exit` record, `peak`."""
    record = read_record(os.path.join(folder, layout.ATTEMPT))
    if record is None:
        claimed = os.path.exists(os.path.join(folder, layout.CLAIM))
        return {"state": "created" if claimed else "unknown"}
    peak = read_record(os.path.join(folder, layout.PEAK))
    alive = _supervisor_lives(record)
    # The exit record is looked for after the process: a run that ends in between is ended, not lost.
    ended = read_exit(folder)
    state = "ended" if ended is not None else _live_state(folder, record, alive=alive)
    return {"state": state, "attempt": record, "exit": ended, "peak": peak, "supervised": alive}


def _supervisor_lives(record: Dict[str, Any]) -> bool:
    return record.get("boot_id") == system.boot_id() and system.is_alive(record["pid"], record["start_time"])


def _live_state(folder: str, record: Dict[str, Any], *, alive: bool) -> str:
    if alive:
        if os.path.exists(os.path.join(folder, layout.STOP)):
            return "stopping"
        return str(record.get("phase", "starting"))
    if record.get("boot_id") == system.boot_id() and system.marked_processes(record["cookie"]):
        return "running"
    return "lost"


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
