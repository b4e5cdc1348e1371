"""What `doctor` asks of a host beyond its facts: its surroundings and users, its clock, and what the link to it carries."""

from __future__ import annotations

import os
import shutil
import time

from remote_train.host import surroundings
from remote_train.host.commands import finish_commands, start_command
from remote_train.host.gpu_users import describe_process
from remote_train.host.wire import CHUNK, DATA, make_end, make_frame

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple

    from remote_train.host.operations import Operations

    Marks = List[Tuple[float, int]]

MOST_PIDS = 256
BUS_SECONDS = 3.0
LONGEST_BURST = 10.0
LARGEST_BURST = 256 << 20
MOST_MARKS = 4096
_BLOCK = 1 << 18
_ASK_LOGIND = (
    "busctl",
    "get-property",
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "KillUserProcesses",
)


def examine(operations: Operations, request: Dict[str, Any]) -> None:
    """Look at the machine around us, and at who the processes named are."""
    pids = [int(pid) for pid in request["pids"]][:MOST_PIDS]
    operations.aside(request["id"], lambda: _look(pids))


def _look(pids: Sequence[int]) -> Dict[str, Any]:
    import pwd  # noqa: PLC0415  (only here)

    try:
        account = pwd.getpwuid(os.getuid())
        name, shell = account.pw_name, account.pw_shell
    except KeyError:
        name, shell = str(os.getuid()), ""
    around = surroundings.read_surroundings("/")
    return {
        "surroundings": around,
        "memory": surroundings.read_memory("/"),
        "load": os.getloadavg()[0],
        "account": name[:256],
        "shell": shell[:256],
        "kills": _ask_logind() if around["systemd"] else None,
        "lingers": surroundings.lingers("/", name),
        "users": {str(pid): describe_process(pid) for pid in pids},
    }


def _ask_logind() -> Optional[bool]:
    """Return whether logind ends an account's processes when it logs out: its own word, else its files'."""
    if shutil.which(_ASK_LOGIND[0]) is not None:
        answer = finish_commands([start_command(list(_ASK_LOGIND))], BUS_SECONDS)[0].output.split()
        if answer[:1] == ["b"] and len(answer) == 2:
            return answer[1] == "true"
    return surroundings.read_kill_setting("/")


def tell_time(_operations: Operations, _request: Dict[str, Any]) -> Dict[str, Any]:
    """Return the host's clock, at once: its way here and back is a round trip of the link."""
    return {"time": time.time()}


def burst(operations: Operations, request: Dict[str, Any]) -> Dict[str, Any]:
    """Send bytes that mean nothing for some seconds, to see what the link carries down."""
    seconds, count = float(request["seconds"]), int(request["bytes"])
    if not 0.0 < seconds <= LONGEST_BURST or not 0 < count <= LARGEST_BURST:
        raise ValueError("a burst of %r s and %r bytes" % (seconds, count))
    operations.connection.add_source(Burst(int(request["stream"]), seconds, count))
    return {}


class Burst:
    """A source of bytes that no compression makes fewer, for so long or so many."""

    bulk = True

    def __init__(self, stream: int, seconds: float, count: int) -> None:
        self.stream = stream
        self.due = 0.0
        self.done = False
        self._left = count
        self._sent = 0
        self._until = time.monotonic() + seconds
        self._block = os.urandom(_BLOCK)

    def produce(self, limit: int) -> bytes:
        """Return the next frame."""
        if self._left <= 0 or time.monotonic() >= self._until:
            self.done = True
            return make_end(self.stream, {"length": self._sent})
        size = min(limit, self._left, CHUNK, _BLOCK)
        self._left -= size
        self._sent += size
        return make_frame(DATA, self.stream, self._block[:size])

    def wants_turn(self) -> bool:
        """Tell whether there is more."""
        return not self.done

    def close(self) -> None:
        """Nothing is open."""


def sink(operations: Operations, request: Dict[str, Any]) -> None:
    """Take bytes that mean nothing, to see what the link carries up; the answer comes after their END."""
    operations.uploads[request["stream"]] = Sink(operations, request)


class Sink:
    """What arrives is counted and dropped."""

    def __init__(self, operations: Operations, request: Dict[str, Any]) -> None:
        self.operations = operations
        self.id = request["id"]
        self.stream = request["stream"]
        self.marks: Marks = []
        self.count = 0

    def data(self, payload: bytes) -> None:
        """Count a piece."""
        self.count += len(payload)
        self.marks.append((time.monotonic(), self.count))
        if len(self.marks) > MOST_MARKS:
            del self.marks[1::2]

    def end(self) -> None:
        """Say how much came, and how fast."""
        del self.operations.uploads[self.stream]
        answer = {"bytes": self.count, "rate": find_rate(self.marks)}
        self.operations.connection.send({"id": self.id, "ok": answer})

    def abandon(self) -> None:
        """Nothing was kept."""


def find_rate(marks: Sequence[Tuple[float, int]]) -> Optional[float]:
    """Return bytes/s from moments and the bytes that had come by then; None for too few of them.

    Over the second half of the time, since a connection starts slowly; over all of it when little came in that half.
    """
    if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
        return None
    begin, end = marks[0], marks[-1]
    half = next(mark for mark in marks if mark[0] >= (begin[0] + end[0]) / 2)
    if end[0] > half[0] and (end[1] - half[1]) * 4 >= end[1] - begin[1]:
        begin = half
    return (end[1] - begin[1]) / (end[0] - begin[0])
