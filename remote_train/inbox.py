"""What streams have brought and nobody has taken yet: a common queue, and an own one for each stream that asked for it.

So one thread can follow a run and another pull a file on the same session, each at its own pace. How much waits here
is bounded by the host's credit, which the session's gate enforces for all queues together.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from remote_train.host import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.gate import Gate

ACK_SECONDS = 0.005
CONSUMED_EVERY = 1 << 20
"""Far less than what the host lets us hold: it never waits for more of this to be told."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream."""

    stream: int
    payload: bytes


@dataclass(frozen=True)
class End:
    """A stream is complete: its length and SHA-256."""

    stream: int
    summary: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something happened to a run."""

    kind: str
    facts: dict[str, Any]


Item = Data | End | Event


class Queue:
    """Items for one reader; the session's lock guards it."""

    def __init__(self, lock: threading.RLock) -> None:
        self.items: deque[Item] = deque()
        self.changed = threading.Condition(lock)


class Arrivals:
    """All queues of one session, and what the host is told of them; call it under the lock."""

    def __init__(self, lock: threading.RLock, gate: Gate) -> None:
        self.common = Queue(lock)
        self._lock = lock
        self._gate = gate
        self._own: dict[int, Queue] = {}
        self._received = 0
        self._consumed = [0, 0]
        self._told = (0, 0, 0)
        self._told_at = 0.0

    def owes(self) -> bool:
        """Tell whether something has come that the host was not told of."""
        return self._received > self._told[0]

    def claim_ack(self, now: float) -> bytes | None:
        """Return the ACK that is due, if one is; whoever gets it sends it.

        Receipt is told soon, since the host measures the link by it; what was consumed is told along with it, and
        by itself only when the host might wait for it.
        """
        totals = (self._received, self._consumed[0], self._consumed[1])
        due = self.owes() and now - self._told_at >= ACK_SECONDS
        if not due and sum(self._consumed) - sum(self._told[1:]) < CONSUMED_EVERY:
            return None
        self._told, self._told_at = totals, now
        return wire.make_ack(*totals)

    def open_queue(self, stream: int) -> Queue:
        """Return the queue that items of this stream go to from now on."""
        queue = self._own[stream] = Queue(self._lock)
        return queue

    def close_queue(self, stream: int) -> None:
        """Drop what a stream has brought and what it brings from now on."""
        queue = self._own.pop(stream, None)
        if queue is None:
            return
        while queue.items:
            self.pop(queue)
        self._gate.leave(stream)

    def put(self, item: Item) -> None:
        """Queue an item where its reader looks for it."""
        queue = self.common
        if isinstance(item, Data):
            self._received += len(item.payload)
        if not isinstance(item, Event):
            if self._gate.is_unwanted(item.stream):
                self._drop(item)
                return
            queue = self._own.get(item.stream, queue)
        queue.items.append(item)
        queue.changed.notify()

    def _drop(self, item: Data | End) -> None:
        if isinstance(item, Data):
            self._note_consumed(item)
        else:
            self._gate.close_stream(item.stream)

    def pop(self, queue: Queue) -> Item:
        """Take the next item of a queue that has one."""
        item = queue.items.popleft()
        if isinstance(item, Data):
            self._note_consumed(item)
        elif isinstance(item, Event):
            self._gate.release_event(item.facts)
        return item

    def _note_consumed(self, data: Data) -> None:
        self._gate.release_data(data.payload)
        self._consumed[self._gate.is_file(data.stream)] += len(data.payload)

    def wake_all(self) -> None:
        """Let every reader see that the connection has ended."""
        for queue in (self.common, *self._own.values()):
            queue.changed.notify_all()


class Inbox:
    """One stream's items, for one reader; a context manager that closes it."""

    def __init__(self, take: Callable[[float], Item | None], close: Callable[[], None]) -> None:
        self._take = take
        self._close = close

    def next_item(self, seconds: float) -> Item | None:
        """Return what the stream brought next, None when nothing came in time; raise ConnectionLost."""
        return self._take(seconds)

    def close(self) -> None:
        """Want no more of it: what still comes is acknowledged and dropped. Never raises; safe to call twice."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
