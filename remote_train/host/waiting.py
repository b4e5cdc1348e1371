"""Wait for GPUs: the agent takes a ticket at the start, the supervisor waits with it for as long as it takes.

A look at the tickets costs a millisecond and comes twice a second. The driver is asked only when no run of ours is in
the way any more, every few seconds then, and in a process of its own, for it can hang.
"""

from __future__ import annotations

import os
import time

from remote_train.host import layout
from remote_train.host.durable import write_record
from remote_train.host.gpu_users import describe_wait, render_users
from remote_train.host.gpus import choose_gpus, list_gpus
from remote_train.host.tickets import Tickets
from remote_train.host.turns import choose_turn, is_foreign_busy

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from remote_train.host.operations import Operations
    from remote_train.host.tickets import Ticket

    Gpus = List[Dict[str, Any]]

TICKET_SECONDS = 0.5
DRIVER_SECONDS = 3.0
"""Between two questions to the driver while somebody else uses a GPU that would be ours."""
IDLE_SECONDS = 60.0
"""The same while runs of ours are in the way: who else is there, for those who ask."""
READER_SECONDS = 5.0


class GpusUnfit(Exception):
    """This host does not have the GPUs that are wanted."""


class GpusBusy(Exception):
    """The GPUs are in use, and the start does not want to wait."""


class Turn:
    """One attempt's ticket and what it has led to: `gpus` are those it was given, none while it waits."""

    def __init__(self, root: str, plan: Dict[str, Any], seen: Gpus, ticket: Ticket) -> None:
        self._root = root
        self._facts = {gpu["uuid"]: gpu for gpu in plan.get("gpu_facts", [])}
        self._seen = seen
        self._asked = time.monotonic()
        self._alone = False
        self.ticket = ticket
        self.gpus: Gpus = []
        self.wait: Dict[str, Any] = {}
        """Why it waits, see gpu_users.describe_wait."""

    def look(self, tickets: Tickets) -> bool:
        """Take the GPUs if it is our turn, by what was seen of them last; the tickets are locked."""
        live = tickets.read_others(self.ticket.fields)
        chosen = choose_turn(live, self._seen).get(self.ticket.number)
        if chosen is None:
            self.wait = describe_wait(self.ticket.fields, live, self._seen)
            return False
        self.ticket.write(chosen)
        self.gpus = [self._make_record(gpu) for gpu in self._seen if gpu["uuid"] in chosen]
        return True

    def look_again(self) -> bool:
        """Look at the tickets, and, where nobody of ours is in the way, at what the driver says now."""
        with Tickets(self._root) as tickets:
            alone = self._look_by_tickets(tickets)
        if alone and not self._alone:
            self._asked = -DRIVER_SECONDS  # it has just become our turn
        self._alone = alone
        now = time.monotonic()
        if now - self._asked < (DRIVER_SECONDS if alone else IDLE_SECONDS):
            return False
        self._asked = now
        seen = read_driver()
        if seen is None:
            return False
        self._seen = seen
        with Tickets(self._root) as tickets:
            return self.look(tickets)

    def _look_by_tickets(self, tickets: Tickets) -> bool:
        """Note where we stand; tell whether only the driver is left to ask."""
        live = tickets.read_others(self.ticket.fields)
        self.wait = describe_wait(self.ticket.fields, live, self._seen)
        return self.ticket.number in choose_turn(live, [dict(gpu, busy=False) for gpu in self._seen])

    def _make_record(self, gpu: Dict[str, Any]) -> Dict[str, Any]:
        known = {key: value for key, value in gpu.items() if value is not None and key != "busy"}
        return dict(self._facts.get(gpu["uuid"], {}), **known)


def mark_busy(gpus: Gpus) -> Gpus:
    """Return the GPUs, each with whether somebody uses it."""
    return [dict(gpu, busy=is_foreign_busy(gpu)) for gpu in gpus]


def read_driver() -> Optional[Gpus]:
    """Return the GPUs as the driver tells them now, None when it does not answer."""
    from remote_train.host.commands import finish_commands  # noqa: PLC0415  (subprocess: a start without waiting)
    from remote_train.host.facts import parse_gpus, start_gpu_reader  # noqa: PLC0415  (as above)

    answer = parse_gpus(finish_commands([start_gpu_reader()], READER_SECONDS)[0])
    return mark_busy(answer["gpus"]) or None


def take_ticket(root: str, request: Dict[str, Any]) -> Turn:
    """Return the ticket of a start, with its GPUs when they are free; raise GpusUnfit, GpusBusy or OSError."""
    plan = request["plan"]
    wanted = plan["gpus"].get("ids") or plan["gpus"]["count"]
    seen = list_gpus()
    why = choose_gpus(seen, wanted)
    if isinstance(why, str):
        raise GpusUnfit(why)
    with Tickets(root) as tickets:
        ticket = tickets.add(request["run"], request["attempt"], wanted)
        turn = Turn(root, plan, mark_busy(seen), ticket)
        stays = False
        try:
            stays = turn.look(tickets) or request.get("on_busy", "queue") == "queue"
        finally:
            if not stays:
                ticket.give_back()
    if not stays:
        raise GpusBusy(render_users(turn.wait))
    return turn


def queue(operations: Operations, request: Dict[str, Any]) -> None:
    """Answer whether somebody who comes now would get the GPUs at once, and what they would wait for."""
    gpus, root = request["gpus"], operations.root
    wanted = [str(name) for name in gpus["ids"]] if gpus.get("ids") else int(gpus["count"])
    operations.aside(request["id"], lambda: look_at_queue(root, wanted))


def look_at_queue(root: str, wanted: Any) -> Dict[str, Any]:  # noqa: ANN401  (JSON)
    """Return whether somebody who came now would get these GPUs at once (`free`), and what they would wait for."""
    seen = read_driver() or []
    with Tickets(root) as tickets:
        live = tickets.read_live()
    number = max((ticket["number"] for ticket in live), default=0) + 1
    mine: Dict[str, Any] = {"number": number, "run": "", "wanted": wanted, "gpus": [], "since": time.time()}
    wait = describe_wait(mine, [*live, mine], seen)
    return {"free": number in choose_turn([*live, mine], seen), "queue": wait, "said": render_users(wait)}


def await_turn(folder: str, turn: Turn, is_asked: Callable[[], bool], rest: Callable[[float], None]) -> bool:
    """Wait until the GPUs are ours, and keep queue.json true meanwhile; False when a stop was asked for."""
    told: Optional[Dict[str, Any]] = turn.wait
    while not is_asked():
        try:
            if turn.look_again():
                return True
            if turn.wait != told:
                note_wait(folder, turn)
                told = turn.wait
        except OSError:
            told = None  # a full disk, or tickets that others look at for long: with the next look
        rest(TICKET_SECONDS)
    return False


def note_wait(folder: str, turn: Turn) -> None:
    """Write why an attempt waits, for whoever asks how it is."""
    write_record(os.path.join(folder, layout.QUEUE), turn.wait, sync=False)
