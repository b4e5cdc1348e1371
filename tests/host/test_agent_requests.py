"""What an agent answers and refuses, and how both ends notice that the other is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.bootstrap import make_bootstrap, parse_verdict
from remote_train.errors import ConnectionLost, HostUnfit, ProtocolError, RunLost, VerificationFailed
from remote_train.host import agent, wire
from remote_train.refusals import NoSuchFile
from remote_train.session import Session, open_session
from remote_train.transport.local import LocalChannel, LocalTransport
from tests.host.account_kit import PATIENCE, agents_of, the_agent, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.account_kit import Account

PYENV = Path("~/.pyenv/versions").expanduser()
SLACK = 2.0


def open_root(root: Path) -> tuple[Session, int]:
    session = open_session(LocalTransport(), the_agent(), sys.executable)
    return session, session.submit("open", state_dir=str(root))


def test_an_open_state_folder_is_closed_to_others(account: Account) -> None:
    other = account.home / "other"
    other.mkdir()
    other.chmod(0o777)
    session, number = open_root(other)
    assert session.wait(number)["protocol"] == wire.PROTOCOL
    assert other.stat().st_mode & 0o777 == 0o700
    session.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_state_folder_of_somebody_else_is_refused_with_the_reason(account: Account) -> None:
    other = account.home / "other"
    other.mkdir()
    os.chown(other, 12345, 12345)
    session, number = open_root(other)
    with pytest.raises(HostUnfit, match="another user"):
        session.wait(number)
    with pytest.raises(HostUnfit, match="another user") as refusal:  # also when nobody waited for `open`
        session.request("list")
    assert "`state_dir` in hosts.toml" in str(refusal.value.hint)
    assert list(other.iterdir()) == []
    session.close()


def test_a_state_folder_that_is_a_file_is_refused(account: Account) -> None:
    (account.home / "file").write_text("")
    session, number = open_root(account.home / "file")
    with pytest.raises(HostUnfit, match="file") as refusal:
        session.wait(number)
    assert "`state_dir` in hosts.toml" in str(refusal.value.hint)
    session.close()


def test_a_state_folder_may_be_a_link_to_another_disk(account: Account) -> None:
    (account.home / "target").mkdir()
    (account.home / "link").symlink_to(account.home / "target")
    session, number = open_root(account.home / "link")
    session.wait(number)
    session.close()
    assert (account.home / "target" / "runs").is_dir()


def test_a_folder_of_other_things_is_not_closed_to_others(account: Account) -> None:
    shared = account.home / "shared"
    shared.mkdir()
    (shared / "theirs").write_text("")
    shared.chmod(0o775)
    session, number = open_root(shared)
    with pytest.raises(HostUnfit, match="chmod 700"):
        session.wait(number)
    session.close()
    assert shared.stat().st_mode & 0o777 == 0o775
    assert [path.name for path in shared.iterdir()] == ["theirs"]


def test_nothing_is_done_before_open(account: Account) -> None:
    session = open_session(LocalTransport(), the_agent(), sys.executable)
    for op, fields in (("list", {}), ("stop", {"run": "r", "attempt": 1}), ("state", {"run": "r"})):
        with pytest.raises(HostUnfit, match="not opened") as refusal:
            session.request(op, **fields)
        assert refusal.value.hint is None
    session.close()
    assert not (account.root / "runs").exists()


def test_an_unknown_operation_ends_the_connection_with_its_reason(account: Account) -> None:
    session = account.connect()
    with pytest.raises(ProtocolError, match="unknown operation 'explode'"):
        session.request("explode")
    until(lambda: not agents_of(account.home), "the agent's end")


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 9,
        wire.HEADER.pack(wire.MAX_PAYLOAD + 1, wire.CONTROL, 0),
        wire.make_frame(wire.CONTROL, 0, b"not json"),
        wire.make_frame(wire.CONTROL, 0, b"[" * 5000),
        wire.make_frame(wire.ACK, 0, b"short"),
    ],
)
def test_junk_ends_the_agent_and_says_why(account: Account, junk: bytes) -> None:
    session = account.connect()
    session.request("list")
    session._channel.send(junk)
    with pytest.raises(ProtocolError):
        until(lambda: session.next_item(1.0), "the fatal event")
    until(lambda: not agents_of(account.home), "the agent's end")


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("follow", {"run": "../..", "attempt": 1, "outputs": []}),
        ("follow", {"run": "r", "attempt": 1, "outputs": [{"stream": 1, "name": "../../x", "offset": 0}]}),
        ("get", {"run": "r", "attempt": "1", "path": "x", "offset": 0, "stream": 1}),
        ("tail", {"run": "r", "attempt": 1, "rank": "x", "lines": 1}),
        ("manifest", {"stream": 1, "package": "../x"}),
        ("manifest", {"stream": [], "package": "0" * 64}),
        ("blobs", {"stream": 1, "items": [["../../x", 1]], "zlib": False}),
        ("blobs", {"stream": 1, "items": 7, "zlib": False}),
        ("facts", {}),
        ("open", {"state_dir": 7}),
    ],
)
def test_a_malformed_request_is_answered_and_not_fatal(account: Account, op: str, fields: Any) -> None:
    session = account.connect()
    with pytest.raises((ProtocolError, VerificationFailed, NoSuchFile)):
        session.request(op, **fields)
    session.submit("open", state_dir=None)
    assert session.request("list")["runs"] == []


def test_following_a_run_that_is_not_there_is_answered(account: Account) -> None:
    session = account.connect()
    session.submit("open", state_dir=None)
    with pytest.raises(RunLost, match="nobody"):
        session.request("follow", run="nobody", attempt=1, outputs=[])
    assert session.request("list")["runs"] == []


@pytest.mark.parametrize("data", [b"", b"junk", b"x\x9cbroken", b'x\x9c{"set":'])
def test_a_broken_manifest_is_answered_and_not_fatal(account: Account, data: bytes) -> None:
    session = account.connect()
    number = session.submit("manifest", stream=7, package="0" * 64, base=None)
    session.upload(7, [data])
    with pytest.raises((ProtocolError, VerificationFailed)):
        session.wait(number)
    assert session.request("list")["runs"] == []


@pytest.fixture
def raw(account: Account) -> Iterator[LocalChannel]:
    """A channel to an agent that is up, with nobody who would send heartbeats."""
    account.connect().request("list")
    nonce = "ab" * 8
    channel = LocalTransport().open(make_bootstrap(the_agent().hash, nonce, sys.executable))
    held = b""
    while parse_verdict(held, nonce) is None:
        held += channel.receive(PATIENCE) or b""
    yield channel
    channel.close()


def test_the_agent_ends_when_nothing_comes_any_more(raw: LocalChannel) -> None:
    """The connection stays open and says nothing: as after a power cut of the laptop."""
    began = time.monotonic()
    decoder = wire.Decoder()
    kinds = []
    while (data := raw.receive(PATIENCE)) != b"":
        assert data is not None, "the agent neither spoke nor ended"
        kinds += [kind for kind, _, _ in decoder.feed(data)]
    assert wire.SILENCE_SECONDS - SLACK < time.monotonic() - began < wire.SILENCE_SECONDS + SLACK + 5
    assert kinds
    assert set(kinds) == {wire.HEARTBEAT}


def test_the_agent_ends_with_its_stdin(account: Account, raw: LocalChannel) -> None:
    assert len(agents_of(account.home)) == 2
    raw.close()
    account.sessions[0].close()
    until(lambda: not agents_of(account.home), "the agents' end")


@pytest.mark.slow
def test_an_idle_session_lives_by_heartbeats(account: Account) -> None:
    session = account.connect()
    session.request("list")
    deadline = time.monotonic() + wire.SILENCE_SECONDS + 4
    while time.monotonic() < deadline:
        assert session.next_item(1.0) is None
    assert session.request("list")["runs"] == []


def test_heartbeats_go_both_ways(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """The laptop beats faster than the agent would fall silent, and is itself not patient for long."""
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", wire.HEARTBEAT_SECONDS + 5.5)  # the agent beats every 4 s
    session = account.connect()
    session.request("list")
    sent: list[bytes] = []
    send = session._channel.send

    def remember(data: bytes) -> None:
        sent.append(data)
        send(data)

    monkeypatch.setattr(session._channel, "send", remember)
    deadline = time.monotonic() + 7.5
    while time.monotonic() < deadline:
        assert session.next_item(0.5) is None
    assert sent.count(wire.make_frame(wire.HEARTBEAT, 0, b"")) >= 3
    assert session.request("list")["runs"] == []


def test_a_stopped_agent_is_noticed(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP on the host: nothing comes, the connection is open; the laptop must not wait for ever."""
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 1.5)
    session = account.connect()
    session.request("list")
    [agent] = agents_of(account.home)
    os.kill(agent, signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionLost, match="no word"):
            until(lambda: session.next_item(1.0), "the loss")
        with pytest.raises(ConnectionLost):
            session.request("list")
    finally:
        os.kill(agent, signal.SIGCONT)


def test_heartbeats_go_on_beside_slow_facts(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate Python takes long: other requests are answered meanwhile."""
    slow = account.home / "slow-python"
    slow.write_text("#!/bin/sh\nsleep 3\nexit 1\n")
    slow.chmod(0o755)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 30.0)
    session = account.connect()
    number = session.submit("facts", pythons=[str(slow)])
    assert session.request("list")["runs"] == []
    assert number not in session._replies
    assert session.wait(number)["python"]["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="pipes have a size on Linux alone")
def test_a_pipe_of_ours_takes_several_frames_and_what_is_no_pipe_stays_as_it_is() -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb"), os.fdopen(writes, "wb"), Path(os.devnull).open("wb") as nothing:
        agent.widen(nothing.fileno())
        agent.widen(writes)
        assert fcntl.fcntl(writes, fcntl.F_GETPIPE_SZ) == agent.PIPE
