"""The laptop's half of the protocol over one connection: requests, streams, heartbeats, deadlines.

A thread pumps the channel: it decodes frames, answers requests' waiters, queues what streams brought, sends
heartbeats, and notices a peer that fell silent. Reconnecting is not done here: a lost session raises
ConnectionLost everywhere, and who follows a run opens a new one at the offset it holds.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.bootstrap import NOISE_LIMIT, Agent, make_bootstrap, make_unfit, parse_verdict
from remote_train.errors import AgentEnded, ConnectionLost, ProtocolError, RemoteTrainError
from remote_train.gate import Gate
from remote_train.host import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.transport import Channel, Transport

BOOTSTRAP_SECONDS = 30.0
REQUEST_SECONDS = 120.0
SEND_SECONDS = 60.0
"""How long a host that is heard may take not one frame (256 KiB) of ours."""
SLICE = 1 << 20
ACK_EVERY = 128 * 1024
ACK_SECONDS = 0.005


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


class Session:
    """One live connection to one host's agent."""

    def __init__(self, host: str, channel: Channel, rest: bytes = b"") -> None:
        self.host = host
        self._channel = channel
        self._decoder = wire.Decoder()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._gate = Gate(host)
        self._replies: dict[int, dict[str, Any] | Exception] = {}
        self._items: deque[Item] = deque()
        self._failure: Exception | None = None
        self._sending = threading.Lock()
        self._consumed = self._acked = 0
        self._heard = self._spoke = self._ack_time = time.monotonic()
        self._sending_since: float | None = None
        self._closed = False
        self._pump = threading.Thread(target=self._run, args=(rest,), name=f"session {host}", daemon=True)
        self._pump.start()

    def submit(self, op: str, **fields: Any) -> int:  # noqa: ANN401  (JSON values)
        """Send a request without waiting; return its id for `wait`."""
        number = next(self._numbers)
        with self._changed:
            self._gate.ask(number, op, fields)
        self._send(wire.make_control({"id": number, "op": op, **fields}))
        return number

    def wait(self, number: int, seconds: float | None = None) -> dict[str, Any]:
        """Return the answer to a request; raise what the host refused it with, or ConnectionLost.

        A host that is heard and does not answer within `seconds` (REQUEST_SECONDS) is a ProtocolError: our agent
        answers from the loop that its heartbeats come from.
        """
        seconds = REQUEST_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with self._changed:
            while number not in self._replies:
                self._check()
                left = deadline - time.monotonic()
                if left <= 0:
                    op = self._gate.find_op(number)
                    raise ProtocolError(f"{self.host} did not answer `{op}` within {seconds:.0f} s")
                self._changed.wait(min(left, 1.0))
            reply = self._replies.pop(number)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def request(self, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON values)
        """Send a request and return its answer."""
        return self.wait(self.submit(op, **fields))

    def new_stream(self) -> int:
        """Return a number for a stream that no other has on this connection."""
        return next(self._numbers)

    def upload(self, stream: int, pieces: Iterable[bytes]) -> None:
        """Send a stream's bytes and its END."""
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), wire.CHUNK):
                self._send(wire.make_frame(wire.DATA, stream, bytes(view[start : start + wire.CHUNK])))
        self._send(wire.make_end(stream, {}))

    def next_item(self, seconds: float) -> Item | None:
        """Return what came next on any stream, None when nothing did in time; raise ConnectionLost."""
        with self._changed:
            if not self._items:
                self._check()
                self._changed.wait(seconds)
            if self._items:
                item = self._pop()
            else:
                self._check()
                item = None
        self._acknowledge(item)
        return item

    def _pop(self) -> Item:
        item = self._items.popleft()
        if isinstance(item, Data):
            self._gate.release_data(item.payload)
        elif isinstance(item, Event):
            self._gate.release_event()
        return item

    def _acknowledge(self, item: Item | None) -> None:
        """Tell the host what was consumed: often enough to fill the link, seldom enough to cost nothing."""
        if isinstance(item, Data):
            self._consumed += len(item.payload)
        owed = self._consumed - self._acked
        if not owed:
            return
        now = time.monotonic()
        idle = not self._items
        if idle or (owed >= ACK_EVERY and now - self._ack_time >= ACK_SECONDS):
            self._acked, self._ack_time = self._consumed, now
            self._send(wire.make_ack(self._consumed))

    def _send(self, frame: bytes) -> None:
        with self._sending:
            self._check()
            self._send_now(frame)

    def _send_now(self, frame: bytes) -> None:
        self._sending_since = time.monotonic()
        try:
            self._channel.send(frame)
        finally:
            self._sending_since = None
        self._spoke = time.monotonic()

    def _check(self) -> None:
        self._check_sending()
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ConnectionLost(f"the connection to {self.host} was closed")

    def _check_sending(self) -> None:
        """End a connection whose other side takes nothing: whoever sends waits for ever, so the others look."""
        since = self._sending_since
        if since is not None and time.monotonic() - since > SEND_SECONDS and self._failure is None:
            self._fail(ProtocolError(f"{self.host} has taken nothing for {SEND_SECONDS:.0f} s"))

    def close(self) -> None:
        """Let go of the connection; never raises, the run goes on."""
        self._closed = True
        self._channel.close()
        with self._changed:
            self._changed.notify_all()

    def _run(self, rest: bytes) -> None:
        try:
            if rest:
                self._take(rest)
            while not self._closed:
                self._pump_once()
        except wire.FrameError as error:
            self._fail(ProtocolError(f"{self.host} said something that is not our protocol: {error}"))
        except (ConnectionLost, RemoteTrainError) as error:
            self._fail(error)
        finally:
            if not self._closed and self._failure is None:
                self._fail(ConnectionLost(f"reading from {self.host} broke off"))

    def _pump_once(self) -> None:
        data = self._channel.receive(1.0)
        now = time.monotonic()
        self._check_sending()
        if data == b"":
            raise AgentEnded(f"the connection to {self.host} ended")
        if data:
            self._heard = now
            self._take(data)
        elif now - self._heard > wire.SILENCE_SECONDS:
            silence = now - self._heard
            raise ConnectionLost(f"no word from {self.host} for {silence:.0f} s", silence=silence)
        if now - self._spoke >= wire.HEARTBEAT_SECONDS and self._sending.acquire(blocking=False):
            try:
                self._send_now(wire.make_frame(wire.HEARTBEAT, 0, b""))
            finally:
                self._sending.release()

    def _take(self, data: bytes) -> None:
        """Take what came a slice at a time: a window full of empty frames would be a gigabyte of objects."""
        for start in range(0, len(data), SLICE):
            frames = self._decoder.feed(data[start : start + SLICE] if len(data) > SLICE else data)
            with self._changed:
                for kind, stream, payload in frames:
                    self._sort(kind, stream, payload)
                if frames:
                    self._changed.notify_all()

    def _sort(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == wire.DATA:
            self._gate.admit_data(stream, payload)
            self._items.append(Data(stream, payload))
        elif kind == wire.END:
            summary = wire.parse_object(payload)
            self._gate.admit_end(stream, summary)
            self._items.append(End(stream, summary))
        elif kind == wire.CONTROL:
            message = wire.parse_object(payload)
            if "id" in message:
                number, answer = self._gate.admit_reply(message)
                self._replies[number] = answer
            else:
                self._gate.admit_event(message)
                self._items.append(Event(message["event"], message))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._channel.close()
        with self._changed:
            self._changed.notify_all()


def open_session(transport: Transport, agent: Agent, python: str | None) -> Session:
    """Run the bootstrap over a transport and return the session with the agent it brings up.

    Raises what the transport raises, HostUnfit in the host's own words, or ConnectionLost.
    """
    nonce = secrets.token_hex(8)
    channel = transport.open(make_bootstrap(agent.hash, nonce, python))
    try:
        rest = _await_agent(transport.name, channel, nonce, agent)
    except BaseException:
        channel.close()
        raise
    return Session(transport.name, channel, rest)


def _await_agent(host: str, channel: Channel, nonce: str, agent: Agent) -> bytes:
    """Skip the noise, bring the agent if it is missing, and return what followed READY."""
    held = b""
    uploaded = False
    deadline = time.monotonic() + BOOTSTRAP_SECONDS
    while time.monotonic() < deadline:
        data = channel.receive(1.0)
        if data is None:
            continue
        held += data
        verdict = parse_verdict(held, nonce)
        if verdict is None:
            if data == b"" or len(held) > NOISE_LIMIT:
                raise make_unfit(host, held[-4096:], channel.stderr_tail())
            continue
        if verdict.word == "READY":
            return verdict.rest
        if verdict.word != "NEED":
            raise make_unfit(host, b"", b"", verdict.word)
        if uploaded:
            raise ProtocolError(f"{host} asks for our agent again and again")
        _bring_agent(host, channel, agent)
        uploaded, held = True, verdict.rest
    raise make_unfit(host, held[-4096:], channel.stderr_tail() or b"nothing within 30 s of the login")


def _bring_agent(host: str, channel: Channel, agent: Agent) -> None:
    """Send our program; a host that does not take it is left."""
    watch = threading.Timer(BOOTSTRAP_SECONDS, channel.close)
    watch.daemon = True
    watch.start()
    try:
        channel.send(agent.upload())
    except ConnectionLost:
        if watch.is_alive():
            raise
        raise ProtocolError(f"{host} asked for our agent and does not take it") from None
    finally:
        watch.cancel()


def compress_pieces(pieces: Iterable[bytes]) -> Iterable[bytes]:
    """Yield a zlib stream of the pieces."""
    deflate = zlib.compressobj(1)
    for piece in pieces:
        packed = deflate.compress(piece)
        if packed:
            yield packed
    yield deflate.flush()
