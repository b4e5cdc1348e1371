"""How we log in to a real sshd, and how a refusal reads."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import (
    LoginRefused,
)
from remote_train.transport import paramiko_keys
from tests.sshd import (
    Sshd,
    SshdTarget,
    make_key,
    public_line,
    run,
    running_agent,
    running_sshd,
)

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.sshd


def refused_login(sshd: Sshd, target: SshdTarget, connections: int = 1) -> LoginRefused:
    """The refusal of a login, after a check that it was tried over one connection only."""
    with pytest.raises(LoginRefused) as caught:
        run(target)
    assert caught.value.exit_code == 12
    assert sshd.read_log().count("Connection from") == connections
    return caught.value


def test_a_refused_login_names_keys_and_methods(sshd: Sshd, tmp_path: Path) -> None:
    wrong, missing = make_key(tmp_path / "wrong", "ecdsa"), tmp_path / "missing"
    error = refused_login(sshd, sshd.target(identity_files=(wrong, missing)))
    assert error.facts["tried"] == [str(wrong)]
    assert error.facts["methods"] == ["publickey"]
    assert f"{missing} (no such file or directory)" in error.message
    assert sshd.read_log().count("method publickey") == 1


def test_the_second_key_lets_us_in_over_the_same_connection(sshd: Sshd, tmp_path: Path) -> None:
    wrong = [make_key(tmp_path / kind, kind) for kind in ("ecdsa", "rsa")]
    assert run(sshd.target(identity_files=(*wrong, sshd.user_key))) == b"in\n"
    log = sshd.read_log()
    assert log.count("Connection from") == 1
    assert log.count("attempt ") >= 3


def test_too_many_keys_are_said_in_the_hosts_words(tmp_path: Path) -> None:
    with running_sshd(tmp_path, ["MaxAuthTries 2"]) as sshd:
        wrong = tuple(make_key(tmp_path / f"wrong{n}") for n in range(4))
        error = refused_login(sshd, sshd.target(identity_files=wrong))
    assert "Too many authentication failures" in error.message


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["PubkeyAuthentication no", "PasswordAuthentication yes"], "the host accepts: password"),
        (
            ["AuthenticationMethods publickey,password", "PasswordAuthentication yes"],
            "something more is asked for",
        ),
        (["DenyUsers *"], "the host accepts: publickey"),
    ],
)
def test_other_ways_of_login_are_named(lines: list[str], words: str, tmp_path: Path) -> None:
    with running_sshd(tmp_path, lines) as sshd:
        assert words in refused_login(sshd, sshd.target()).message


def test_an_encrypted_key_is_skipped_with_its_reason(sshd: Sshd, tmp_path: Path) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret words")
    error = refused_login(sshd, sshd.target(identity_files=(locked,)))
    assert error.facts["tried"] == []
    assert f"{locked} (needs its passphrase" in error.message


def test_what_is_no_key_is_skipped(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    error = refused_login(sshd, sshd.target(identity_files=(tmp_path / "text", tmp_path)))
    assert "text (not a key" in error.message
    assert "is a directory" in error.message


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_encrypted_key_is_used_by_way_of_the_agent(kind: str, sshd: Sshd, tmp_path: Path) -> None:
    plain = make_key(tmp_path / "key", kind)
    (sshd.folder / "authorized_keys").write_text(public_line(plain))
    with running_agent(tmp_path, [plain]) as agent:
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-N", "secret words", "-f", str(plain)],
            check=True,
            capture_output=True,
        )
        target = sshd.target(identity_files=(plain,), identity_agent=str(agent), identities_only=True)
        assert run(target, "echo in [$SSH_AUTH_SOCK]") == b"in []\n", "and the agent is not forwarded"


def test_a_key_that_only_the_agent_holds(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "home"
    empty.mkdir()
    monkeypatch.setenv("HOME", str(empty))
    wrong = make_key(tmp_path / "wrong")
    with running_agent(tmp_path, [wrong, sshd.user_key]) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        assert run(sshd.target(identity_files=(), identity_agent=None)) == b"in\n"
        error = refused_login(sshd, sshd.target(identity_files=(wrong,), identity_agent="none"), 2)
        assert error.facts["tried"] == [str(wrong)]
        only = sshd.target(identity_files=(wrong,), identity_agent=str(agent), identities_only=True)
        assert refused_login(sshd, only, 3).facts["tried"] == [str(wrong)]


def test_the_default_keys_are_used_without_any_setting(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    sshd.user_key.rename(tmp_path / ".ssh" / "id_ed25519")
    assert run(sshd.target(identity_files=())) == b"in\n"
    (sshd.folder / "authorized_keys").write_text("")
    assert refused_login(sshd, sshd.target(identity_files=()), 2).facts["tried"] == ["~/.ssh/id_ed25519"]


@pytest.mark.parametrize("behaviour", ["hangs", "missing"])
def test_an_agent_that_does_not_answer_is_left_out(
    behaviour: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paramiko_keys, "AGENT_SECONDS", 0.2)
    place = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        if behaviour == "hangs":
            listener.bind(str(place))
            listener.listen()
        error = refused_login(
            sshd, sshd.target(identity_files=(tmp_path / "none",), identity_agent=str(place))
        )
    assert f"the keys of the agent at {place}" in error.message
