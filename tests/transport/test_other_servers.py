"""Servers that are not OpenSSH, or only say so: the library's own server plays them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]
import pytest

from remote_train.errors import HostUnfit
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.sshd import SshdTarget, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENSSH = "SSH-2.0-OpenSSH_9.9"


class Host(paramiko.ServerInterface):  # type: ignore[misc]
    """Lets everyone in and answers each command with its own text."""

    def __init__(self, *, runs: bool) -> None:
        self.runs = runs

    def get_allowed_auths(self, _user: str) -> str:
        return "publickey"

    def check_auth_publickey(self, _user: str, _key: object) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        if self.runs:
            threading.Thread(target=self.answer, args=(channel, command)).start()
        return self.runs

    def answer(self, channel: Any, command: bytes) -> None:
        with contextlib.suppress(OSError):
            channel.recv(1)  # not before the client knows that its command runs
            channel.sendall(b"ran " + command)
            channel.close()


@contextlib.contextmanager
def serving_ssh(banner: str, first_channel: int = 0, *, runs: bool = True) -> Iterator[tuple[int, str]]:
    """Serve SSH in this process; yields the port and the fingerprint of its key."""
    key = paramiko.ECDSAKey.generate()
    made = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    transport = paramiko.Transport(server.accept()[0])
                    made.append(transport)
                    transport.local_version = banner
                    transport._channel_counter = first_channel
                    transport.add_server_key(key)
                    transport.start_server(threading.Event(), Host(runs=runs))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], make_fingerprint(key.asbytes())
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            for transport in made:
                transport.close()
                transport.join(20)


def reach(port: int, pin: str, folder: Path) -> ParamikoTransport:
    return ParamikoTransport(SshdTarget(port=port, identity_files=(make_key(folder / "key"),)), pin=pin)


def ask(transport: ParamikoTransport) -> bytes | None:
    channel = transport.open("this")
    channel.send(b"?")
    return channel.receive(20)


@pytest.mark.parametrize(
    ("banner", "first_channel"), [("SSH-2.0-dropbear_2024.86", 0), ("SSH-2.0-other", 7), (OPENSSH, 0)]
)
def test_a_command_runs_whatever_server_it_is(banner: str, first_channel: int, tmp_path: Path) -> None:
    with serving_ssh(banner, first_channel) as (port, pin):
        transport = reach(port, pin, tmp_path)
        assert ask(transport) == b"ran this"
        transport.close()


def test_a_server_that_numbers_its_channels_otherwise_costs_one_connection(tmp_path: Path) -> None:
    with serving_ssh(OPENSSH, first_channel=7) as (port, pin):
        transport = reach(port, pin, tmp_path)
        assert ask(transport) == b"ran this", "step by step, after the first"
        transport.close()


@pytest.mark.parametrize("banner", [OPENSSH, "SSH-2.0-other"])
def test_a_host_that_refuses_commands_is_unfit(banner: str, tmp_path: Path) -> None:
    with serving_ssh(banner, runs=False) as (port, pin):
        transport = reach(port, pin, tmp_path)
        with pytest.raises(HostUnfit, match="refuses to run a command"):
            transport.open("this")


def test_a_server_without_our_algorithms_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paramiko.Transport, "_preferred_ciphers", ("3des-cbc",))
    unfit = pytest.raises(HostUnfit, match="no algorithm in common")
    with serving_ssh("SSH-2.0-old") as (port, pin), unfit:
        reach(port, pin, tmp_path).open("this")
