"""Ask a supervisor to stop its attempt; where it was killed, a process of ours takes its place."""

from __future__ import annotations

import os
import signal
import time

from remote_train.host import layout, system
from remote_train.host.disk import FAILING, drop_reserve
from remote_train.host.durable import write_record

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict

STOP_WAIT = 10.0
"""Less than wire.SILENCE_SECONDS: nothing is heard of us while we end what a dead supervisor left."""


def order_stop(folder: str, state: Dict[str, Any], wish: Dict[str, Any]) -> Dict[str, Any]:
    """Have an attempt stopped that is in this state; return what is known at once. May be repeated.

    Of the wish count `grace`; `cookie`, which finds the processes of one whose folder is gone; and `superseded_by`.
    """
    record = state.get("attempt")
    asked: Dict[str, Any] = {"asked": time.time()}
    if wish.get("superseded_by") is not None:  # it counts no more: another attempt of the run goes on
        asked["superseded_by"] = int(wish["superseded_by"])
    if state["state"] == "created":  # its supervisor looks before it starts anything
        _write_stop(folder, dict(asked, grace=0.0))
    if state["state"] in ("ended", "lost", "unknown", "created") or record is None:
        known = record["cookie"] if record else wish.get("cookie")
        survivors = system.sweep(None, str(known), STOP_WAIT) if _is_cookie(known) else []
        return {"state": state["state"], "survivors": survivors}
    grace = max(0.0, float(wish.get("grace", 30.0)))
    written = _write_stop(folder, dict(asked, grace=grace))
    if state["supervised"]:
        number = signal.SIGUSR1 if written else signal.SIGTERM
        for send in (signal.SIGCONT, number):  # somebody may have halted it
            system.kill_process(record["pid"], record["start_time"], send)
        return {"state": "stopping", "survivors": []}
    from remote_train.host import orphans  # noqa: PLC0415  (rare)

    orphans.spawn(folder, record)
    return {"state": "stopping", "survivors": []}


def _is_cookie(cookie: object) -> bool:
    """Tell whether this may be what marks a run: the laptop may name any."""
    return (
        isinstance(cookie, str) and len(cookie) == 32 and all(digit in "0123456789abcdef" for digit in cookie)
    )


def _write_stop(folder: str, request: Dict[str, Any]) -> bool:
    """Write the stop file, on a full disk into the space held back for it; False when even that is gone."""
    path = os.path.join(folder, layout.STOP)
    try:
        write_record(path, request)
    except OSError as error:
        if error.errno not in FAILING:
            raise
        drop_reserve(folder)
    else:
        return True
    try:
        write_record(path, request)
    except OSError:
        return False
    return True
