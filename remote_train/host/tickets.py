"""The tickets of attempts that use GPUs, or wait for some: files that say who came when, wants what and has what.

A ticket lives while its supervisor holds its lock (`flock`): nothing is told by time. Looks and changes happen under
one lock, so of starts at the same instant one is first. The ticket of a supervisor that was killed keeps no place; but
GPUs it had been given stay taken while processes of its run live on.

Several machines may have one state root, in a home they share. So each has a folder for its tickets, named after its boot:
other machines' locks are not always seen, and their GPUs are no business of ours; what an earlier boot left is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from remote_train.host import layout, life, locks, system
from remote_train.host.attempt import read_state
from remote_train.host.durable import write_all

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

LOCK_SECONDS = 10.0
"""How long to wait for others that look at the tickets; each takes milliseconds."""
ROOM = 4096
"""Bytes that a ticket is written with."""
FORGET_SECONDS = 30 * 86400.0
"""After so long without a change another boot's folder is removed, by the first start after a boot."""
IDLE = (life.UNKNOWN, life.CREATED, *life.FINAL)
"""States of an attempt in which nothing of it uses a GPU, if it has no supervisor."""


class QueueBusy(OSError):
    """The tickets could not be looked at: somebody holds their lock for too long."""


class Ticket:
    """A ticket of ours, and the descriptor that holds its lock."""

    def __init__(self, path: str, fd: int, fields: Dict[str, Any]) -> None:
        self.path = path
        self.fd = fd
        self.fields = fields

    @property
    def number(self) -> int:
        """Return its place in the order of arrival."""
        return int(self.fields["number"])

    def write(self, gpus: List[str]) -> None:
        """Note which GPUs it has now; under the lock of the tickets. In place, since the lock is on this very file."""
        self.fields["gpus"] = gpus
        if gpus:
            self.fields["taken"] = time.time()
        # As long as it will ever be from the first time on: on a full disk the old words stand, and no cut ones.
        text = json.dumps(self.fields).encode("ascii")
        os.lseek(self.fd, 0, os.SEEK_SET)
        write_all(self.fd, text.ljust(ROOM * (1 + len(text) // ROOM)) + b"\n")
        os.ftruncate(self.fd, os.lseek(self.fd, 0, os.SEEK_CUR))

    def give_back(self) -> None:
        """Let go of GPUs and place. May be called again."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # whoever looks next removes it
                if locks.is_at(self.fd, self.path):  # else it is gone, and its number another's
                    os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1


class Tickets:
    """The tickets of a state root while they are locked: `with Tickets(root) as tickets`."""

    def __init__(self, root: str, seconds: float = LOCK_SECONDS) -> None:
        self.root = root
        boot = "".join(letter if letter.isalnum() else "-" for letter in system.boot_id())
        self.folder = os.path.join(root, layout.TICKETS, boot)
        self._seconds = seconds
        self._lock: Optional[int] = None

    def __enter__(self) -> Tickets:  # noqa: PYI034  (Self is younger than Python 3.8)
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, 0o700, exist_ok=True)
            _drop_old(os.path.dirname(self.folder))
        elif time.time() - os.stat(self.folder).st_mtime > FORGET_SECONDS / 30:
            os.utime(self.folder)  # others must not take it for one of long ago
        path = os.path.join(self.folder, layout.TICKETS_LOCK)
        self._lock = locks.take(path, fcntl.LOCK_EX, self._seconds)
        if self._lock is None:
            raise QueueBusy(11, "its GPU queue has been locked for too long", path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def read_live(self) -> List[Dict[str, Any]]:
        """Return the tickets that count, in order of arrival, and remove those that do not."""
        live = []
        for number in self._numbers():
            fields = self._read(number)
            if fields is not None:
                live.append(fields)
        return live

    def read_others(self, mine: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Return the tickets that count with this one of ours, as we know it, though its file may be lost."""
        others = [fields for fields in self.read_live() if fields["number"] != mine["number"]]
        return sorted([*others, mine], key=lambda fields: int(fields["number"]))

    def add(self, run: str, attempt: int, wish: Dict[str, Any]) -> Ticket:
        """Return a new ticket, the last in the order, with its lock held; see turns.make_wish."""
        number = max(self._numbers(), default=0) + 1
        path = os.path.join(self.folder, layout.TICKET % number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fields = {"format": layout.FORMAT, "number": number, "run": run, "attempt": attempt}
        ticket = Ticket(path, fd, dict(fields, **wish, since=time.time(), gpus=[]))
        try:
            locks.try_lock(fd)
            ticket.write([])
        except OSError:
            ticket.give_back()
            raise
        return ticket

    def _numbers(self) -> List[int]:
        return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit())

    def _read(self, number: int) -> Optional[Dict[str, Any]]:
        path = os.path.join(self.folder, layout.TICKET % number)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fields = _parse(os.read(fd, 65536))
            if locks.try_lock(fd, fcntl.LOCK_SH) and not (fields and self._is_used(fields)):
                with contextlib.suppress(FileNotFoundError):  # its owner has given it back meanwhile
                    os.unlink(path)
                return None
        finally:
            os.close(fd)
        return fields

    def _is_used(self, fields: Dict[str, Any]) -> bool:
        """Tell whether processes of a run without its supervisor may use the GPUs that it had been given."""
        if not fields["gpus"]:
            return False
        folder = layout.attempt_dir(self.root, fields["run"], fields["attempt"])
        return read_state(folder)["state"] not in IDLE


def _drop_old(above: str) -> None:
    """Remove what boots of long ago have left; what cannot be removed now can be with the next boot."""
    for folder in [os.path.join(above, name) for name in os.listdir(above)]:
        with contextlib.suppress(OSError):
            if time.time() - os.stat(folder).st_mtime > FORGET_SECONDS:
                for name in os.listdir(folder):
                    os.unlink(os.path.join(folder, name))
                os.rmdir(folder)


_FIELDS = (
    ("number", int),
    ("attempt", int),
    ("gpus", list),
    ("wanted", (int, list)),
    ("since", (int, float)),
)


def _parse(data: bytes) -> Optional[Dict[str, Any]]:
    """Return the fields of a ticket, None for one that was not written to its end."""
    try:
        fields = json.loads(data.decode("utf-8"))
        whole = layout.is_run_id(fields["run"]) and all(
            isinstance(fields[key], kind) for key, kind in _FIELDS
        )
        whole = whole and isinstance(fields.get("count", 1), int)
    except (ValueError, KeyError, TypeError):
        return None
    return fields if whole else None
