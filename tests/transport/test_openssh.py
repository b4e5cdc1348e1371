"""The user's own ssh against a real sshd: whom it trusts, how it fails, what it leaves behind."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import (
    ConfigError,
    ConnectionLost,
    HostKeyRefused,
    HostUnfit,
    LoginRefused,
    Unreachable,
)
from remote_train.transport.dial import Dialling, Endpoint
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.login import HostIdentity
from remote_train.transport.openssh import make_environment
from remote_train.transport.openssh_words import Failure, explain, parse_story
from tests.sshd import (
    Sshd,
    SshdTarget,
    free_port,
    key_bytes,
    make_key,
    openssh,
    public_line,
    read_to_end,
    running_master,
    running_sshd,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.transport.openssh import OpensshTransport


pytestmark = pytest.mark.sshd


def run(sshd: Sshd, config: str = "", **options: object) -> bytes:
    transport = openssh(sshd, config, **options)
    try:
        return read_to_end(transport.open("echo in"))
    finally:
        transport.close()


def refused_key(sshd: Sshd, **options: object) -> HostKeyRefused:
    """The refusal of the host's key, after a check that no login was begun."""
    before = len(sshd.read_log())
    with pytest.raises(HostKeyRefused) as caught:
        run(sshd, **options)  # type: ignore[arg-type]
    wait_until(lambda: "do_cleanup" in sshd.read_log()[before:], "sshd to see the end")
    assert "userauth" not in sshd.read_log()[before:], "nothing may be sent to a wrong host"
    assert caught.value.exit_code == 11
    return caught.value


@pytest.fixture
def transport(sshd: Sshd) -> Iterator[OpensshTransport]:
    """A transport to the sshd, closed in the end."""
    made = openssh(sshd)
    yield made
    made.close()


def find_ssh(sshd: Sshd) -> set[int]:
    """The ssh processes of this machine that were started for an sshd."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"ssh" and str(sshd.port).encode() in words:
            found.add(int(entry.parent.name))
    return found


# ---- the stream, and how it ends ----


def test_sixty_four_megabytes_each_way_and_nothing_stays(sshd: Sshd) -> None:
    sent = os.urandom(1 << 20) * 64
    transport = openssh(sshd)
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
    assert find_ssh(sshd)
    transport.close()
    assert digest.digest() == hashlib.sha256(sent).digest()
    wait_until(lambda: not find_ssh(sshd), "ssh to be gone")
    requests = [line for line in sshd.read_log().splitlines() if "session_input_channel_req" in line]
    assert [line.split(" req ")[1].split()[0] for line in requests] == ["exec"], (
        "no pty, no environment, no forwarding"
    )


def test_what_ssh_has_seen_is_known_afterwards(sshd: Sshd, transport: OpensshTransport) -> None:
    read_to_end(transport.open("echo in"))
    key = make_fingerprint(key_bytes(sshd.host_keys[0]))
    assert transport.seen == {"host_key": f"ssh-ed25519 {key}", "login": "publickey"}


def test_a_command_that_ends_with_255_has_ended(transport: OpensshTransport) -> None:
    assert read_to_end(transport.open("printf bye; exit 255")) == b"bye"
    assert read_to_end(transport.open("printf bye; kill -9 $$")) == b"bye"


def test_a_session_or_an_ssh_that_is_killed_is_a_lost_connection(transport: OpensshTransport) -> None:
    channel = transport.open("echo $PPID; exec cat")
    os.kill(int(channel.receive(30) or b""), signal.SIGKILL)
    with pytest.raises(ConnectionLost):
        channel.receive(30)
    with pytest.raises(ConnectionLost):
        channel.send(bytes(1 << 20))
    channel = transport.open("echo up; exec cat")
    assert channel.receive(30) == b"up\n"
    os.kill(channel.group, signal.SIGKILL)
    with pytest.raises(ConnectionLost, match="ended by SIGKILL"):
        channel.receive(30)
    assert read_to_end(transport.open("echo again")) == b"again\n"


@pytest.mark.slow
def test_a_frozen_connection_is_closed_all_the_same(sshd: Sshd) -> None:
    channel = openssh(sshd).open("echo $PPID; exec cat")
    session = int(channel.receive(30) or b"")
    os.kill(session, signal.SIGSTOP)
    try:
        channel.close()
        assert channel.receive(30) == b""
        wait_until(lambda: not find_ssh(sshd), "ssh to be gone")
    finally:
        os.kill(session, signal.SIGKILL)


def test_a_shared_connection_of_the_users_is_used_and_survives(sshd: Sshd) -> None:
    with running_master(sshd) as master:
        transport = openssh(sshd, f"ControlPath {sshd.folder}/master\nControlMaster auto\nControlPersist yes")
        assert read_to_end(transport.open("echo in")) == b"in\n"
        assert transport.seen == {"login": "a connection of ssh's that stands already"}
        channel = transport.open("echo up; exec cat")
        assert channel.receive(30) == b"up\n"
        os.kill(channel.group, signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            channel.receive(30)
        assert sshd.read_log().count("Accepted publickey") == 1, "no login of its own"
        assert master.poll() is None
        channel = transport.open("echo up; exec cat")
        assert channel.receive(30) == b"up\n"
        master.kill()
        with pytest.raises(ConnectionLost):
            channel.receive(30)
        transport.close()


@pytest.mark.slow
def test_no_shared_connection_is_left_behind(sshd: Sshd) -> None:
    config = f"ControlPath {sshd.folder}/mine\nControlMaster auto\nControlPersist yes"
    assert run(sshd, config) == b"in\n"
    assert not (sshd.folder / "mine").exists()
    wait_until(lambda: not find_ssh(sshd), "ssh to be gone")


# ---- whom it trusts ----


def test_a_changed_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    sshd.known_hosts.write_text(f"# old\n[127.0.0.1]:{sshd.port} {public_line(other)}\n")
    for strict in ("yes", "ask", "accept-new"):
        error = refused_key(sshd, strict=strict)
        for words in (
            make_fingerprint(key_bytes(other)),
            make_fingerprint(key_bytes(sshd.host_keys[0])),
            f"{sshd.known_hosts}:2",
        ):
            assert words in error.message
        assert "remote-train hosts trust box" in (error.hint or "")
        assert error.facts["verdict"] == "changed"


@pytest.mark.parametrize("strict", ["ask", "accept-new"])
def test_a_key_of_another_type_than_the_known_is_no_question(strict: str, sshd: Sshd, tmp_path: Path) -> None:
    old = public_line(make_key(tmp_path / "old", "ecdsa"))
    for line in (
        old,
        "ssh-future AAAACnNzaC1mdXR1cmUAAAABeA==",
    ):  # ssh itself asks about a type that it cannot read
        sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {line}\n")
        error = refused_key(sshd, strict=strict)
        assert error.facts["verdict"] == "changed"
        for key in (base64.b64decode(line.split()[1]), key_bytes(sshd.host_keys[0])):
            assert make_fingerprint(key) in error.message
        assert len(sshd.known_hosts.read_text().splitlines()) == 1, "nothing was added"


def test_a_revoked_key_is_refused_though_it_is_also_known_and_pinned(sshd: Sshd) -> None:
    with sshd.known_hosts.open("a") as file:
        file.write(f"@revoked * {public_line(sshd.host_keys[0])}\n")
    for pin in (None, make_fingerprint(key_bytes(sshd.host_keys[0]))):
        error = refused_key(sshd, pin=pin)
        assert error.facts["verdict"] == "revoked"
        assert error.facts["where"] == f"{sshd.known_hosts}:2"


def test_an_unknown_key_is_refused_without_a_person_unless_new_ones_are_accepted(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    fingerprint = make_fingerprint(key_bytes(sshd.host_keys[0]))
    assert f"it offers ssh-ed25519 {fingerprint}" in refused_key(sshd, strict="ask").message
    assert sshd.known_hosts.read_text() == ""
    assert run(sshd, strict="accept-new") == b"in\n"
    assert public_line(sshd.host_keys[0]) in sshd.known_hosts.read_text()


def test_a_pin_decides_alone(sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "k")
    error = refused_key(sshd, pin=make_fingerprint(key_bytes(other)))
    assert "not the pinned one" in error.message
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {public_line(other)}\n")
    assert run(sshd, pin=make_fingerprint(key_bytes(sshd.host_keys[0]))) == b"in\n"


def certify(sshd: Sshd, authority: Path, *options: str) -> list[str]:
    """Sign the host's key; return the lines of sshd_config that use the certificate."""
    key = sshd.host_keys[0]
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "box", "-h", *options, str(key) + ".pub"]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return [f"HostCertificate {key}-cert.pub"]


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[Sshd]:
    """An sshd whose key an authority has signed, and which is known by that authority only."""
    authority = make_key(tmp_path / "authority")
    place = tmp_path / "sshd" / "host_ed25519-cert.pub"
    with running_sshd(tmp_path / "sshd", [f"HostCertificate {place}"]) as sshd:
        certify(sshd, authority, "-n", "127.0.0.1")
        sshd.known_hosts.write_text(f"@cert-authority * {public_line(authority)}\n")
        reload(sshd)
        yield sshd


def reload(sshd: Sshd) -> None:
    """Have sshd read its files again."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(sshd.folder / "sshd_config").encode() in b" ".join(words):
            os.kill(int(entry.parent.name), signal.SIGHUP)
    wait_until(lambda: sshd.read_log().count("Server listening") == 2, "sshd to listen again")


def test_a_certificate_of_a_trusted_authority_is_enough(certified: Sshd, tmp_path: Path) -> None:
    assert run(certified) == b"in\n"
    certified.known_hosts.write_text(f"@cert-authority * {public_line(make_key(tmp_path / 'stranger'))}\n")
    assert refused_key(certified).facts["verdict"] == "unknown"


def test_a_revoked_certificate_or_authority_is_refused(certified: Sshd, tmp_path: Path) -> None:
    trusted = certified.known_hosts.read_text()
    for key in (certified.host_keys[0], tmp_path / "authority"):
        certified.known_hosts.write_text(f"{trusted}@revoked * {public_line(key)}\n")
        assert refused_key(certified).facts["verdict"] == "revoked"
    certified.known_hosts.write_text(trusted)
    revoked = tmp_path / "revoked"
    subprocess.run(
        ["ssh-keygen", "-q", "-k", "-f", str(revoked), str(certified.host_keys[0]) + ".pub"], check=True
    )
    with pytest.raises(HostKeyRefused) as caught:
        run(certified, f"RevokedHostKeys {revoked}")
    assert caught.value.facts["verdict"] == "revoked"


@pytest.mark.parametrize("known", [True, False])
def test_a_key_that_could_not_be_looked_up_is_not_told_as_revoked_or_unknown(known: bool, sshd: Sshd) -> None:
    if not known:
        sshd.known_hosts.write_text("")
    with pytest.raises(HostKeyRefused, match=r"Error checking host key .*: No such file") as caught:
        run(sshd, f"RevokedHostKeys {sshd.folder}/none")
    assert caught.value.facts["verdict"] == "refused"


# ---- how it fails ----


def test_a_refused_login_names_the_keys_and_the_methods(sshd: Sshd) -> None:
    (sshd.folder / "authorized_keys").write_text("")
    with pytest.raises(LoginRefused) as caught:
        run(sshd)
    assert caught.value.facts["methods"] == ["publickey"]
    assert str(sshd.user_key) in caught.value.message
    assert sshd.read_log().count("Failed publickey") <= 1


def test_a_key_that_others_may_read_is_told_so(sshd: Sshd) -> None:
    sshd.user_key.chmod(0o644)
    with pytest.raises(LoginRefused) as caught:
        run(sshd)
    assert f"chmod 600 {sshd.user_key}" in (caught.value.hint or "")


def test_a_right_key_that_is_not_enough_is_told_so(tmp_path: Path) -> None:
    lines = ["AuthenticationMethods publickey,password", "PasswordAuthentication yes"]
    with running_sshd(tmp_path, lines) as sshd, pytest.raises(LoginRefused) as caught:
        run(sshd)
    assert f"{sshd.user_key} (ED25519) was right, and something more is asked for" in caught.value.message
    assert "password = true" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        (["PASSED", "CONTINUE"], "run the command on a terminal, where this host can ask (keyboard-inter"),
        (["PASSED", "CONTINUE", "ASKS", "CONTINUE"], "log in once by hand"),
        ([], "`ssh-add` it first"),
    ],
)
def test_who_accepts_a_key_and_wants_a_code_too_wants_a_terminal(log: list[str], hint: str) -> None:
    lines = {
        "PASSED": 'Authenticated using "publickey" with partial success.',
        "CONTINUE": "debug1: Authentications that can continue: keyboard-interactive",
        "ASKS": "debug1: Next authentication method: keyboard-interactive",
    }
    story = parse_story(
        [
            f"debug1: Server host key: ssh-ed25519 SHA256:{'x' * 43}",
            "debug1: Authentications that can continue: publickey",
            "debug1: Offering public key: /k ED25519 SHA256:x explicit",
            "debug1: Server accepts key: /k ED25519 SHA256:x explicit",
            *(lines[name] for name in log),
            "me@box: Permission denied (keyboard-interactive).",
        ]
    )
    error = explain(Failure(HostIdentity(SshdTarget(), ()), "127.0.0.1", story))
    assert isinstance(error, LoginRefused)
    assert hint in (error.hint or "")


def test_nobody_listening_is_unreachable(sshd: Sshd) -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        run(replace(sshd, port=free_port()))


def test_a_host_that_opens_no_session_is_unfit(tmp_path: Path) -> None:
    with running_sshd(tmp_path, ["MaxSessions 0"]) as sshd, pytest.raises(HostUnfit, match="open failed"):
        run(sshd)


def test_an_option_that_ssh_refuses_is_shown_in_its_words(sshd: Sshd) -> None:
    with pytest.raises(ConfigError, match="Bad configuration option: bogus"):
        run(sshd, "Bogus yes")


@pytest.mark.parametrize(
    ("proxy", "error"),
    [
        ("sh -c 'echo ssh: connect to host j port 22: Connection refused >&2; exit 255'", Unreachable),
        (
            "sh -c 'echo ssh: Could not resolve hostname j: Name or service not known >&2; exit 255'",
            Unreachable,
        ),
        ("sh -c 'echo channel 0: open failed: connect failed: No route to host >&2; exit 255'", Unreachable),
        ("sh -c 'exit 1'", Unreachable),
        ("sh -c 'echo channel 0: open failed: administratively prohibited: x >&2; exit 255'", HostUnfit),
        ("sh -c 'echo Host key verification failed. >&2; exit 255'", HostKeyRefused),
        ("sh -c 'echo me@j: Permission denied \\(publickey\\). >&2; exit 255'", LoginRefused),
        ("sh -c 'echo SSH-2.0-x; echo nonsense; cat >/dev/null & sleep 0.1'", ConnectionLost),
    ],
)
def test_what_happens_on_the_way(proxy: str, error: type[Exception], sshd: Sshd) -> None:
    transport = openssh(sshd, f"ProxyCommand {proxy}")
    transport._ways = [replace(way, proxied=True) for way in transport._ways]  # type: ignore[type-var]
    with pytest.raises(error) as caught:
        transport.open("echo in")
    assert transport._channel is None
    if isinstance(caught.value, HostKeyRefused):
        assert caught.value.facts["verdict"] == "refused", "nobody said why"


def test_an_address_with_a_wrong_key_is_dropped_for_the_next(sshd: Sshd, tmp_path: Path) -> None:
    with running_sshd(tmp_path / "wrong", [f"Port {sshd.port}", "ListenAddress 127.0.0.2"]) as other:
        sshd.known_hosts.write_text(f"[127.0.0.2]:{sshd.port} {public_line(sshd.host_keys[0])}\n")
        notices: list[str] = []
        dialled = Dialling(Endpoint(("127.0.0.2",), sshd.port)).wait()
        addresses = ("127.0.0.2", "127.0.0.1")
        assert run(sshd, addresses=addresses, notify=notices.append, dialled=dialled) == b"in\n"
        (notice,) = notices
        assert notice.endswith("127.0.0.2 is not used")
        assert "userauth" not in other.read_log()


def test_no_language_of_the_laptops_is_passed_on() -> None:
    environ = {"LC_ALL": "de_DE", "LANG": "de_DE", "LCD": "1", "PATH": "/bin"}
    assert make_environment(environ) == {"LCD": "1", "PATH": "/bin"}
