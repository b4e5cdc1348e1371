"""The line between laptop and host: a delay proxy as a benchmark holds it, and the round trips that crossed it."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from bench import delay_proxy
from bench.delay_proxy import DOWN_IN, DOWN_OUT, OPEN, UP_IN, UP_OUT, Event

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

PROGRAM = delay_proxy.__file__
PATIENCE = 20.0


class DelayProxy:
    """A proxy in a process of its own, in front of a loopback port; a context manager."""

    def __init__(self, to: int) -> None:
        argv = [sys.executable, "-I", str(PROGRAM), "--to", str(to)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(str(self._read()["port"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=PATIENCE)

    def set_rtt(self, milliseconds: float) -> None:
        """Give connections from now on this round-trip time."""
        self._order({"rtt_ms": milliseconds})

    def take_events(self) -> list[Event]:
        """Return what has happened since the last time."""
        answer = self._order({"take": 1})
        events = answer["events"]
        assert isinstance(events, list)
        return [Event(*event) for event in events]

    def _order(self, order: dict[str, object]) -> dict[str, object]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the delay proxy has ended; what it said is above")
        answer: dict[str, object] = json.loads(line)
        return answer


def count_round_trips(events: Iterable[Event], until: float) -> dict[int, float]:
    """Return for each connection the round trips, TCP's own included, that led to what the client has at `until`.

    Counted is the longest chain of cause and effect: what an end sends may answer everything delivered to it
    before, and is half a round trip later than that. The last link of the chain is a delivery to the client. It is an
    upper bound (an end may have sent of its own accord), and means nothing at a round-trip time near 0. Connections that
    were opened before the events begin are left out.
    """
    lines: dict[int, _Chain] = {}
    for event in sorted(events, key=lambda event: event.at):
        if event.kind == OPEN:
            lines[event.connection] = _Chain()
        elif event.at <= until and event.connection in lines:
            lines[event.connection].take(event.kind)
    return {number: chain.client / 2 for number, chain in lines.items()}


class _Chain:
    """How many half round trips each end of one connection has behind it."""

    def __init__(self) -> None:
        self.client = 2  # SYN and SYN-ACK
        self.server = 3  # and the ACK
        self.up: collections.deque[int] = collections.deque()
        self.down: collections.deque[int] = collections.deque()

    def take(self, kind: str) -> None:
        """Follow one event."""
        if kind == UP_IN:
            self.up.append(self.client + 1)
        elif kind == DOWN_IN:
            self.down.append(self.server + 1)
        elif kind == UP_OUT:
            self.server = max(self.server, self.up.popleft())
        elif kind == DOWN_OUT:
            self.client = max(self.client, self.down.popleft())
