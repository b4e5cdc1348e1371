"""One more attempt in run.json, or one less when it never came about.

Each entry: attempt, host, state_dir, plan, created, reason, checkpoint (unit, attempt, sha256s, step); of those that are
not the newest also how they ended, as it was known when the next one began, and `superseded` where that was not known.
The run's own host, state and end are those of its newest attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.attempts import newest_of
from remote_train.fencing import fence, lift

if TYPE_CHECKING:
    from remote_train.records import Run

    Record = dict[str, Any]

ENDING = ("state", "exit", "why", "pruned", "stays")
"""What run.json says of its newest attempt, and keeps in its entry when there is a newer one."""
FRESH = dict.fromkeys((*ENDING, "quiet", "supervised", "pruning"))


def append_attempt(run: Run, entry: Record, *, supersede: bool = False) -> None:
    """Add the next attempt, about to be started; durable when this returns. Raises LocalSpace.

    With `supersede` the one before may still run: it is fenced, and counts no more from the moment that this one is added.
    """
    run.attempt(entry["attempt"]).prepare()
    if supersede:
        fence(run, entry["attempt"] - 1, entry["attempt"])
    run.change(lambda record: _append(record, entry, supersede=supersede), sync=True)


def _append(record: Record, entry: Record, *, supersede: bool) -> Record:
    *older, last = record["attempts"]
    # `state_dir` is said of each attempt from now on: the run's own will be that of the newest.
    place = {"state_dir": last.get("state_dir", record.get("state_dir"))}
    last = {**last, **place, **{key: record.get(key) for key in ENDING}}
    if supersede:
        last["superseded"] = True
    now = {"host": entry["host"], "state_dir": entry["state_dir"], "state": "starting"}
    return FRESH | now | {"attempts": [*older, last, entry]}


def retract_attempt(run: Run) -> None:
    """Take back the newest attempt: nothing of it began, and the run is as it was before."""
    lift(run, newest_of(run.change(_retract, sync=True)))


def _retract(record: Record) -> Record:
    *older, last, _ = record["attempts"]
    before = {key: last.get(key) for key in ENDING}
    place = {"host": last["host"], "state_dir": last["state_dir"]}
    kept = {key: value for key, value in last.items() if key not in (*ENDING, "superseded")}
    return FRESH | before | place | {"attempts": [*older, kept]}


def change_plan(run: Run, host: str, plan: Record) -> None:
    """Note that the newest attempt starts with another plan than was thought; raise LocalSpace."""
    run.change(lambda record: {"attempts": _change_plan(record["attempts"], host, plan)})


def _change_plan(attempts: list[Record], host: str, plan: Record) -> list[Record]:
    *older, last = attempts
    return [*older, {**last, "host": host, "plan": plan}]
