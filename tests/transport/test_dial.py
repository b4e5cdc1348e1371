"""Reachability by real sockets, each reason in its own words."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.transport import dial
from remote_train.transport.dial import (
    IDENT,
    Dialled,
    Dialling,
    Endpoint,
    Refused,
    dial_all,
    explain,
    parse_banner,
)
from tests.sshd import Sshd, free_port, serving, wait_until

BANNER = b"SSH-2.0-test\r\n"


def dial_one(port: int, *addresses: str, timeout: float = 10.0) -> Dialled | Refused:
    return Dialling(Endpoint(addresses or ("127.0.0.1",), port), timeout).wait()


def reason(port: int, *addresses: str, timeout: float = 10.0) -> str:
    outcome = dial_one(port, *addresses, timeout=timeout)
    assert isinstance(outcome, Refused)
    return outcome.reason


def test_a_real_sshd_is_reached_and_nothing_is_consumed(sshd: Sshd) -> None:
    outcome = dial_one(sshd.port)
    assert isinstance(outcome, Dialled)
    with outcome.socket as connection:
        assert outcome.banner.startswith("SSH-2.0-OpenSSH")
        assert outcome.address == "127.0.0.1"
        assert connection.recv(len(outcome.banner)).decode() == outcome.banner
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 14_000
    sshd.wait_log("remote software version remote_train")


def test_our_ident_goes_out_before_the_banner_has_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialling = Dialling(Endpoint(("127.0.0.1",), server.getsockname()[1]))
        connection, _ = server.accept()
        with connection:
            assert connection.recv(len(IDENT), socket.MSG_WAITALL) == IDENT
            for piece in (b"Welcome\r\n", b"SSH-2.0-", b"slow", b" one\r", b"\nKEX"):
                connection.sendall(piece)
            outcome = dialling.wait()
        assert isinstance(outcome, Dialled)
        with outcome.socket:
            assert outcome.banner == "SSH-2.0-slow one"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((b"",), "closed the connection before its SSH banner, twice"),
        ((b"Exceeded MaxStartups\r\n",), 'twice, saying "Exceeded MaxStartups"'),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), 'saying "HTTP/1.1 400 Bad Request"'),
        ((b"x" * 20_000,), "is not an SSH server"),
        ((b"\x1b]0;owned\x07\n" * 2000,), 'is not an SSH server (it says "?]0;owned?")'),
        ((b"SSH-1.5-old\r\n",), "too old"),
    ],
)
def test_what_is_no_banner_is_unreachable(answers: tuple[bytes, ...], words: str) -> None:
    with serving(*answers) as port:
        assert words in reason(port)


def test_one_early_close_is_forgiven() -> None:
    with serving(b"", BANNER) as port:
        outcome = dial_one(port)
        assert isinstance(outcome, Dialled)
        outcome.socket.close()


def test_refused_and_unresolved_and_silent() -> None:
    port = free_port()
    assert reason(port) == f"127.0.0.1 port {port}: connection refused"
    assert "no-such-host.invalid" in reason(22, "no-such-host.invalid")
    assert "name not resolved" in reason(22, "no-such-host.invalid")
    assert "name not resolved" in reason(22, "x" * 70 + ".example")
    with serving(None) as silent:
        assert "silent" in reason(silent, timeout=0.3)


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_args: object, **_options: object) -> None:
        release.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert reason(22, "box", timeout=0.2) == "box port 22: name not resolved within 0.2 s"
    release.set()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EHOSTUNREACH, "no route to the host"),
        (errno.ENETUNREACH, "no route to its network"),
        (errno.ECONNRESET, dial.CLOSED),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_connect_errors_in_words(number: int, words: str) -> None:
    assert explain(OSError(number, "Permission denied")) == words
    assert explain(TimeoutError()) == "no answer"


def test_the_second_address_is_used_when_the_first_is_dead() -> None:
    with serving(BANNER) as port:
        for addresses in (("127.0.0.2", "127.0.0.1"), ("no-such-host.invalid", "127.0.0.1")):
            outcome = dial_one(port, *addresses)
            assert isinstance(outcome, Dialled)
            assert outcome.address == "127.0.0.1"
            outcome.socket.close()


def test_the_second_address_is_used_when_the_first_is_silent() -> None:
    with socket.create_server(("127.0.0.2", 0)) as silent:
        port = silent.getsockname()[1]
        with socket.create_server(("127.0.0.1", port)) as server:
            dialling = Dialling(Endpoint(("127.0.0.2", "127.0.0.1"), port))
            connection, _ = server.accept()
            with connection:
                connection.sendall(BANNER)
                outcome = dialling.wait()
            assert isinstance(outcome, Dialled)
            assert outcome.address == "127.0.0.1"
            outcome.socket.close()


def test_every_address_gets_its_reason() -> None:
    with serving(b"") as port:
        words = reason(port, "127.0.0.1", "127.0.0.2", "no-such-host.invalid")
    for part in ("127.0.0.1 port", "127.0.0.2 port", "name not resolved"):
        assert part in words


def test_targets_are_dialled_at_once_and_answered_in_order() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        targets = [Endpoint(("127.0.0.1",), server.getsockname()[1]) for server in servers]
        outcomes: list[Dialled | Refused] = []
        thread = threading.Thread(target=lambda: outcomes.extend(dial_all(targets)))
        thread.start()
        connections = [
            stack.enter_context(server.accept()[0]) for server in servers
        ]  # all, before any is answered
        for number in (2, 0):
            connections[number].sendall(f"SSH-2.0-{number}\r\n".encode())
        connections[1].close()
        servers[1].accept()[0].close()
        thread.join()
        assert [getattr(outcome, "banner", None) for outcome in outcomes] == ["SSH-2.0-0", None, "SSH-2.0-2"]
        for number in (0, 2):
            outcomes[number].socket.close()  # type: ignore[union-attr]


def test_no_address_is_a_reason_too() -> None:
    assert Dialling(Endpoint((), 22)).wait() == Refused("no address")


def test_giving_up_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialling = Dialling(Endpoint(("127.0.0.1",), server.getsockname()[1]))
        connection, _ = server.accept()
        with connection:
            connection.sendall(BANNER)
            wait_until(lambda: dialling._winner, "the banner")
            dialling.close()
            assert connection.recv(100) == IDENT
            with pytest.raises(ConnectionResetError):  # our banner was never read
                connection.recv(100)


@given(st.binary(max_size=200))
def test_a_banner_is_the_first_whole_line_that_begins_with_ssh(data: bytes) -> None:
    banner = parse_banner(data)
    lines = [line for line in data.split(b"\n")[:-1] if line.startswith(b"SSH-")]
    assert (banner is None) == (not lines)
    assert parse_banner(b"hello\r\n" * 3 + BANNER + data) == BANNER.decode().strip()
    assert parse_banner(b"SSH-2.0-unfinished") is None


def test_dialling_imports_no_ssh_library() -> None:
    code = "import sys, remote_train.transport.dial; print(*{'paramiko', 'fabric', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
