"""A TCP proxy that breaks connections at exact bytes, in a thread of its own; nobody has to be root.

    with ChaosProxy(sshd.port) as proxy:
        proxy.program = lambda number: Program(cuts=(Cut(DOWN, 40_000, RST),), slice=1)   # the number-th connection
        ... connect to 127.0.0.1:proxy.port ...
        proxy.break_all(FIN)            # while it runs: every connection that lives
        proxy.silence(UP)               # nothing from the laptop gets through any more, sockets stay open
        proxy.heal()

UP is from who connected to the server, DOWN the other way. A cut at byte k lets exactly k bytes of its direction
through. `proxy.lines` holds every connection with the bytes that passed, and with `record=True` the bytes themselves.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UP, DOWN = "up", "down"
FIN, RST, BLACKHOLE, HALF_BLACKHOLE, CORRUPT = "fin", "rst", "blackhole", "half-blackhole", "corrupt"
PIECE = 64 * 1024
HELD = 1 << 20  # bytes under way in one direction, at most
TURN = 0.2


@dataclass(frozen=True)
class Cut:
    """What happens once `at` bytes have passed in a direction.

    FIN and RST end the connection at both ends; BLACKHOLE stops both directions and HALF_BLACKHOLE this one, with every
    socket open; CORRUPT inverts the byte at this place and lets the rest pass.
    """

    direction: str
    at: int
    kind: str = FIN


@dataclass(frozen=True)
class Program:
    """How one connection is treated."""

    cuts: tuple[Cut, ...] = ()
    delay: float = 0.0
    """Seconds each way."""
    rate: float | None = None
    """Bytes per second each way."""
    slice: int | None = None
    """Bytes of one write at most."""


class _Flow:
    """One direction of one connection."""

    def __init__(self, name: str, source: socket.socket, sink: socket.socket, program: Program) -> None:
        self.name = name
        self.source = source
        self.sink = sink
        self.program = program
        self.cuts = deque(sorted((cut for cut in program.cuts if cut.direction == name), key=lambda c: c.at))
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self.passed = 0
        self.free_at = 0.0
        self.ended = self.done = self.silent = False

    def wants_read(self) -> bool:
        return not (self.ended or self.silent) and self.held < HELD

    def due(self) -> float | None:
        if not self.waiting or self.silent:
            return None
        return max(self.waiting[0][0], self.free_at)

    def read(self, now: float) -> None:
        data = self.source.recv(PIECE)
        self.ended = not data
        self.waiting.append((now + self.program.delay, data))
        self.held += len(data)

    def write(self, now: float) -> tuple[bytes, Cut | None]:
        """Let through what may pass now; return it, and the cut that it reached."""
        due, data = self.waiting.popleft()
        if not data:
            self.done = True
            self.sink.shutdown(socket.SHUT_WR)
            return b"", None
        cut = self.cuts[0] if self.cuts else None
        allowed = len(data) if cut is None else max(0, cut.at - self.passed)
        if cut is not None and allowed == 0:
            self.waiting.appendleft((due, data))
            return b"", cut
        piece = data[: min(allowed, self.program.slice or PIECE)]
        with contextlib.suppress(BlockingIOError):
            piece = piece[: self.sink.send(piece)]
            self.held -= len(piece)
            self.passed += len(piece)
            data = data[len(piece) :]
            if self.program.rate:
                self.free_at = now + len(piece) / self.program.rate
        if data:
            self.waiting.appendleft((due, data))
        return piece, cut if cut is not None and self.passed >= cut.at else None

    def corrupt(self) -> None:
        """Invert the first bit of what comes next."""
        self.cuts.popleft()
        due, data = self.waiting.popleft() if self.waiting else (0.0, b"")
        if data:
            self.waiting.appendleft((due, bytes([data[0] ^ 0x80]) + data[1:]))
        else:  # nothing is here yet: the byte that comes
            self.cuts.appendleft(Cut(self.name, self.passed, CORRUPT))
            if due:
                self.waiting.appendleft((due, data))


@dataclass
class Line:
    """One connection through the proxy."""

    number: int
    flows: dict[str, _Flow]
    broken: str | None = None
    """How it was broken, if it was."""
    record: list[tuple[str, bytes]] | None = None
    closed: bool = False
    opened: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> dict[str, int]:
        """Bytes that have passed, by direction."""
        return {name: flow.passed for name, flow in self.flows.items()}

    def said(self, direction: str) -> bytes:
        """What has passed in a direction, when it is recorded."""
        return b"".join(data for name, data in self.record or () if name == direction)

    def sockets(self) -> list[socket.socket]:
        return [flow.source for flow in self.flows.values()]

    def end(self, kind: str) -> None:
        """Break the line at both ends."""
        self.broken = self.broken or kind
        if kind == BLACKHOLE:
            for flow in self.flows.values():
                flow.silent = True
            return
        for end in self.sockets():
            with contextlib.suppress(OSError):
                if kind == RST:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:  # unread bytes would turn the FIN into an RST
                    end.shutdown(socket.SHUT_WR)
                    while end.recv(PIECE):
                        pass
        self.close()

    def close(self) -> None:
        """Close both sockets."""
        self.closed = True
        for end in self.sockets():
            end.close()


class ChaosProxy:
    """A listening port of loopback in front of another one."""

    def __init__(self, to: int, *, record: bool = False) -> None:
        self.to = to
        self.program: Callable[[int], Program] = lambda _number: Program()
        self.lines: list[Line] = []
        self._recording = record
        self._refusing = False
        self._silent: set[str] = set()
        self._lock = threading.RLock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._wake, self._waking = socket.socketpair()
        self._serving = True
        self._thread = threading.Thread(target=self._serve, name="chaos proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving = False
        self._nudge()
        self._thread.join(10.0)
        for line in self.lines:
            line.close()
        for end in (self._listener, self._wake, self._waking):
            end.close()

    def live(self) -> list[Line]:
        """Return the connections that are neither closed nor broken."""
        with self._lock:
            return [line for line in self.lines if not line.closed and line.broken is None]

    def break_all(self, kind: str) -> int:
        """Break every connection that lives (FIN, RST, BLACKHOLE); return how many there were."""
        with self._changing():
            lines = self.live()
            for line in lines:
                line.end(kind)
            return len(lines)

    def silence(self, *directions: str) -> None:
        """Let nothing pass in these directions, on connections to come too, until `heal`; sockets stay open."""
        with self._changing():
            self._silent = set(directions)
            for line in self.live():
                self._hush(line)

    def hush_live(self, *directions: str) -> None:
        """Let nothing pass in these directions any more on the connections that live; new ones are sound."""
        with self._changing():
            for line in self.live():
                line.broken = BLACKHOLE if len(directions) > 1 else HALF_BLACKHOLE
                for name in directions:
                    line.flows[name].silent = True

    def refuse(self) -> None:
        """Reset every new connection, as a port where nobody listens does, until `heal`."""
        with self._changing():
            self._refusing = True

    def heal(self) -> None:
        """Undo `silence` and `refuse`; what was under way goes on where it stood, lines that a cut broke stay broken."""
        with self._changing():
            self._refusing = False
            self._silent = set()
            for line in self.live():
                self._hush(line)

    def retarget(self, port: int) -> None:
        """Lead new connections to another port."""
        self.to = port

    def _hush(self, line: Line) -> None:
        for name, flow in line.flows.items():
            flow.silent = name in self._silent

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
        self._nudge()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._waking.send(b".")

    def _serve(self) -> None:
        while self._serving:
            with self._lock:
                pairs = [
                    (line, flow) for line in self.lines if not line.closed for flow in line.flows.values()
                ]
            now = time.monotonic()
            reading = {flow.source: (line, flow) for line, flow in pairs if flow.wants_read()}
            late = {flow.sink: (line, flow) for line, flow in pairs if (flow.due() or now + 1) <= now}
            dues = [due for _, flow in pairs if (due := flow.due()) is not None and due > now]
            pause = min([TURN, *(due - now for due in dues)])
            try:
                ready = select.select([self._listener, self._wake, *reading], late, [], pause)
            except (OSError, ValueError):  # a line was closed meanwhile
                continue
            with self._lock:
                self._turn(ready[0], ready[1], reading, late)

    def _turn(
        self,
        readable: list[socket.socket],
        writable: list[socket.socket],
        reading: dict[socket.socket, tuple[Line, _Flow]],
        late: dict[socket.socket, tuple[Line, _Flow]],
    ) -> None:
        now = time.monotonic()
        if self._wake in readable:
            self._wake.recv(4096)
        if self._listener in readable:
            self._accept()
        for end in writable:
            self._guard(*late[end], lambda line, flow: self._pass_on(line, flow, now))
        for end in readable:
            if end in reading:
                self._guard(*reading[end], lambda _line, flow: flow.read(now))

    def _guard(self, line: Line, flow: _Flow, act: Callable[[Line, _Flow], None]) -> None:
        if line.closed or flow.silent:
            return
        try:
            act(line, flow)
            if all(each.done for each in line.flows.values()):
                line.close()
        except BlockingIOError:
            return
        except OSError:
            line.end(RST)

    def _pass_on(self, line: Line, flow: _Flow, now: float) -> None:
        data, cut = flow.write(now)
        if data and line.record is not None:
            line.record.append((flow.name, data))
        if cut is None:
            return
        if cut.kind == CORRUPT:
            flow.corrupt()
        elif cut.kind == HALF_BLACKHOLE:
            line.broken, flow.silent = cut.kind, True
        else:
            line.end(cut.kind)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        number = len(self.lines)
        program = self.program(number)
        try:
            server = socket.create_connection(("127.0.0.1", self.to), 5.0)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flows = {UP: _Flow(UP, client, server, program), DOWN: _Flow(DOWN, server, client, program)}
        line = Line(number, flows, record=[] if self._recording else None)
        self._hush(line)
        self.lines.append(line)
