"""Wait for GPUs: the agent takes a ticket at the start, the supervisor waits with it for as long as it takes.

A look at the tickets takes less than a millisecond and comes once a second. The driver is asked only when no run of ours is
in the way any more, in a process of its own, for it can hang: more and more rarely, and when a process that uses it has
ended. So a supervisor that waits takes less than 0.2 % of a core.
"""

from __future__ import annotations

import os
import time

from remote_train.host import layout
from remote_train.host.durable import write_record
from remote_train.host.gpu_users import describe_wait, render_users
from remote_train.host.gpus import list_gpus
from remote_train.host.nvml import exists, lists_our_pids
from remote_train.host.tickets import Tickets
from remote_train.host.turns import (
    choose_shared,
    choose_turn,
    find_missing,
    find_users,
    list_candidates,
    make_wish,
    mark_busy,
)

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set

    from remote_train.host.driver_reader import DriverReader
    from remote_train.host.operations import Operations
    from remote_train.host.tickets import Ticket

    Gpus = List[Dict[str, Any]]

TICKET_SECONDS = 1.0
DRIVER_SECONDS, LONGEST_SECONDS = 3.0, 60.0
"""Between two questions to the driver while somebody else uses a GPU that would be ours: at first, and once it lasts."""
IDLE_SECONDS = 60.0
"""The same while runs of ours are in the way: who else is there, for those who ask."""
SIGN_SECONDS = 60.0
"""Between two signs of life for machines that share this home, see `shared.is_live`."""


class GpusUnfit(Exception):
    """This host does not have the GPUs that are wanted."""


class GpusBusy(Exception):
    """The GPUs are in use, and the start does not want to wait."""


class Turn:
    """One attempt's ticket and what it has led to: `gpus` are those it was given, none while it waits."""

    def __init__(self, root: str, plan: Dict[str, Any], seen: Gpus, ticket: Ticket) -> None:
        self._tickets = Tickets(root)
        self._facts = {gpu["uuid"]: gpu for gpu in plan.get("gpu_facts", [])}
        self._seen = seen
        self._live = [ticket.fields]
        self._due = time.monotonic() + IDLE_SECONDS
        self._pause = DRIVER_SECONDS
        self._alone = False
        self._pids = _list_pids(seen)
        self._reader: Optional[DriverReader] = None
        self._told: Any = None
        self.ticket = ticket
        self.gpus: Gpus = []
        self.shared = False
        """Others use its GPUs too: it did not want to wait."""
        self.wait: Dict[str, Any] = {}
        """Why it waits, see gpu_users.describe_wait."""

    def look(self, tickets: Tickets, *, share: bool = False) -> bool:
        """Take the GPUs if it is our turn, by what was seen of them last; the tickets are locked."""
        self._live = tickets.read_others(self.ticket.fields)
        chosen = choose_turn(self._live, self._seen).get(self.ticket.number)
        if chosen is None and share:
            chosen, self.shared = choose_shared(self.ticket.fields, self._live, self._seen), True
        if not chosen:
            return False
        self.ticket.write(chosen)
        candidates = list_candidates(self.ticket.fields, self._seen)
        self.gpus = [self._make_record(gpu) for gpu in candidates if gpu["uuid"] in chosen]
        return True

    def look_again(self) -> bool:
        """Look at the tickets, and, where nobody of ours is in the way, at what the driver says now."""
        with self._tickets as tickets:
            self._live = tickets.read_others(self.ticket.fields)
        self._note_turn()
        seen = self._ask_driver()
        if seen is not None:
            self._seen, self._pids = seen, _list_pids(seen)
            with self._tickets as tickets:
                if self.look(tickets):
                    return True
        self.describe()
        return False

    def _note_turn(self) -> None:
        """Have the driver asked at once when only others are in the way from now on, and when one of these has ended."""
        unused = [dict(gpu, busy=False) for gpu in self._seen]
        alone = self.ticket.number in choose_turn(self._live, unused)
        gone = {pid for pid in self._pids if not exists(pid)}
        self._pids -= gone
        if alone != self._alone or (alone and gone):
            self._alone, self._pause = alone, DRIVER_SECONDS
            self._due = time.monotonic() + (0.0 if alone else IDLE_SECONDS)

    def _ask_driver(self) -> Optional[Gpus]:
        """Return the GPUs as the driver tells them now, None where it is not its time or it does not answer."""
        now = time.monotonic()
        if self._reader is None:
            from remote_train.host.driver_reader import DriverReader  # noqa: PLC0415  (subprocess: who waits has time)

            self._reader = DriverReader()
        if now >= self._due:
            self._reader.ask()
            self._due = now + (self._pause if self._alone else IDLE_SECONDS)
            self._pause = min(2 * self._pause, LONGEST_SECONDS)
        return self._reader.hear(TICKET_SECONDS)

    def describe(self) -> None:
        """Note why it waits; not while the tickets are locked, since the name of an account may take long."""
        why = self._reader.why if self._reader is not None else None
        known = (self._live, self._seen, why)
        if known != self._told:
            self._told = known
            wait = describe_wait(self.ticket.fields, self._live, self._seen)
            self.wait = dict(wait, why=why or wait["why"])

    def _make_record(self, gpu: Dict[str, Any]) -> Dict[str, Any]:
        known = {key: value for key, value in gpu.items() if value is not None and key != "busy"}
        return dict(self._facts.get(gpu["uuid"], {}), **known)


def _list_pids(gpus: Gpus) -> Set[int]:
    """Return the processes that GPUs are busy for, as far as their ends can be seen."""
    return {user["pid"] for gpu in gpus for user in find_users(gpu)} if lists_our_pids() else set()


def take_ticket(root: str, request: Dict[str, Any]) -> Turn:
    """Return the ticket of a start, with its GPUs when they are free; raise GpusUnfit, GpusBusy or OSError."""
    plan, on_busy = request["plan"], request.get("on_busy", "queue")
    wish, seen = make_wish(plan["gpus"]), list_gpus()
    why = find_missing(wish, seen)
    if why is not None:
        raise GpusUnfit(why)
    with Tickets(root) as tickets:
        ticket = tickets.add(request["run"], request["attempt"], wish)
        turn = Turn(root, plan, mark_busy(seen), ticket)
        stays = False
        try:
            stays = turn.look(tickets, share=on_busy == "share") or on_busy == "queue"
        finally:
            if not stays:
                ticket.give_back()
    if not turn.gpus:
        turn.describe()
    if not stays:
        raise GpusBusy(render_users(turn.wait))
    return turn


def queue(operations: Operations, request: Dict[str, Any]) -> None:
    """Answer whether somebody who comes now would get the GPUs at once, and what they would wait for."""
    wish, root = make_wish(request["gpus"]), operations.root
    operations.aside(request["id"], lambda: look_at_queue(root, wish))


def look_at_queue(root: str, wish: Dict[str, Any]) -> Dict[str, Any]:
    """Return whether somebody who came now would get these GPUs at once (`free`), and what they would wait for."""
    from remote_train.host.driver_reader import read_now  # noqa: PLC0415  (subprocess: not at a start)

    seen, why = read_now()
    with Tickets(root) as tickets:
        live = tickets.read_live()
    number = max((ticket["number"] for ticket in live), default=0) + 1
    mine: Dict[str, Any] = {"number": number, "run": "", "gpus": [], "since": time.time(), **wish}
    wait = describe_wait(mine, [*live, mine], seen)
    wait["why"] = why or wait["why"]
    return {"free": number in choose_turn([*live, mine], seen), "queue": wait, "said": render_users(wait)}


def await_turn(folder: str, turn: Turn, is_asked: Callable[[], bool], rest: Callable[[float], None]) -> bool:
    """Wait until the GPUs are ours, and keep queue.json true meanwhile; False when a stop was asked for."""
    told: Optional[Dict[str, Any]] = turn.wait
    due = time.monotonic() + SIGN_SECONDS
    while not is_asked():
        try:
            if turn.look_again():
                return True
            if turn.wait != told or time.monotonic() >= due:
                note_wait(folder, turn)
                told, due = turn.wait, time.monotonic() + SIGN_SECONDS
        except OSError:
            told = None  # a full disk, or tickets that others look at for long: with the next look
        rest(TICKET_SECONDS)
    return False


def note_wait(folder: str, turn: Turn) -> None:
    """Write why an attempt waits, for whoever asks how it is."""
    write_record(os.path.join(folder, layout.QUEUE), turn.wait, sync=False)
