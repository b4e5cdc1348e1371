"""Logins for which a person is needed: passphrases, a host's own questions, passwords, certificates."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import paramiko  # type: ignore[import-untyped]
import pytest

from remote_train import reach
from remote_train.config.host_spec import HostSpec
from remote_train.errors import ConnectionLost, LoginRefused
from remote_train.reconnect import Patience, reconnect
from remote_train.transport.keyholder import Keyholder
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.paramiko_ssh import ParamikoTransport
from remote_train.transport.vigil import Vigil
from tests.core.cutting_link import Ears
from tests.host.account_kit import the_agent
from tests.sshd import Sshd, SshdTarget, make_key, public_line, run, running_sshd
from tests.transport.test_other_servers import Host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Person:
    """Types what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: str | None) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.answers = list(answers)
        self.holder = Keyholder(lambda _question: False, self.type_in)

    def type_in(self, prompt: str, echo: bool) -> str | None:
        self.asked.append((prompt, echo))
        return self.answers.pop(0)


@pytest.mark.sshd
def test_a_passphrase_is_asked_once_for_all_connections(sshd: Sshd, tmp_path: Path) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret words")
    (sshd.folder / "authorized_keys").write_text(public_line(locked))
    person = Person("wrong", "secret words")
    target = sshd.target(identity_files=(locked,))
    assert run(target, ask=person.holder) == b"in\n"
    assert run(target, ask=person.holder.unasked()) == b"in\n"
    assert [echo for _, echo in person.asked] == [False, False]
    assert str(locked) in person.asked[0][0]


@pytest.mark.sshd
def test_a_passphrase_of_a_key_that_the_host_would_not_take_is_not_asked(sshd: Sshd, tmp_path: Path) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret words")
    person = Person()
    with pytest.raises(LoginRefused, match=r"offered: .*locked"):
        run(sshd.target(identity_files=(locked,)), ask=person.holder)
    assert person.asked == []


@pytest.mark.sshd
@pytest.mark.parametrize(
    ("kind", "beside"),
    [("ed25519", True), ("ecdsa", False), pytest.param("rsa", True, marks=pytest.mark.slow)],
)
def test_a_certificate_lets_us_in(kind: str, beside: bool, tmp_path: Path) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "key", kind)
    with running_sshd(tmp_path / "sshd", [f"TrustedUserCAKeys {authority}.pub"]) as sshd:
        (sshd.folder / "authorized_keys").write_text("")
        target = sshd.target(identity_files=(key,))
        subprocess.run(
            ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", target.user, f"{key}.pub"], check=True
        )
        certificate = tmp_path / "key-cert.pub"
        if not beside:
            certificate = certificate.rename(tmp_path / "elsewhere.pub")
            target = sshd.target(identity_files=(key,), certificate_files=(certificate,))
        assert run(target) == b"in\n"


class Asking(Host):
    """Asks for a password and a code after a key, or at once."""

    def __init__(self, methods: str, *, after_key: bool) -> None:
        super().__init__(runs=True)
        self.methods = methods
        self.after_key = after_key
        self.rounds = 0

    def get_allowed_auths(self, _user: str) -> str:
        return self.methods

    def check_auth_none(self, _user: str) -> int:
        return int(paramiko.AUTH_FAILED)

    def check_auth_publickey(self, _user: str, _key: object) -> int:
        if not self.after_key:
            return int(paramiko.AUTH_FAILED)
        self.methods = "keyboard-interactive"
        return int(paramiko.AUTH_PARTIALLY_SUCCESSFUL)

    def check_auth_password(self, _user: str, password: str) -> int:
        return int(paramiko.AUTH_SUCCESSFUL if password == "pw" else paramiko.AUTH_FAILED)

    def check_auth_interactive(self, _user: str, _submethods: str) -> object:
        self.rounds += 1
        return paramiko.InteractiveQuery("Welcome", "\x1b[31mred", ("Password: ", False), ("Code: ", True))

    def check_auth_interactive_response(self, responses: list[str]) -> object:
        return int(paramiko.AUTH_SUCCESSFUL if responses == ["pw", "123"] else paramiko.AUTH_FAILED)


@contextlib.contextmanager
def serving(
    methods: str, *, after_key: bool = False, kind: type[Asking] | None = None
) -> Iterator[tuple[SshdTarget, list[Asking]]]:
    key = paramiko.ECDSAKey.generate()
    made: list[paramiko.Transport] = []
    hosts: list[Asking] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    transport = paramiko.Transport(server.accept()[0])
                    made.append(transport)
                    transport.add_server_key(key)
                    hosts.append((kind or Asking)(methods, after_key=after_key))
                    transport.start_server(threading.Event(), hosts[-1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            pin = make_fingerprint(key.asbytes())
            yield SshdTarget(port=server.getsockname()[1], pin=pin), hosts
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            for transport in made:
                transport.close()
                transport.join(20)


def enter(target: SshdTarget, person: Keyholder | None) -> bytes | None:
    transport = ParamikoTransport(target, ask=person)
    try:
        channel = transport.open("this")
        channel.send(b"?")
        return channel.receive(20)
    finally:
        transport.close()


@pytest.mark.parametrize("after_key", [True, False])
def test_the_hosts_own_questions_are_asked_as_it_wants(after_key: bool, tmp_path: Path) -> None:
    methods = "publickey" if after_key else "keyboard-interactive"
    with serving(methods, after_key=after_key) as (served, _):
        target = replace(served, identity_files=(make_key(tmp_path / "key"),))
        person = Person("pw", "123", "123")
        assert enter(target, person.holder) == b"ran this"
        assert [echo for _, echo in person.asked] == [False, True]
        assert "\x1b" not in person.asked[0][0]
        assert enter(target, person.holder) == b"ran this"
        assert len(person.asked) == 3, "the password was held, the code was not"


def test_nobody_is_asked_without_a_terminal_and_the_error_says_what_to_do() -> None:
    with serving("keyboard-interactive,password") as (target, hosts):
        with pytest.raises(LoginRefused, match="the host accepts: keyboard-interactive, password") as caught:
            enter(target, None)
        assert "on a terminal" in str(caught.value.hint)
        assert hosts[0].rounds == 0


def test_a_wrong_answer_is_not_tried_again() -> None:
    with serving("keyboard-interactive") as (target, hosts):
        person = Person("pw", "999")
        with pytest.raises(LoginRefused, match="offered: keyboard-interactive") as caught:
            enter(target, person.holder)
        assert caught.value.exit_code == 12
        assert [host.rounds for host in hosts] == [1]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_password_is_asked_for_only_when_the_user_wants_it(wanted: bool) -> None:
    with serving("password") as (served, _):
        target = replace(served, password=wanted)
        person = Person("pw")
        if wanted:
            assert enter(target, person.holder) == b"ran this"
        else:
            with pytest.raises(LoginRefused) as caught:
                enter(target, person.holder)
            assert "password = true" in str(caught.value.hint)
        assert len(person.asked) == int(wanted)


class Opened:
    """As much of a session as a link needs: the host here runs no agent."""

    def __init__(self, transport: ParamikoTransport, *_: object) -> None:
        self.transport = transport
        transport.open("this")

    def submit(self, *_: object, **__: object) -> None:
        pass

    def close(self) -> None:
        self.transport.close()


def test_who_comes_back_is_not_asked_and_gives_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "open_session", Opened)
    with serving("keyboard-interactive") as (target, hosts):
        person = Person("pw", "123")
        spec = HostSpec("box", ("127.0.0.1",), port=target.port, host_key=target.pin)
        link = reach.HostLink(spec, the_agent(), person.holder, [])
        link.connect().close()
        patience = Patience("r-1", None, Ears())
        with pytest.raises(LoginRefused) as caught:
            reconnect(link, ConnectionLost("cut"), patience, lambda _session: None)
        assert "remote-train logs -f r-1" in str(caught.value.hint)
        assert len(person.asked) == 2
        assert len(hosts) == 2


def test_a_password_that_was_wrong_is_not_held() -> None:
    with serving("password") as (served, _):
        target = replace(served, password=True)
        person = Person("mistyped", "pw")
        with pytest.raises(LoginRefused):
            enter(target, person.holder)
        assert enter(target, person.holder) == b"ran this"
        assert len(person.asked) == 2


class Chatting(Asking):
    """Has one more thing to say, for ever."""

    def check_auth_interactive(self, _user: str, _submethods: str) -> object:
        self.rounds += 1
        return paramiko.InteractiveQuery("Duo", "Pushed to your phone")

    def check_auth_interactive_response(self, responses: list[str]) -> object:
        del responses
        return self.check_auth_interactive("", "")


def test_a_host_cannot_keep_us_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[float] = []
    monkeypatch.setattr(Vigil, "grant", lambda _self, seconds: granted.append(seconds))
    told: list[str] = []
    with serving("keyboard-interactive", kind=Chatting) as (target, hosts):
        person = Person()
        with pytest.raises(LoginRefused, match="more than 10 rounds"):
            ParamikoTransport(target, ask=person.holder, notify=told.append).open("this")
        with pytest.raises(LoginRefused, match="no key"):
            enter(target, person.holder.unasked())
        assert [host.rounds for host in hosts] == [11, 0]
    assert granted == [60.0], "for the telephone that may ring at once"
    assert told[:2] == ["box says: Duo", "box says: Pushed to your phone"]
