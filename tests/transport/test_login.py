"""The parts of a login that need no network."""

from __future__ import annotations

import base64
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.transport.dial import IDENT
from remote_train.transport.key_files import (
    choose_key_files,
    is_locked,
    parse_openssh_public,
    parse_public_line,
    read_locked,
    read_public_key,
    show_path,
)
from remote_train.transport.login import Attempts, LoginSocket, make_login_error
from tests.sshd import SshdTarget, make_key, public_line


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("passphrase", ["", "secret words"])
def test_the_public_half_is_read_from_either_file(kind: str, passphrase: str, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", kind, passphrase)
    public = base64.b64decode(public_line(key).split()[1])
    assert read_public_key(key) == public
    assert parse_openssh_public(key.read_bytes()) == public
    key.with_name("key.pub").rename(tmp_path / "moved.pub")
    assert read_public_key(key) == public
    assert read_public_key(tmp_path / "moved.pub") == public
    assert read_public_key(tmp_path / "missing") == b""
    assert read_locked(key) is bool(passphrase)
    assert not read_locked(tmp_path / "missing")


@pytest.mark.parametrize("form", ["PEM", "PKCS8"])
@pytest.mark.parametrize("passphrase", ["", "secret words"])
def test_a_passphrase_shows_in_older_forms_of_a_key_too(form: str, passphrase: str, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "ecdsa")
    argv = ["ssh-keygen", "-q", "-p", "-m", form, "-P", "", "-N", passphrase, "-f", str(key)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    assert read_locked(key) is bool(passphrase)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_key_parsers_fail(data: bytes) -> None:
    parse_public_line(data)
    parse_openssh_public(data)
    is_locked(data)
    parse_openssh_public(base64.b64encode(b"openssh-key-v1\0" + data))


def test_the_configured_keys_replace_the_default_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_key_files([Path("~/a"), Path("/b")]) == [tmp_path / "a", Path("/b")]
    assert [path.name for path in choose_key_files([])] == ["id_ed25519", "id_ecdsa", "id_rsa"]
    assert show_path(tmp_path / ".ssh" / "a") == "~/.ssh/a"
    assert show_path(Path("/b")) == "/b"


def test_a_refusal_without_any_key_says_so() -> None:
    error = make_login_error(SshdTarget(addresses=("10.0.0.1",), user="me"), Attempts())
    assert error.message == "box did not let me in; offered: no key (none usable was found)"
    assert "ssh me@10.0.0.1" in (error.hint or "")
    target = SshdTarget(addresses=("10.0.0.1", "10.0.0.2"), user="me")
    error = make_login_error(target, Attempts(address="10.0.0.2"))
    assert "ssh me@10.0.0.2" in (error.hint or ""), "the one that answered"


def test_the_login_socket_swallows_the_ident_and_gathers_writes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = LoginSocket(socket.create_connection(server.getsockname()))
        peer, _ = server.accept()
    with client, peer:
        assert client.send(IDENT) == len(IDENT)
        client.gather()
        assert client.send(b"one ") == 4
        client.gather()
        client.send(b"two ")
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(10)
        client.release()
        client.release()
        client.send(b"three")
        peer.settimeout(10)
        assert peer.recv(13, socket.MSG_WAITALL) == b"one two three"


def test_held_back_data_survives_a_full_buffer() -> None:
    data = bytes(range(256)) * 40_000
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = LoginSocket(socket.create_connection(server.getsockname()))
        peer, _ = server.accept()
    with client, peer:
        client.send(IDENT)
        client.settimeout(0.01)
        client.gather()
        client.send(data)
        sender = threading.Thread(target=client.release)
        sender.start()
        assert peer.recv(len(data), socket.MSG_WAITALL) == data
        sender.join()
