"""Whom we trust: a real sshd whose key is known, unknown, changed, revoked or pinned."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import (
    HostKeyRefused,
)
from remote_train.transport.dial import Dialled, Dialling, dial_all
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.paramiko_ssh import ParamikoTransport
from remote_train.transport.paramiko_tuning import choose_key_types
from tests.sshd import (
    Sshd,
    SshdTarget,
    key_bytes,
    make_key,
    public_line,
    read_to_end,
    run,
    running_sshd,
)

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.sshd


def refused_key(sshd: Sshd, target: SshdTarget | None = None, **options: object) -> HostKeyRefused:
    """The refusal of the host's key, after a check that no login was begun."""
    with pytest.raises(HostKeyRefused) as caught:
        run(target or sshd.target(), **options)  # type: ignore[arg-type]
    assert "userauth" not in sshd.wait_log("do_cleanup"), "nothing may be sent to a wrong host"
    assert caught.value.exit_code == 11
    return caught.value


def test_a_known_host_is_logged_in_to(sshd: Sshd) -> None:
    outcome = dial_all([sshd.target()])[0]
    assert isinstance(outcome, Dialled)
    assert run(sshd.target(), dialled=outcome) == b"in\n"
    log = sshd.read_log()
    assert log.count("Connection from") == 1
    assert "kex: client->server cipher: aes128-gcm@openssh.com" in log
    requests = [line for line in log.splitlines() if "session_input_channel_req" in line]
    assert len(requests) == 1, "no pty, no subsystem, no environment, no agent forwarding"
    assert "req exec" in requests[0]


def test_a_changed_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    sshd.known_hosts.write_text(f"# old\n[127.0.0.1]:{sshd.port} {public_line(other)}\n")
    error = refused_key(sshd, ask=lambda _: pytest.fail("a changed key is never asked about"))
    for words in (make_fingerprint(key_bytes(other)), make_fingerprint(key_bytes(sshd.host_keys[0]))):
        assert words in error.message
    assert f"{sshd.known_hosts}:2" in error.message
    assert "remote-train hosts trust box" in (error.hint or "")


def test_a_revoked_key_is_refused_though_it_is_also_known_and_pinned(sshd: Sshd) -> None:
    with sshd.known_hosts.open("a") as file:
        file.write(f"@revoked * {public_line(sshd.host_keys[0])}\n")
    error = refused_key(sshd, pin=make_fingerprint(key_bytes(sshd.host_keys[0])))
    assert "revoked" in error.message
    assert error.facts["where"] == f"{sshd.known_hosts}:2"


def test_an_unknown_key_is_refused_without_a_person(sshd: Sshd) -> None:
    sshd.known_hosts.unlink()
    error = refused_key(sshd)
    fingerprint = make_fingerprint(key_bytes(sshd.host_keys[0]))
    assert f"is not known: it offers ssh-ed25519 {fingerprint}" in error.message
    assert "remote-train hosts trust box" in (error.hint or "")
    assert not sshd.known_hosts.exists()


def test_a_person_may_say_no(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert refused_key(sshd, ask=lambda _: False).facts["declined"]
    assert sshd.known_hosts.read_text() == ""


@pytest.mark.parametrize("hashed", [False, True])
def test_a_person_may_say_yes_and_is_asked_once(hashed: bool, sshd: Sshd) -> None:
    target = sshd.target(hash_known_hosts=hashed)
    sshd.known_hosts.write_text("other ssh-ed25519 AAAA")
    questions: list[str] = []
    for _ in range(2):
        assert run(target, ask=lambda question: not questions.append(question)) == b"in\n"  # type: ignore[func-returns-value]
    assert len(questions) == 1
    assert make_fingerprint(key_bytes(sshd.host_keys[0])) in questions[0]
    name, _, key = sshd.known_hosts.read_text().splitlines()[1].partition(" ")
    assert key == public_line(sshd.host_keys[0])
    assert (name == f"[127.0.0.1]:{sshd.port}") is not hashed


def test_an_accepted_key_that_cannot_be_written_is_said_and_kept_for_the_session(
    sshd: Sshd, tmp_path: Path
) -> None:
    notices: list[str] = []
    folder = tmp_path / "file"
    folder.write_text("")
    target = sshd.target(known_hosts_files=(folder / "known_hosts",))
    transport = ParamikoTransport(target, ask=lambda _: len(notices) == 0, notify=notices.append)
    for _ in range(2):
        assert read_to_end(transport.open("echo in")) == b"in\n"
    assert len(notices) == 1
    assert "could not be remembered" in notices[0]


def test_hashed_and_aliased_names_and_broken_lines(sshd: Sshd) -> None:
    line = public_line(sshd.host_keys[0])
    notices: list[str] = []
    sshd.known_hosts.write_text(f"@broken x\n@cert-authority *.example {line}\nbox  \t{line}\n")
    assert run(sshd.target(host_key_alias="BOX"), notify=notices.append) == b"in\n"
    assert notices == [f"{sshd.known_hosts}:1: unknown marker '@broken', line skipped"]
    sshd.known_hosts.write_text(f"box {line}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", str(sshd.known_hosts)], check=True, capture_output=True)
    assert sshd.known_hosts.read_text().startswith("|1|")
    assert run(sshd.target(host_key_alias="box")) == b"in\n"


def test_a_key_known_on_port_22_is_good_on_another_port(sshd: Sshd, tmp_path: Path) -> None:
    sshd.known_hosts.write_text(f"127.0.0.1 {public_line(sshd.host_keys[0])}\n")
    assert run(sshd.target()) == b"in\n"
    sshd.known_hosts.write_text(f"127.0.0.1 {public_line(make_key(tmp_path / 'k'))}\n")
    assert refused_key_kind(sshd) == "unknown"


def refused_key_kind(sshd: Sshd) -> object:
    with pytest.raises(HostKeyRefused) as caught:
        run(sshd.target())
    return caught.value.facts["verdict"]


def test_a_host_known_by_an_authority_only_is_refused_with_that_reason(sshd: Sshd) -> None:
    sshd.known_hosts.write_text(f"@cert-authority * {public_line(sshd.host_keys[0])}\n")
    assert "certificate authority" in refused_key(sshd).message


def test_a_pin_beats_the_files(sshd: Sshd, tmp_path: Path) -> None:
    right = make_fingerprint(key_bytes(sshd.host_keys[0]))
    error = refused_key(sshd, pin=make_fingerprint(key_bytes(make_key(tmp_path / "k"))))
    assert "not the pinned one" in error.message
    assert right in error.message
    sshd.known_hosts.unlink()
    assert run(sshd.target(), pin=right) == b"in\n"


def test_the_key_type_we_know_is_asked_for(tmp_path: Path) -> None:
    with running_sshd(tmp_path, kinds=("ed25519", "ecdsa", "rsa")) as sshd:
        for key, kind in ((sshd.host_keys[2], "rsa-sha2-512"), (sshd.host_keys[1], "ecdsa-sha2-nistp256")):
            sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {public_line(key)}\n")
            assert run(sshd.target()) == b"in\n"
            assert f"kex: host key algorithm: {kind}" in sshd.read_log()


def test_key_types_are_ours_first_and_only_what_can_be_checked() -> None:
    supported = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    assert choose_key_types(("ssh-rsa", "ssh-dss"), supported) == (*supported[2:], *supported[:2])
    assert choose_key_types((), supported) == supported


def test_an_address_with_a_wrong_key_is_dropped_for_the_next(sshd: Sshd, tmp_path: Path) -> None:
    wrong = ["ListenAddress 127.0.0.2"]
    with running_sshd(tmp_path / "wrong", [f"Port {sshd.port}", *wrong]) as other:
        notices: list[str] = []
        dialled = Dialling(sshd.target(addresses=("127.0.0.2",))).wait()
        target = sshd.target(addresses=("127.0.0.2", "127.0.0.1"))
        assert run(target, dialled=dialled, notify=notices.append) == b"in\n"
        assert len(notices) == 1
        assert "127.0.0.2 is not used" in notices[0]
        assert "userauth" not in other.read_log()
        with pytest.raises(HostKeyRefused):
            run(sshd.target(addresses=("127.0.0.2", "127.0.0.3")))


def test_a_key_that_changes_while_we_are_away_is_noticed_on_coming_back(sshd: Sshd, tmp_path: Path) -> None:
    transport = ParamikoTransport(sshd.target())
    assert read_to_end(transport.open("echo in")) == b"in\n"
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {public_line(make_key(tmp_path / 'k'))}\n")
    with pytest.raises(HostKeyRefused):
        transport.open("echo in")
