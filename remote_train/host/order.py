"""Attempts of a run are an order: the highest number counts, and one runs on a host at a time.

Asked with the claim of the new attempt in place: of two that are claimed at once, at least one sees the other.
"""

from __future__ import annotations

import os
import time

from remote_train.host import layout, life, locks, stop_orders
from remote_train.host.attempt import list_attempts, read_state

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

STOP_SECONDS = 60.0
"""How long an older attempt may take to be gone, beyond its grace."""
PAUSE = 0.05


def find_obstacle(root: str, request: Dict[str, Any], progress: Callable[[], None]) -> Optional[str]:
    """Return why this attempt may not start beside the others of its run here, None when it may.

    An older one that lives is stopped first where the request says `supersede`. `known` are the tokens of older
    attempts, as far as the laptop has them: a run of another laptop may have the same name.
    """
    run, number = request["run"], request["attempt"]
    known = dict(request.get("known") or {})
    for other in list_attempts(root, run):
        folder = layout.attempt_dir(root, run, other)
        if other > number and _has_begun(folder):
            return "attempt %d of %s has been started on this host already" % (other, run)
        if other < number and _is_foreign(folder, known.get(str(other))):
            return "there is a run named %s on this host, of another laptop" % run
        if other < number and _lives(folder) and not _supersede(folder, request, progress):
            return "attempt %d of %s is still running on this host; stop it first" % (other, run)
    return None


def _has_begun(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in (layout.ATTEMPT, layout.CLAIM))


def _is_foreign(folder: str, token: object) -> bool:
    record = read_state(folder).get("attempt")
    return record is not None and token is not None and record.get("token") != token


def _lives(folder: str) -> bool:
    state = read_state(folder)["state"]
    if state == life.CREATED:  # claimed: by somebody who is at it, or has died over it
        return _is_held(os.path.join(folder, layout.LOCK))
    return state not in (life.UNKNOWN, *life.FINAL)


def _is_held(path: str) -> bool:
    if not os.path.exists(path):
        return False
    fd = locks.open_lock(path)
    try:
        return not locks.try_lock(fd)
    finally:
        os.close(fd)


def _supersede(folder: str, request: Dict[str, Any], progress: Callable[[], None]) -> bool:
    """Stop an older attempt if that is wished for; tell whether it is gone."""
    if not request.get("supersede"):
        return False
    grace = max(0.0, float(request.get("grace", 0.0)))
    stop_orders.order_stop(folder, read_state(folder), {"grace": grace, "superseded_by": request["attempt"]})
    deadline = time.monotonic() + grace + STOP_SECONDS
    while _lives(folder):
        if time.monotonic() > deadline:
            return False
        progress()
        time.sleep(PAUSE)
    return True
