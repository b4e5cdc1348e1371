"""A TCP proxy that makes loopback a long line, and writes down what crossed it and when.

Each direction is delayed by half the round-trip time; there is no bandwidth limit, no loss, no slow start. The proxy
accepts TCP at once, and the handshake is modelled behind the client's back: with the connection made at t, the server
is connected to at t + 1.5 RTT (SYN, SYN-ACK, ACK), and what the client sends before t + RTT counts as sent then. So
the server's first byte is at the client at t + 2 RTT, as on a real line; only `connect` itself returns early, and a
client may already compute while a real one would still wait.

    python bench/delay_proxy.py --to PORT [--rtt-ms 100]

prints `{"port": N}` and then obeys JSON lines on stdin: `{"rtt_ms": 100}` for connections from then on, `{"take": 1}`
for the events since the last time. The end of stdin ends it. A benchmark uses it through `bench.line`; it is a process of
its own, so that it and what is measured do not wait for one interpreter lock.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPEN, UP_IN, UP_OUT, DOWN_IN, DOWN_OUT = "open", "up in", "up out", "down in", "down out"
PIECE = 256 * 1024
# What is under way in one direction at most: a full 64 MiB window on a line of 100 ms fits several times.
CAPACITY = 256 << 20
EVENTS_KEPT = 200_000


class Event(NamedTuple):
    """Something at the proxy: `at` is time.monotonic(), the same clock in every process of this machine.

    "up in" and "down out" happen at the client's end of the line, "up out" and "down in" at the server's.
    """

    at: float
    connection: int
    kind: str
    size: int


class _Journal:
    """The events, up to a number that no launch reaches; a large transfer is not written down to its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.connections = 0

    def add(self, at: float, connection: int, kind: str, size: int = 0) -> None:
        if len(self.events) < EVENTS_KEPT:
            self.events.append(Event(at, connection, kind, size))

    def take(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken


class _Direction:
    """One direction of one connection: pieces that wait for their time, then for the socket."""

    def __init__(self, source: socket.socket, names: tuple[str, str], delay: float, floor: float) -> None:
        self.source = source
        self.sink: socket.socket | None = None
        self.names = names
        self.delay = delay
        self.floor = floor
        """Nothing counts as sent before this time."""
        self.waiting: collections.deque[tuple[float, memoryview]] = collections.deque()
        self.bytes = 0
        self.ended = False
        self.done = False

    def reads(self) -> bool:
        return not self.ended and self.bytes < CAPACITY

    def due(self) -> float | None:
        """When the next piece leaves; None while there is none or no socket yet."""
        return self.waiting[0][0] if self.waiting and self.sink is not None else None

    def is_late(self, now: float) -> bool:
        due = self.due()
        return due is not None and due <= now

    def sink_fileno(self) -> int:
        return -1 if self.sink is None else self.sink.fileno()

    def read(self) -> int:
        """Take what has come; an empty piece stands for the end."""
        data = self.source.recv(PIECE)
        self.ended = not data
        self.waiting.append((max(time.monotonic(), self.floor) + self.delay, memoryview(data)))
        self.bytes += len(data)
        return len(data)

    def write(self) -> int | None:
        """Send what is due of the first piece; return its last part's size once all of it has left."""
        due, data = self.waiting[0]
        if self.sink is None:
            return None
        if not data:
            self.done = True
            self.waiting.popleft()
            self.sink.shutdown(socket.SHUT_WR)
            return 0
        sent = self.sink.send(data)
        self.bytes -= sent
        if sent < len(data):
            self.waiting[0] = (due, data[sent:])
            return None
        self.waiting.popleft()
        return sent


class _Line:
    """One proxied connection."""

    def __init__(self, client: socket.socket, to: int, rtt: float, journal: _Journal) -> None:
        journal.connections += 1
        self.number = journal.connections
        self.journal = journal
        self.to = to
        now = time.monotonic()
        self.dials_at: float | None = now + 1.5 * rtt
        self.client = client
        self.rtt = rtt
        self.up = _Direction(client, (UP_IN, UP_OUT), rtt / 2, now + rtt)
        self.directions = [self.up]
        _tune(client)
        journal.add(now, self.number, OPEN)

    def dial(self) -> None:
        """Connect to the server: the handshake would be over now."""
        self.dials_at = None
        server = socket.create_connection(("127.0.0.1", self.to))
        _tune(server)
        self.up.sink = server
        down = _Direction(server, (DOWN_IN, DOWN_OUT), self.rtt / 2, 0.0)
        down.sink = self.client
        self.directions.append(down)

    def read(self, direction: _Direction) -> None:
        size = direction.read()
        self.journal.add(time.monotonic(), self.number, direction.names[0], size)

    def write(self, direction: _Direction) -> None:
        with contextlib.suppress(BlockingIOError):
            at = time.monotonic()  # before: whom it wakes may look at the clock first
            size = direction.write()
            if size is not None:
                self.journal.add(at, self.number, direction.names[1], size)

    def over(self) -> bool:
        return len(self.directions) == 2 and all(direction.done for direction in self.directions)

    def close(self) -> None:
        self.client.close()
        if self.up.sink is not None:
            self.up.sink.close()
        self.directions = []


def _tune(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Server:
    """The loop. `select`, because its timeout is exact to microseconds; epoll's is rounded up to milliseconds."""

    def __init__(self, to: int, rtt: float) -> None:
        self.to = to
        self.rtt = rtt
        self.journal = _Journal()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self.listener.getsockname()[1])
        self.lines: list[_Line] = []
        self.typed = b""
        self.serving = True

    def run(self) -> None:
        while self.serving:
            self._turn()
        for line in self.lines:
            line.close()

    def _turn(self) -> None:
        now = time.monotonic()
        pairs = [(line, direction) for line in self.lines for direction in line.directions]
        reading = {pair[1].source.fileno(): pair for pair in pairs if pair[1].reads()}
        late = {pair[1].sink_fileno(): pair for pair in pairs if pair[1].is_late(now)}
        own = (self.listener.fileno(), sys.stdin.fileno())
        readable, writable, _ = select.select([*own, *reading], [*late], [], self._pause(now))
        for place in writable:
            self._guard(*late[place], _Line.write)
        for place in readable:
            if place in reading:
                self._guard(*reading[place], _Line.read)
        if own[0] in readable:
            self.lines.append(_Line(self.listener.accept()[0], self.to, self.rtt, self.journal))
        if own[1] in readable:
            self._obey()
        self._advance(time.monotonic())

    def _pause(self, now: float) -> float | None:
        """How long nothing is to be done unless a socket says so; a piece that is late waits for its socket."""
        times = [line.dials_at for line in self.lines if line.dials_at is not None]
        dues = [direction.due() for line in self.lines for direction in line.directions]
        times += [due for due in dues if due is not None and due > now]
        return max(0.0, min(times) - now) if times else None

    def _advance(self, now: float) -> None:
        """Dial and send what is due, without another look at the sockets; drop what is over."""
        for line in self.lines:
            if line.dials_at is not None and line.dials_at <= now:
                self._guard(line, line.up, lambda line, _: line.dial())
            for direction in list(line.directions):
                if direction.is_late(now):
                    self._guard(line, direction, _Line.write)
        for line in self.lines:
            if line.over():
                line.close()
        self.lines = [line for line in self.lines if line.directions]

    @staticmethod
    def _guard(line: _Line, direction: _Direction, act: Callable[[_Line, _Direction], None]) -> None:
        """A connection that breaks is closed at both ends; the others go on."""
        if direction not in line.directions:
            return
        try:
            act(line, direction)
        except BlockingIOError:
            return
        except OSError:
            line.close()

    def _obey(self) -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        self.serving = bool(data)
        *lines, self.typed = (self.typed + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            self.rtt = order.get("rtt_ms", self.rtt * 1e3) / 1e3
            say({"events": self.journal.take()} if "take" in order else {"rtt_ms": self.rtt * 1e3})


def say(answer: dict[str, object]) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="Delay TCP to a loopback port.")
    parser.add_argument("--to", type=int, required=True, help="port of the server on 127.0.0.1")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round-trip time, milliseconds")
    options = parser.parse_args(arguments)
    server = _Server(options.to, options.rtt_ms / 1e3)
    say({"port": server.port})
    server.run()


if __name__ == "__main__":
    main()
