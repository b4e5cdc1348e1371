"""Who uses the GPUs that somebody waits for: runs of this account by their tickets, others by what the driver lists."""

from __future__ import annotations

import functools
import os

from remote_train.host.nvml import lists_our_pids
from remote_train.host.turns import (
    count_wanted,
    find_missing,
    find_place,
    find_users,
    is_foreign_busy,
    list_candidates,
    list_rivals,
)

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence

    Row = Dict[str, Any]

MOST = 32
"""Runs and users that are named."""
NAME_BYTES = 64


def describe_wait(ticket: Row, tickets: Sequence[Row], gpus: Sequence[Row]) -> Row:
    """Return why a ticket waits.

    `gpus` are the indices it could be given, `count` how many it wants, `place` of `of` where it stands among those
    that wait for these, `ahead` the runs before it, `users` who has the GPUs now (run and since, or pid, account and
    process of somebody else, or neither where only memory is seen), `why` what else keeps it waiting.
    Not to be called under a lock: the names of accounts may come over the network.
    """
    place, total = find_place(ticket, tickets, gpus)
    candidates = list_candidates(ticket, gpus)
    waiting = [other for other in list_rivals(ticket, tickets, gpus) if not other["gpus"]]
    return {
        "gpus": sorted({gpu["index"] for gpu in candidates}),
        "count": count_wanted(ticket, gpus),
        "place": place,
        "of": total,
        "ahead": [{"run": other["run"], "since": other["since"]} for other in waiting[: place - 1][-MOST:]],
        "users": [user for gpu in candidates for user in _list_users(gpu, tickets)][:MOST],
        "why": find_missing(ticket, gpus),
    }


def _list_users(gpu: Row, tickets: Sequence[Row]) -> List[Row]:
    index = {"gpu": gpu["index"]}
    holders = [ticket for ticket in tickets if gpu["uuid"] in ticket["gpus"]]
    if holders:
        return [
            dict(index, run=ticket["run"], since=ticket.get("taken") or ticket["since"]) for ticket in holders
        ]
    if not is_foreign_busy(gpu):
        return []
    found = [dict(index, **describe_process(process["pid"])) for process in find_users(gpu)]
    return found or [dict(index, memory_bytes=gpu.get("memory_used_bytes"))]


def describe_process(pid: int) -> Row:
    """Return pid, account and name of a process; None for what cannot be seen: in a container pids are not ours."""
    if not lists_our_pids():
        return {"pid": pid, "account": None, "process": None}
    return {"pid": pid, "account": _read_account(pid), "process": _read_name(pid)}


def _read_account(pid: int) -> Optional[str]:
    try:
        return _name_account(os.stat("/proc/%d" % pid).st_uid)
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _name_account(owner: int) -> str:
    """Return an account's name, asked for once: a directory server may take its time."""
    import pwd  # noqa: PLC0415  (who waits has time)

    try:
        return pwd.getpwuid(owner).pw_name[:NAME_BYTES]
    except KeyError:
        return "uid %d" % owner


def _read_name(pid: int) -> Optional[str]:
    try:
        with open("/proc/%d/comm" % pid, "rb") as file:
            return file.read(NAME_BYTES).decode("utf-8", "replace").strip() or None
    except OSError:
        return None


def render_users(wait: Row) -> str:
    """Return in words who uses what: the answer to a start that does not want to wait."""
    said = ["GPU %d is in use by %s" % (user["gpu"], _render_user(user)) for user in wait["users"]]
    said += ["%s waits for it too" % item["run"] for item in wait["ahead"]]
    said += [wait["why"]] if wait.get("why") else []
    return "; ".join(said) or "its GPUs are in use"


def _render_user(user: Row) -> str:
    if user.get("run"):
        return str(user["run"])
    if user.get("pid") is None:
        return "somebody who cannot be seen from here (%.1f GB)" % ((user.get("memory_bytes") or 0) / 1e9)
    who = "pid %d" % user["pid"]
    return "%s (%s%s)" % (
        user.get("account") or "somebody",
        "%s, " % user["process"] if user.get("process") else "",
        who,
    )
