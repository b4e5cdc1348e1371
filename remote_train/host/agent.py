"""Our program on the host, one per connection: frames on stdin, frames on stdout, nothing in between.

It owns nothing that matters: runs live in their folders under their supervisors, so it may die at any byte.
One thread, one loop. Control overtakes logs, logs overtake bulk, and all DATA runs under the laptop's credit.
When nothing came from the laptop for SILENCE_SECONDS it ends, whatever it is doing. When it fails by a mistake of ours,
it says so to the laptop and in `agent.log`: a program that dies without a word looks like a lost connection.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import signal
import sys
import threading
import time

from remote_train.host import layout, wire
from remote_train.host.credit import Credit
from remote_train.host.disk import describe_error
from remote_train.host.inotify import Watch, open_watch
from remote_train.host.operations import Operations

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

POLL_SECONDS = 0.02
LOOK_SECONDS = 0.5
PACE_SECONDS = 0.005
READ = 1 << 16
HELD = 1 << 20
"""Bytes taken from the laptop in the middle of long work, to be looked at after it; more is left in the pipe."""
PARTING_SECONDS = 1.0
F_SETPIPE_SZ = 1031
"""Linux's; the module has it from Python 3.10 on."""
PIPE = 1 << 20
"""What every account may have; how much of it bulk fills, the credit says."""
LOG_BYTES = 64 * 1024


class LaptopGone(Exception):
    """Nothing came for SILENCE_SECONDS, or the stream has ended: long work is not worth going on with."""


class Connection:
    """The host's end of one stream."""

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.decoder = wire.Decoder()
        self.credit = Credit()
        self.control: Deque[bytes] = collections.deque()
        self.sources: List[Any] = []
        self.watchers: List[Any] = []
        self.asides: Deque[Tuple[Callable[[Any], None], Any]] = collections.deque()
        self.received = self.told = 0
        self.wake_read, self.wake_write = os.pipe()
        self.on_frame: Callable[[int, int, bytes], None] = lambda _kind, _stream, _payload: None
        self.watch: Optional[Watch] = None
        self.pending = memoryview(b"")
        self.held = bytearray()
        self.heard = self.spoke = self.looked = time.monotonic()
        self.settled = False
        self.closed = False

    def send(self, message: Dict[str, Any]) -> None:
        """Queue a control message; it overtakes everything but the frame being written."""
        self.control.append(wire.make_control(message))

    def add_source(self, source: Any) -> None:  # noqa: ANN401  (Tail or Fetch; a Protocol costs typing's import)
        """Send a source's frames until its END."""
        self.sources.append(source)
        self.sources.sort(key=lambda item: bool(item.bulk))

    def watch_path(self, path: str) -> None:
        """Be woken when this file or folder changes."""
        if self.watch is None:
            self.watch = open_watch()
        if self.watch is not None:
            self.watch.add(path)

    def run(self) -> None:
        """Serve until the laptop is gone."""
        os.set_blocking(self.fd_in, False)
        os.set_blocking(self.fd_out, False)
        while not self.closed:
            self._wait()
            self._receive()
            now = time.monotonic()
            if self._is_deserted():
                return
            if now - self.looked >= LOOK_SECONDS or self.settled:
                self.look()
            self.write()

    def _is_deserted(self) -> bool:
        return time.monotonic() - self.heard > wire.SILENCE_SECONDS

    def look(self) -> None:
        """Let everybody who watches a run look at it."""
        self.looked = time.monotonic()
        self.settled = False
        for watcher in list(self.watchers):
            watcher.look()

    def run_aside(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do slow work in a thread, and call `done` with its result in this one: heartbeats go on."""

        def fail(error: BaseException) -> None:
            raise error

        def labour() -> None:
            try:
                self.asides.append((done, work()))
            except BaseException as error:
                self.asides.append((fail, error))
                raise
            finally:
                os.write(self.wake_write, b".")

        threading.Thread(target=labour, daemon=True).start()

    def _finish_asides(self) -> None:
        os.read(self.wake_read, 64)
        while self.asides:
            done, result = self.asides.popleft()
            done(result)

    def breathe(self) -> None:
        """In the middle of long work, keep the laptop convinced that we live, and see that it does.

        What it sends is held until the work is done. Raises LaptopGone.
        """
        while len(self.held) < HELD:
            data = self._read()
            if not data:
                break
            self.held += data
            self.heard = time.monotonic()
        self.write()
        if self.closed or self._is_deserted():
            raise LaptopGone

    def _wait(self) -> None:
        now = time.monotonic()
        busy = bool(self.pending or self.control) or self.received > self.told or self._has_turn(now)
        readers = [self.fd_in, self.wake_read] + ([self.watch.fd] if self.watch else [])
        polling = bool(self.sources) and self.watch is None
        timeout = 0.0 if self.settled or self.held else POLL_SECONDS if polling else LOOK_SECONDS
        if self.sources and self.credit.is_paced(now):
            timeout = min(timeout, PACE_SECONDS)
        timeout = min([timeout] + [source.due - now for source in self.sources if source.due > now])
        ready, _, _ = select.select(readers, [self.fd_out] if busy else [], [], timeout)
        if self.watch is not None and self.watch.fd in ready:
            self.watch.drain()
            # A burst of output wakes us thousands of times: only the end is worth an early look.
            self.settled = self.settled or any(watcher.has_ended() for watcher in self.watchers)
        if self.wake_read in ready:
            self._finish_asides()

    def _has_turn(self, now: float) -> bool:
        return any(source.wants_turn() and self.credit.room(source.bulk, now) > 0 for source in self.sources)

    def _receive(self) -> None:
        held, self.held = bytes(self.held), bytearray()
        data = held or self._read()
        if data:
            self.feed(data)

    def _read(self) -> bytes:
        """Return what has come, b"" when nothing has or the stream is closed."""
        try:
            data = os.read(self.fd_in, READ)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.closed = self.closed or not data
        return data

    def feed(self, data: bytes) -> None:
        """Take bytes from the laptop."""
        self.heard = time.monotonic()
        for kind, stream, payload in self.decoder.feed(data):
            if kind == wire.ACK:
                received, *consumed = wire.parse_ack(payload)
                self.credit.acked(received, consumed, time.monotonic())
            elif kind != wire.HEARTBEAT:
                if kind == wire.DATA:
                    self.received += len(payload)
                self.on_frame(kind, stream, payload)
                self.heard = time.monotonic()

    def part(self, message: Dict[str, Any]) -> None:
        """Send last words, giving them a moment to get through."""
        self.sources.clear()
        self.send(message)
        until = time.monotonic() + PARTING_SECONDS
        while (self.pending or self.control) and not self.closed and time.monotonic() < until:
            select.select([], [self.fd_out], [], 0.1)
            self.write()

    def write(self) -> None:
        """Write as much as the connection takes now."""
        now = time.monotonic()
        if now - self.spoke >= wire.HEARTBEAT_SECONDS and not self.pending:
            self.control.append(wire.make_frame(wire.HEARTBEAT, 0, b""))
        while self.pending or self._next_frame():
            try:
                written = os.write(self.fd_out, self.pending)
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                return
            self.pending = self.pending[written:]
            self.spoke = now

    def _next_frame(self) -> bool:
        if self.control:
            self.pending = memoryview(self.control.popleft())
            return True
        if self.received > self.told:
            self.told = self.received
            self.pending = memoryview(wire.make_ack(self.received, 0, self.received))
            return True
        return (
            any(self._take_turn(source, time.monotonic()) for source in list(self.sources)) or self._starve()
        )

    def _take_turn(self, source: Any, now: float) -> bool:  # noqa: ANN401  (as in add_source)
        room = self.credit.room(source.bulk, now)
        if room <= 0:
            return False
        frame = source.produce(min(room, self.credit.longest()))
        if source.done:
            self.sources.remove(source)
            self.settled = True
        if frame is None:
            return False
        if not source.done:  # an END is not acknowledged: counted, it would take room for ever
            self.credit.sent(len(frame) - wire.HEADER.size, source.bulk, time.monotonic())
        self.pending = memoryview(frame)
        return True

    def _starve(self) -> bool:
        self.credit.starve(time.monotonic())
        return False


def serve(fd_in: int, fd_out: int) -> None:
    """Speak the protocol on two descriptors until the other side is gone."""
    connection = Connection(fd_in, fd_out)
    operations = Operations(connection)
    connection.on_frame = operations.handle
    try:
        connection.run()
    except LaptopGone:
        return
    except wire.FrameError as error:
        connection.part({"event": "fatal", "kind": "protocol", "message": str(error)})
    except OSError as error:  # an output or a file that cannot be read any more
        connection.part(dict(describe_error(error, operations.root), event="fatal"))
    except Exception as error:
        message = "%s: %s" % (type(error).__name__, str(error)[:1000])
        connection.part({"event": "fatal", "kind": "bug", "message": message})
        leave_words(operations.root)
        raise
    finally:
        operations.close()


def leave_words(root: str) -> None:
    """Append the traceback of what is being handled to `agent.log`, which is begun anew when it has grown long."""
    import traceback  # noqa: PLC0415  (only a failure of ours pays for it)

    path = os.path.join(root, layout.AGENT_LOG)
    words = "%s\n%s\n" % (time.strftime("%Y-%m-%d %H:%M:%S %z"), traceback.format_exc()[-8192:])
    try:
        full = os.path.exists(path) and os.path.getsize(path) > LOG_BYTES
        with open(path, "w" if full else "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(words)
    except OSError:
        return  # a full disk, perhaps; the laptop has been told


def widen(fd: int) -> None:
    """Have a pipe take several frames at once: each time that one is full, sshd and we wake each other."""
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE)
    except OSError:  # no pipe, not Linux, or this account has too many wide ones
        return


def main(nonce: str) -> None:
    """Answer the bootstrap: announce ourselves after the marker, then serve."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    fd_out = os.dup(1)
    widen(fd_out)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.write(fd_out, b"\0RT1 %s READY\n" % nonce.encode("ascii"))
    serve(0, fd_out)
    sys.exit(0)
