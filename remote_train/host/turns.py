"""Whose turn it is on the GPUs of a host. Pure: tickets and GPUs in, a choice out.

The rule: tickets are served in order of arrival, the lowest number first, and a later one goes before an earlier one
only if it uses no GPU that the earlier one could be given. A ticket for a number of GPUs could be given any of them, so
it holds up everybody behind it; one that names GPUs, to have all of them or a `count` of them, holds up only who wants
one of these. So nobody is overtaken on a GPU they wait for, and whoever waits is served once those before have ended. A
ticket that asks for more than the host has now (a GPU fell off the bus) holds up nobody.
"""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

    Gpu = Dict[str, Any]
    Ticket = Dict[str, Any]

UNSEEN_SHARE, UNSEEN_BYTES = 0.2, 3e9
"""Of a GPU's memory in use though no process is listed: more than the smaller of the two is somebody's. A desktop of 2 GB
on a card of 12 GB, seen from inside a container, is 17 %; a fifth of a card of 80 GB would be a training."""
DESKTOP_SHARE = 0.1
"""Of a GPU's memory that a process which draws may also compute with: browsers and compositors decode video by CUDA."""


def find_users(gpu: Gpu) -> List[Dict[str, Any]]:
    """Return the listed processes for which a GPU is busy: those that compute, a desktop's aside."""
    total = gpu.get("memory_bytes") or 0
    return [
        process
        for process in gpu.get("processes") or []
        if process.get("compute")
        and not (process.get("draws") and (process.get("memory_bytes") or 0) <= DESKTOP_SHARE * total)
    ]


def is_foreign_busy(gpu: Gpu) -> bool:
    """Tell whether a GPU is in use, whoever it is by; where no process is seen, by how much memory is taken."""
    if gpu.get("processes"):
        return bool(find_users(gpu))
    used, total = gpu.get("memory_used_bytes") or 0, gpu.get("memory_bytes") or 0
    return used > min(UNSEEN_SHARE * total, UNSEEN_BYTES)


def mark_busy(gpus: Sequence[Gpu]) -> List[Gpu]:
    """Return the GPUs, each with whether somebody uses it."""
    return [dict(gpu, busy=is_foreign_busy(gpu)) for gpu in gpus]


def make_wish(gpus: Dict[str, Any]) -> Dict[str, Any]:
    """Return what a plan asks for as a ticket says it: `wanted`, a number or names, and `count` where so many of the names do.

    Who knows no `count` takes such a ticket for one that wants all of them: a supervisor of an older version may look at it.
    """
    if gpus.get("among"):
        return {"wanted": [str(name) for name in gpus["among"]], "count": int(gpus["count"])}
    return {"wanted": [str(name) for name in gpus["ids"]] if gpus.get("ids") else int(gpus["count"])}


def list_candidates(ticket: Ticket, gpus: Sequence[Gpu]) -> List[Gpu]:
    """Return the GPUs that a ticket could be given: any, or those that it names by index or UUID, in its order."""
    wanted = ticket["wanted"]
    if isinstance(wanted, int):
        return list(gpus)
    names = [str(name).strip() for name in wanted]
    named = [gpu for gpu in gpus if str(gpu["index"]) in names or gpu["uuid"] in names]
    return sorted(named, key=lambda gpu: min(names.index(name) for name in _names_of(gpu) if name in names))


def _names_of(gpu: Gpu) -> Tuple[str, str]:
    return str(gpu["index"]), gpu["uuid"]


def find_missing(ticket: Ticket, gpus: Sequence[Gpu]) -> Optional[str]:
    """Return in a sentence which of the wanted GPUs are not there at all, None when all are."""
    wanted, count = ticket["wanted"], ticket.get("count")
    if isinstance(wanted, int) or count is not None:
        number, have = count or wanted, len(list_candidates(ticket, gpus))
        of = "" if count is None else " of %d that are named" % len(wanted)
        return None if 0 < number <= have else "%d GPUs wanted%s, this host has %d" % (number, of, have)
    known = {name for gpu in gpus for name in _names_of(gpu)}
    unknown = [str(name) for name in wanted if str(name).strip() not in known]
    return "there is no GPU %s on this host" % unknown[0][:64] if unknown else None


def count_wanted(ticket: Ticket, gpus: Sequence[Gpu]) -> int:
    """Return how many GPUs a ticket wants; 0 where there are not so many."""
    if find_missing(ticket, gpus) is not None:
        return 0
    wanted = ticket["wanted"]
    return wanted if isinstance(wanted, int) else ticket.get("count") or len(list_candidates(ticket, gpus))


def _prefer(ticket: Ticket, gpus: Sequence[Gpu]) -> List[Gpu]:
    """Return the GPUs that a ticket could be given, the best first: in the order it names them, else the freest."""
    found = list_candidates(ticket, gpus)
    return sorted(found, key=_freeness) if isinstance(ticket["wanted"], int) else found


def choose_turn(tickets: Sequence[Ticket], gpus: Sequence[Gpu]) -> Dict[int, List[str]]:
    """Return which of the waiting tickets may go now, by number, and the UUIDs of the GPUs that each gets.

    A ticket has `number`, `wanted`, perhaps `count` (see make_wish) and `gpus`: the UUIDs that it holds, none while it
    waits. Of a GPU `busy` says that somebody else uses it. Of any the freest are given first: least memory in use, then
    lowest index.
    """
    held = {uuid for ticket in tickets for uuid in ticket["gpus"]}
    free = {gpu["uuid"] for gpu in gpus if gpu["uuid"] not in held and not gpu.get("busy")}
    reserved: Set[str] = set()
    chosen: Dict[int, List[str]] = {}
    for ticket in sorted(tickets, key=_number):
        if ticket["gpus"]:
            continue
        candidates = [gpu["uuid"] for gpu in _prefer(ticket, gpus)]
        count = count_wanted(ticket, gpus)
        available = [uuid for uuid in candidates if uuid in free and uuid not in reserved]
        if 0 < count <= len(available):
            chosen[ticket["number"]] = available[:count]
            reserved.update(available[:count])
        elif 0 < count <= len(candidates):
            reserved.update(candidates)
    return chosen


def choose_shared(ticket: Ticket, tickets: Sequence[Ticket], gpus: Sequence[Gpu]) -> List[str]:
    """Return the GPUs for somebody who waits for nobody: the least used, those that runs of ours have last."""
    held = [uuid for other in tickets for uuid in other["gpus"]]
    candidates = _prefer(ticket, gpus)
    candidates.sort(key=lambda gpu: (held.count(gpu["uuid"]), bool(gpu.get("busy"))))
    return [gpu["uuid"] for gpu in candidates[: count_wanted(ticket, gpus)]]


def _number(ticket: Ticket) -> int:
    return int(ticket["number"])


def _freeness(gpu: Gpu) -> Tuple[int, int]:
    return gpu.get("memory_used_bytes") or 0, gpu["index"]


def list_rivals(ticket: Ticket, tickets: Sequence[Ticket], gpus: Sequence[Gpu]) -> List[Ticket]:
    """Return the tickets that hold or wait for a GPU that this one could be given, in order, itself among them."""
    mine = {gpu["uuid"] for gpu in list_candidates(ticket, gpus)}
    found = []
    for other in sorted(tickets, key=_number):
        theirs = set(other["gpus"]) or {gpu["uuid"] for gpu in list_candidates(other, gpus)}
        if other["number"] == ticket["number"] or mine & theirs:
            found.append(other)
    return found


def find_place(ticket: Ticket, tickets: Sequence[Ticket], gpus: Sequence[Gpu]) -> Tuple[int, int]:
    """Return the place of a waiting ticket, 1 for who is next, and how many wait for what it waits for."""
    waiting = [other["number"] for other in list_rivals(ticket, tickets, gpus) if not other["gpus"]]
    return waiting.index(ticket["number"]) + 1, len(waiting)
