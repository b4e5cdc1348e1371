"""SSH against a real sshd: the stream, and how it ends."""

from __future__ import annotations

import hashlib
import inspect
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paramiko import ECDSAKey, ssh_exception  # type: ignore[import-untyped]

from remote_train.errors import (
    ConnectionLost,
    HostKeyRefused,
    HostUnfit,
    RemoteTrainError,
    Unreachable,
)
from remote_train.transport import login
from remote_train.transport.dial import Dialled, Dialling
from remote_train.transport.paramiko_ssh import ParamikoTransport
from remote_train.transport.paramiko_tuning import TRANSLATIONS, translate
from tests.sshd import (
    Sshd,
    SshdTarget,
    free_port,
    read_to_end,
    run,
    running_sshd,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.sshd


# ---- the stream ----


@pytest.mark.parametrize(
    "lines",
    [
        ["MaxSessions 1"],
        ["RekeyLimit 1M"],
        ["AllowTcpForwarding no", "PermitTTY no", "DisableForwarding yes"],
    ],
    ids=["one session", "rekey every MB", "nothing else allowed"],
)
def test_sixty_four_megabytes_each_way(lines: list[str], tmp_path: Path) -> None:
    sent = os.urandom(1 << 20) * 64
    with running_sshd(tmp_path, lines) as sshd:
        transport = ParamikoTransport(sshd.target())
        channel = transport.open("cat")
        sender = threading.Thread(target=channel.send, args=(sent,))
        sender.start()
        digest, count = hashlib.sha256(), 0
        while count < len(sent):
            chunk = channel.receive(30)
            assert chunk, f"{count} bytes came, then {chunk!r}"
            digest.update(chunk)
            count += len(chunk)
        sender.join()
        transport.close()
    assert digest.digest() == hashlib.sha256(sent).digest()


def test_a_host_that_opens_no_session_is_unfit(tmp_path: Path) -> None:
    with (
        running_sshd(tmp_path, ["MaxSessions 0"]) as sshd,
        pytest.raises(HostUnfit, match="opens no channel"),
    ):
        run(sshd.target())


def test_nobody_listening_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        run(SshdTarget(port=free_port()))


def test_a_frozen_connection_is_closed_all_the_same(sshd: Sshd) -> None:
    transport = ParamikoTransport(sshd.target())
    channel = transport.open("echo $PPID; exec cat")
    session = int(channel.receive(30) or b"")
    os.kill(session, signal.SIGSTOP)
    try:
        lost: list[ConnectionLost] = []

        def send() -> None:
            try:
                channel.send(bytes(64 << 20))
            except ConnectionLost as error:
                lost.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        assert channel.receive(0.2) is None
        channel.close()
        sender.join(30)
        assert lost
        assert channel.receive(0) == b""
    finally:
        os.kill(session, signal.SIGKILL)


def test_a_killed_session_ends_the_stream_and_the_next_open_works(sshd: Sshd) -> None:
    transport = ParamikoTransport(sshd.target())
    channel = transport.open("echo $PPID; exec cat")
    os.kill(int(channel.receive(30) or b""), signal.SIGKILL)
    with pytest.raises(ConnectionLost):
        channel.receive(30)
    with pytest.raises(ConnectionLost):
        channel.send(bytes(1 << 20))
    assert read_to_end(transport.open("echo again")) == b"again\n"


def test_a_dialled_connection_that_is_never_used_is_closed(sshd: Sshd) -> None:
    outcome = Dialling(sshd.target()).wait()
    assert isinstance(outcome, Dialled)
    ParamikoTransport(sshd.target(), outcome).close()
    assert outcome.socket.fileno() == -1


# ---- servers that break off, hang or lie ----


def test_a_server_that_falls_silent_after_its_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = SshdTarget(port=server.getsockname()[1])
        dialling = Dialling(target)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"SSH-2.0-silent\r\n")
            dialled = dialling.wait()
            assert isinstance(dialled, Dialled)
            with pytest.raises(ConnectionLost, match="did not finish the login"):
                run(target, dialled=dialled)


def test_the_time_a_person_takes_does_not_count(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", 2.0)
    sshd.known_hosts.unlink()
    thinking = threading.Event()
    assert run(sshd.target(), ask=lambda _: not thinking.wait(2.5)) == b"in\n"


@settings(max_examples=12, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_a_server_that_talks_nonsense_is_one_of_our_errors(data: bytes, framed: bool) -> None:
    packet = len(data).to_bytes(4, "big") + data if framed else data
    with serving(b"SSH-2.0-hostile\r\n" + packet) as port, pytest.raises((ConnectionLost, RemoteTrainError)):
        run(SshdTarget(port=port))


def test_every_error_of_the_library_has_one_of_ours() -> None:
    classes = [
        value
        for value in vars(ssh_exception).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == ssh_exception.__name__
    ]
    assert len(classes) > 10
    for kind in classes:
        assert kind in TRANSLATIONS, f"{kind.__name__} is new: give it a line in TRANSLATIONS"
        special: dict[str, tuple[object, ...]] = {
            "BadHostKeyException": ("box", ECDSAKey.generate(), ECDSAKey.generate()),
            "NoValidConnectionsError": ({("127.0.0.1", 22): OSError("x")},),
        }
        count = len(inspect.signature(kind.__init__).parameters) - 1 if "__init__" in vars(kind) else 1
        error = kind(*special.get(kind.__name__, ("x",) * count))
        assert isinstance(translate(error, "box"), (RemoteTrainError, ConnectionLost))
    assert isinstance(translate(EOFError(), "box"), ConnectionLost)
    assert isinstance(translate(TimeoutError("x"), "box"), ConnectionLost)


def test_a_host_that_cannot_prove_its_key_is_refused() -> None:
    error = translate(ssh_exception.SSHException("Signature verification (ssh-ed25519) failed."), "box")
    assert isinstance(error, HostKeyRefused)


def test_the_libraries_log_nothing(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    sshd.known_hosts.write_text("")
    with pytest.raises(HostKeyRefused):
        run(sshd.target())
    assert capfd.readouterr() == ("", "")
