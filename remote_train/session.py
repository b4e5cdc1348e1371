"""The laptop's half of the protocol over one connection: requests, streams, heartbeats, deadlines.

A thread pumps the channel: it decodes frames, answers requests' waiters, queues what streams brought, sends
heartbeats, and notices a peer that fell silent. Reconnecting is not done here: a lost session raises
ConnectionLost everywhere, and who follows a run opens a new one at the offset it holds.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

from remote_train.bootstrap import (
    NOISE_KEPT,
    NOISE_LIMIT,
    Agent,
    make_bootstrap,
    make_endless,
    make_unfit,
    make_waiting,
    parse_verdict,
)
from remote_train.errors import AgentEnded, ConnectionLost, ProtocolError, RemoteTrainError
from remote_train.gate import Gate
from remote_train.host import wire
from remote_train.inbox import ACK_SECONDS, Arrivals, Data, End, Event, Inbox, Item, Queue
from remote_train.uplink import Uplink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remote_train.transport import Channel, Transport

__all__ = ["Data", "End", "Event", "Inbox", "Item", "Session", "compress_pieces", "open_session"]

BOOTSTRAP_SECONDS = 30.0
REQUEST_SECONDS = 120.0
SEND_SECONDS = 60.0
"""How long a host that is heard may take not one frame (256 KiB) of ours."""
SLICE = 1 << 20


class Session:
    """One live connection to one host's agent."""

    def __init__(self, host: str, channel: Channel, rest: bytes = b"", noise: int = 0) -> None:
        self.host = host
        self.noise = noise
        """Bytes that the host's rc files printed before our program spoke."""
        self._channel = channel
        self._decoder = wire.Decoder()
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._replied = threading.Condition(self._lock)
        self._gate = Gate(host)
        self._replies: dict[int, dict[str, Any] | Exception] = {}
        self._arrivals = Arrivals(self._lock, self._gate)
        self._failure: Exception | None = None
        self._sending = threading.Lock()
        self._uplink = Uplink(host, self._lock)
        self._heard = self._spoke = time.monotonic()
        self._sending_since: float | None = None
        self._closed = False
        self._pump = threading.Thread(target=self._run, args=(rest,), name=f"session {host}", daemon=True)
        self._pump.start()

    def submit(self, op: str, **fields: Any) -> int:  # noqa: ANN401  (JSON values)
        """Send a request without waiting; return its id for `wait`."""
        number = next(self._numbers)
        with self._lock:
            self._gate.ask(number, op, fields)
        self._send(wire.make_control({"id": number, "op": op, **fields}))
        return number

    def wait(
        self, number: int, seconds: float | None = None, look: Callable[[], object] = int
    ) -> dict[str, Any]:
        """Return the answer to a request; raise what the host refused it with, or ConnectionLost.

        A host that is heard and does not answer within `seconds` (REQUEST_SECONDS) is a ProtocolError: our agent
        answers from the loop that its heartbeats come from. `look` is called every second; what it raises ends the wait.
        """
        seconds = REQUEST_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with self._lock:
            while number not in self._replies:
                self._check()
                left = deadline - time.monotonic()
                if left <= 0:
                    op = self._gate.find_op(number)
                    raise ProtocolError(f"{self.host} did not answer `{op}` within {seconds:.0f} s")
                look()
                self._replied.wait(min(left, 1.0))
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
        """Send a stream's bytes and its END, as fast as the link carries them without a queue."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                count = self._uplink.claim(len(view), self._check)
                self._send(wire.make_frame(wire.DATA, stream, bytes(view[:count])))
                view = view[count:]
        self._uplink.rest()
        self._send(wire.make_end(stream, {}))

    def open_inbox(self, stream: int) -> Inbox:
        """Return an inbox for what a stream will bring, which then does not come by `next_item`; open it before the stream.

        One thread may follow with `next_item` while another reads an inbox and a third asks.
        """
        with self._lock:
            queue = self._arrivals.open_queue(stream)
        return Inbox(partial(self._next, queue), partial(self._drop, stream))

    def _drop(self, stream: int) -> None:
        with self._lock:
            self._arrivals.close_queue(stream)
        with contextlib.suppress(ConnectionLost, RemoteTrainError):
            self._speak()

    def next_item(self, seconds: float) -> Item | None:
        """Return what came next on streams without an inbox, None when nothing did in time; raise ConnectionLost."""
        return self._next(self._arrivals.common, seconds)

    def _next(self, queue: Queue, seconds: float) -> Item | None:
        item = None
        with self._lock:
            if not queue.items:
                self._check()
                queue.changed.wait(seconds)
            if queue.items:
                item = self._arrivals.pop(queue)
            else:
                self._check()
            frame = self._arrivals.claim_ack(time.monotonic()) if item is not None else None
        if frame is not None:
            # What was taken is handed out; a connection that is lost is found to be at the next call.
            with contextlib.suppress(ConnectionLost, RemoteTrainError):
                self._send(frame)
        return item

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
        self._wake_all()

    def _wake_all(self) -> None:
        with self._lock:
            self._replied.notify_all()
            self._arrivals.wake_all()
            self._uplink.wake()

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
        data = self._channel.receive(ACK_SECONDS if self._arrivals.owes() else 1.0)
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
        self._speak()

    def _speak(self) -> None:
        """Tell the host what has come, or that we live, unless somebody is sending."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            with self._lock:
                frame = self._arrivals.claim_ack(now)
            if frame is None and now - self._spoke >= wire.HEARTBEAT_SECONDS:
                frame = wire.make_frame(wire.HEARTBEAT, 0, b"")
            if frame is not None:
                self._send_now(frame)
        finally:
            self._sending.release()

    def _take(self, data: bytes) -> None:
        """Take what came a slice at a time: a window full of empty frames would be a gigabyte of objects."""
        view = memoryview(data)
        for start in range(0, len(view), SLICE):
            frames = self._decoder.feed(view[start : start + SLICE])
            with self._lock:
                for kind, stream, payload in frames:
                    self._sort(kind, stream, payload)

    def _sort(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == wire.DATA:
            self._gate.admit_data(stream, payload)
            self._arrivals.put(Data(stream, payload))
        elif kind == wire.END:
            summary = wire.parse_object(payload)
            self._gate.admit_end(stream, summary)
            self._arrivals.put(End(stream, summary))
        elif kind == wire.ACK:
            self._uplink.note_ack(payload)
        elif kind == wire.CONTROL:
            message = wire.parse_object(payload)
            if "id" in message:
                reply = self._gate.admit_reply(message)
                if reply is not None:
                    self._replies[reply[0]] = reply[1]
                    self._replied.notify_all()
            elif self._gate.admit_event(message):
                self._arrivals.put(Event(message["event"], message))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._channel.close()
        self._wake_all()


def open_session(transport: Transport, agent: Agent, python: str | None) -> Session:
    """Run the bootstrap over a transport and return the session with the agent it brings up.

    Raises what the transport raises, HostUnfit in the host's own words, or ConnectionLost.
    """
    nonce = secrets.token_hex(8)
    channel = transport.open(make_bootstrap(agent.hash, nonce, python))
    try:
        rest, noise = _await_agent(transport.name, channel, nonce, agent)
    except BaseException:
        channel.close()
        raise
    return Session(transport.name, channel, rest, noise)


def _await_agent(host: str, channel: Channel, nonce: str, agent: Agent) -> tuple[bytes, int]:
    """Skip the noise, bring the agent if it is missing; return what followed READY, and how much noise there was."""
    held, dropped = b"", 0
    uploaded = False
    deadline = time.monotonic() + BOOTSTRAP_SECONDS
    while time.monotonic() < deadline:
        data = channel.receive(1.0)
        if data is None:
            continue
        held += data
        verdict = parse_verdict(held, nonce)
        if verdict is None:
            dropped += max(0, len(held) - NOISE_KEPT)
            held = held[-NOISE_KEPT:]
            if dropped + len(held) > NOISE_LIMIT:
                raise make_endless(host, held)
            if data == b"":
                raise make_unfit(host, held, channel.stderr_tail())
            continue
        dropped += verdict.noise
        if verdict.word == "READY":
            return verdict.rest, dropped
        if verdict.word != "NEED":
            raise make_unfit(host, b"", b"", verdict.word)
        if uploaded:
            raise ProtocolError(f"{host} asks for our agent again and again")
        _bring_agent(host, channel, agent)
        uploaded, held = True, verdict.rest
    raise make_waiting(host, BOOTSTRAP_SECONDS, held, channel.stderr_tail())


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
