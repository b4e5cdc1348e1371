"""How long a login over ssh may take, whose time that is, and what it may ask for."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from remote_train.config.ssh_target import SshWay
from remote_train.errors import ConnectionLost, Unreachable
from remote_train.transport import login
from remote_train.transport.openssh_command import Policy, make_command
from remote_train.transport.openssh_log import Limits, SshLog
from tests.sshd import Sshd, openssh

WAY = SshWay("box", ("ssh",), ("--", "box"), proxied=True, patient=False, keywords=frozenset())
NEAR = replace(WAY, proxied=False)


def list_given(way: SshWay, option: str, **policy: bool) -> list[str]:
    """What an option is set to on a command line: of our own ssh, then of each jump host's, the farthest first."""
    asked = Policy("ask", **policy)  # type: ignore[arg-type]
    hop = replace(asked, password=False)
    argv = make_command(way, replace(asked, jumps=(hop,) * len(way.jumps)), "log", "true")
    return re.findall(rf"\b{option}=(\w+)", " ".join(argv))


def test_a_jump_host_has_the_time_of_a_host() -> None:
    jumped = replace(WAY, jumps=(NEAR, WAY))
    patient = replace(WAY, patient=True, jumps=(replace(NEAR, patient=True), replace(WAY, patient=True)))
    assert list_given(jumped, "ConnectTimeout", prompts=False) == ["20", "20", "5"]
    assert list_given(jumped, "ConnectTimeout", prompts=True) == ["5"]
    assert list_given(patient, "ConnectTimeout", prompts=False) == []


def test_a_password_is_asked_for_once_and_where_hosts_toml_says_so() -> None:
    jumped = replace(WAY, jumps=(NEAR,))
    locked = make_command(NEAR, Policy("ask", prompts=True, locked=True), "log", "true")
    assert "NumberOfPasswordPrompts=3" in locked
    for password, given in ((False, ["no", "no"]), (True, ["no"])):
        policy = {"prompts": True, "password": password}
        assert list_given(jumped, "PasswordAuthentication", **policy) == given
        assert list_given(jumped, "NumberOfPasswordPrompts", **policy) == ["1", "1"]


def feed(limits: Limits, *stages: tuple[float, bool]) -> list[bool]:
    """What is left after each stage: its seconds, and whether ssh may be asking."""
    return [limits.count(passed, may_ask=may_ask) for passed, may_ask in stages]


def test_a_persons_time_is_not_the_hosts() -> None:
    assert feed(Limits(30), (29, True), (2, False)) == [True, False]
    hidden = [False]
    limits = Limits(30, 300, lambda: hidden[0])
    assert feed(limits, (29, False), (200, True)) == [True, True]
    hidden[0] = True
    assert feed(limits, (99, False), (2, False)) == [True, False]
    assert feed(Limits(30, 300, lambda: False), (299, True), (31, False)) == [True, False]


def test_ssh_may_ask_from_an_unknown_key_or_a_method_on_until_it_goes_on() -> None:
    log = SshLog(lambda _line: None)
    try:
        for line, asking in (
            (b"debug1: SSH2_MSG_KEX_ECDH_REPLY received", False),
            (b"debug1: Server host key: ssh-ed25519 SHA256:x", True),
            (b"debug1: load_hostkeys: fopen /none: No such file or directory", True),
            (b"debug1: SSH2_MSG_NEWKEYS sent", False),
            (b"debug1: Next authentication method: publickey", True),
            (b"debug1: Offering public key: k ED25519 SHA256:x explicit", False),
            (b"debug1: Server accepts key: k ED25519 SHA256:x explicit", True),
            (b"debug1: Authentications that can continue: keyboard-interactive", False),
            (b"debug1: Next authentication method: keyboard-interactive", True),
        ):
            log._take(line)
            assert log._may_ask is asking, line
    finally:
        log.end()


@pytest.mark.sshd
@pytest.mark.parametrize(
    ("proxy", "error"),
    [("sleep 60", Unreachable), ("sh -c 'echo SSH-2.0-silent; sleep 60'", ConnectionLost)],
)
def test_silence_before_a_banner_is_a_host_that_is_not_there(
    proxy: str, error: type[Exception], sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", 1.0)
    transport = openssh(sshd, f"ProxyCommand {proxy}")
    transport._ways = [replace(way, proxied=True) for way in transport._ways]  # type: ignore[type-var]
    with pytest.raises(error, match="within 1 s"):
        transport.open("echo in")
