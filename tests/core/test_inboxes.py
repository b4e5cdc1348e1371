"""An inbox: one stream's items for one thread, while another follows and a third asks, on one session."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from remote_train.bootstrap import Agent
from remote_train.errors import ConnectionLost, ProtocolError
from remote_train.gate import HELD_BYTES, HELD_CHECKPOINTS, HELD_EVENTS
from remote_train.host import wire
from remote_train.inbox import CONSUMED_EVERY
from remote_train.refusals import NoSuchFile
from remote_train.session import Data, End, Event, Inbox, Session, open_session
from remote_train.transport.fake import FakeTransport, Pipe
from tests.host.account_kit import PATIENCE, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

BLOCK = 1 << 20
RUN = {"run": "run", "attempt": 1}
END = {"length": 5, "sha256": "0" * 64, "changed": False}


class Host:
    """A host in memory: it answers every `get` and `follow`, sends what it is told to, and remembers what was acknowledged."""

    def __init__(self) -> None:
        self.transport = FakeTransport(self._play)
        self.acked = self.consumed = 0
        self.answered: list[int] = []
        self._pipe: Pipe | None = None

    def connect(self) -> Session:
        return open_session(self.transport, Agent("a" * 64, b"{}"), None)

    def _play(self, command: str, pipe: Pipe) -> None:
        nonce = next(word for word in command.replace("'", " ").split() if len(word) == 16)
        pipe.send(f"\0RT1 {nonce} READY\n".encode())
        self._pipe = pipe
        decoder = wire.Decoder()
        while data := pipe.receive():
            for kind, _, payload in decoder.feed(data):
                if kind == wire.ACK:
                    received, outputs, files = wire.parse_ack(payload)
                    self.acked, self.consumed = received, outputs + files
                elif kind == wire.CONTROL:
                    self._answer(wire.parse_object(payload))

    def _answer(self, request: dict[str, object]) -> None:
        answer = (
            {"size": 5, "mtime_ns": 1, "inode": "1:1"} if request["op"] == "get" else {"state": "running"}
        )
        self.send(wire.make_control({"id": request["id"], "ok": answer}))

    def send(self, *frames: bytes) -> None:
        assert self._pipe is not None
        self._pipe.send(b"".join(frames))


def ask_file(session: Session, *, inbox: bool = True) -> tuple[int, Inbox | None]:
    stream = session.new_stream()
    opened = session.open_inbox(stream) if inbox else None
    session.request("get", stream=stream, offset=0, path="big.bin", **RUN)
    return stream, opened


def data(stream: int, payload: bytes) -> bytes:
    return wire.make_frame(wire.DATA, stream, payload)


def test_each_stream_comes_where_it_is_looked_for_and_in_order() -> None:
    host = Host()
    session = host.connect()
    one, first = ask_file(session)
    two, second = ask_file(session)
    common, _ = ask_file(session, inbox=False)
    assert first
    assert second
    for number in range(3):
        host.send(*(data(stream, b"%d" % number) for stream in (two, common, one)))
    host.send(*(wire.make_end(stream, END) for stream in (common, one, two)))
    for stream, take in ((two, second.next_item), (one, first.next_item), (common, session.next_item)):
        assert [take(PATIENCE) for _ in range(3)] == [Data(stream, b"%d" % number) for number in range(3)]
        assert take(PATIENCE) == End(stream, END)
    for take in (first.next_item, second.next_item, session.next_item):
        assert take(0.01) is None
    until(lambda: host.acked == 9, "the acknowledgement of all that came")
    session.close()


def test_what_an_inbox_holds_back_does_not_stop_the_others() -> None:
    host = Host()
    session = host.connect()
    slow, inbox = ask_file(session)
    fast, _ = ask_file(session, inbox=False)
    assert inbox
    held = 6 * wire.MAX_PAYLOAD
    for _ in range(6):
        host.send(data(slow, b"x" * wire.MAX_PAYLOAD))
    for number in range(100):
        host.send(data(fast, b"%03d" % number))
        assert session.next_item(PATIENCE) == Data(fast, b"%03d" % number)
        assert (
            session.wait(session.submit("get", stream=number + 1000, offset=0, path="x", **RUN))["size"] == 5
        )
    until(lambda: host.acked == held + 300, "the acknowledgement of all that came")
    assert host.consumed <= 300
    for _ in range(6):
        inbox.next_item(PATIENCE)
    until(lambda: host.consumed >= held - CONSUMED_EVERY, "word of what was taken")
    session.close()


@pytest.mark.parametrize("asleep", [False, True])
def test_a_closed_inbox_drops_and_acknowledges_what_still_comes(*, asleep: bool) -> None:
    host = Host()
    session = host.connect()
    stream, inbox = ask_file(session)
    assert inbox
    size = 2 * CONSUMED_EVERY
    host.send(*[data(stream, b"x" * (size // 4))] * 4)
    if asleep:
        until(lambda: session._arrivals._own[stream].items, "what came before")
    inbox.close()
    inbox.close()
    until(lambda: host.consumed >= size - CONSUMED_EVERY, "word of what nobody took")
    host.send(*[data(stream, b"x" * (size // 4))] * 4)
    until(lambda: host.acked == 2 * size, "the acknowledgement of what came after")
    until(lambda: host.consumed >= 2 * size - CONSUMED_EVERY, "word of what came after")
    host.send(wire.make_end(stream, END))
    assert session.next_item(0.2) is None
    other, _ = ask_file(session, inbox=False)
    host.send(data(other, b"y"))
    assert session.next_item(PATIENCE) == Data(other, b"y")
    session.close()


def test_nothing_is_kept_of_files_that_were_refused_or_left(account: Account) -> None:
    """A courier brings thousands on one connection, and some were rotated away."""
    started = account.start("open('big.bin', 'wb').write(bytes(8 << 20))")
    started.end()
    session = account.connect()
    gate = session._gate
    for number in range(20):
        stream = session.new_stream()
        with session.open_inbox(stream) as inbox:
            if number % 2:
                with pytest.raises(NoSuchFile):
                    session.request("get", stream=stream, offset=0, path="gone.bin", block=BLOCK, **RUN)
                continue
            session.request("get", stream=stream, offset=0, path="big.bin", block=BLOCK, **RUN)
            if number % 4:
                assert isinstance(inbox.next_item(PATIENCE), Data)
            else:
                while not isinstance(inbox.next_item(PATIENCE), End):
                    pass
        session.submit("cancel", stream=stream)
    until(lambda: not gate._asked, "all answers")
    assert [gate._streams, gate._files, gate._unwanted] == [set()] * 3
    until(lambda: gate._held == 0, "word of all that came")
    assert list(session._replies) == [1]  # of `open`, which nobody waits for
    session.close()


def test_a_lost_connection_is_told_after_what_had_come() -> None:
    host = Host()
    session = host.connect()
    stream, inbox = ask_file(session)
    assert inbox
    host.send(data(stream, b"x"))
    until(lambda: session._arrivals._own[stream].items, "what came before the loss")
    told: list[type] = []

    def follow() -> None:
        try:
            session.next_item(PATIENCE)
        except ConnectionLost as error:
            told.append(type(error))

    follower = threading.Thread(target=follow)
    follower.start()
    host.transport.close()
    assert inbox.next_item(PATIENCE) == Data(stream, b"x")
    with pytest.raises(ConnectionLost):
        inbox.next_item(PATIENCE)
    follower.join(PATIENCE)
    assert len(told) == 1, "the follower was not woken"
    inbox.close()


def test_the_gate_bounds_what_waits_in_all_queues_together() -> None:
    host = Host()
    session = host.connect()
    streams = [ask_file(session)[0], ask_file(session)[0], ask_file(session, inbox=False)[0]]
    piece = b"x" * wire.MAX_PAYLOAD
    for number in range(HELD_BYTES // wire.MAX_PAYLOAD + 2):
        try:
            host.send(data(streams[number % 3], piece))
        except BrokenPipeError:
            break
    with pytest.raises(ProtocolError, match="sent more than it may"):
        until(session._check, "the end")


def test_checkpoints_that_nobody_hears_of_for_long_are_no_breach() -> None:
    """`run | less` that is not scrolled: a training goes on saving, and its host goes on telling."""
    host = Host()
    session = host.connect()
    session.request("follow", outputs=[], wait=True, **RUN)
    told = {"event": "checkpoint", **RUN, "unit": "ckpt.pt", "size": 5, "count": 1, "mtime_ns": 1}
    for turn in range(2):
        host.send(*[wire.make_control({**told, "mtime_ns": turn})] * (HELD_EVENTS + 1))
        host.send(wire.make_control({"event": "quiet", **RUN, "seconds": 1.0}))
        session.request("follow", outputs=[], wait=True, **RUN)  # behind all of them
        events = [session.next_item(0.0) for _ in range(HELD_CHECKPOINTS + 2)]
        kinds = [item.kind for item in events if isinstance(item, Event)]
        assert kinds == ["checkpoint"] * HELD_CHECKPOINTS + ["quiet"]
    session.close()


def test_a_file_is_pulled_beside_a_followed_log_and_requests(account: Account) -> None:
    """A real agent: three threads on one session, every byte where it belongs."""
    script = """
import os, pathlib, time
pathlib.Path("big.bin").write_bytes(os.urandom(1 << 20) * 24)
print("written", flush=True)
for number in range(2000):
    print("line", number, flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""
    started = account.start(script)
    started.says(b"line 1999")
    session = account.connect()
    log, answers, halt = bytearray(), [], threading.Event()

    def follow() -> None:
        session.request("follow", outputs=[{"stream": 5000, "name": "0", "offset": 0}], wait=False, **RUN)
        while not halt.is_set():
            item = session.next_item(0.1)
            if isinstance(item, Data):
                log.extend(item.payload)

    def ask() -> None:
        while not halt.is_set():
            answers.append(session.request("list")["runs"])

    threads = [threading.Thread(target=work) for work in (follow, ask)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            stream = session.new_stream()
            with session.open_inbox(stream) as inbox:
                session.request("get", stream=stream, offset=0, path="big.bin", block=BLOCK, **RUN)
                came = bytearray()
                while not isinstance(item := inbox.next_item(PATIENCE), End):
                    assert isinstance(item, Data)
                    assert item.stream == stream
                    came += item.payload
            here = b"".join(came[begin : begin + BLOCK] for begin in range(0, len(came), BLOCK + 32))
            file = (started.folder / "code" / "big.bin").read_bytes()
            assert here == file
            assert item.summary["sha256"] == hashlib.sha256(file).hexdigest()
        until(lambda: bytes(log) == started.output(), "the whole log")
    finally:
        halt.set()
        for thread in threads:
            thread.join()
        os.close(os.open(started.folder / "code" / "go", os.O_CREAT))
    assert answers
    session.close()
    started.end()
