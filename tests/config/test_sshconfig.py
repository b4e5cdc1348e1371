from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.config.ssh_aliases import read_aliases
from remote_train.config.ssh_options import (
    HARMLESS,
    LACKED,
    REFUSED,
    SUPPORTED,
    SYSTEM_WIDE,
    find_unsupported,
    parse_options,
)
from remote_train.config.ssh_target import SshPlace, SshTarget, read_ssh_place, read_ssh_target
from remote_train.errors import ConfigError, UsageError

BOX = HostSpec(name="4070ti", address=("box",))
PIN = "SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE"
ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".ssh").mkdir()
    return tmp_path


@pytest.fixture
def place(home: Path) -> SshPlace:
    return read_ssh_place({**os.environ, "HOME": str(home), "SSH_AUTH_SOCK": "/run/agent"})


def read(place: SshPlace, config: str, spec: HostSpec = BOX, address: str = "box") -> SshTarget:
    (place.home / ".ssh" / "config").write_text(config)
    return read_ssh_target(spec, address, place)


def fail(place: SshPlace, config: str, spec: HostSpec = BOX) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(place, config, spec)
    assert caught.value.exit_code == 2
    return caught.value


def test_without_a_config_there_are_opensshs_defaults(place: SshPlace, home: Path) -> None:
    target = read_ssh_target(BOX, "box", place)
    assert (target.hostname, target.port, target.user) == ("box", 22, ME)
    assert home / ".ssh" / "id_ed25519" in target.identity_files
    assert target.known_hosts_files[:2] == (home / ".ssh/known_hosts", home / ".ssh/known_hosts2")
    assert Path("/etc/ssh/ssh_known_hosts") in target.known_hosts_files
    assert (target.identities_only, target.identity_agent, target.host_key_alias) == (False, None, None)
    assert (target.address_family, target.connect_timeout, target.strict_host_key_checking) == (
        "any",
        None,
        "ask",
    )


def test_everything_supported_arrives(place: SshPlace, home: Path) -> None:
    (home / ".ssh" / "more").write_text("Host box\n  Port 2222\n  HostKeyAlias gpubox\n")
    target = read(
        replace(place, environ={**place.environ, "WHICH": "id_gpu"}),
        f"""
        Include {home}/.ssh/more
        Host b*
          HostName %h.example.com
          User you
          IdentityFile "~/.ssh/with space %h-%r-%p-%n-%L-%l-%i-%u-%k-%%"
          IdentityFile ~/.ssh/${{WHICH}}
          IdentityFile %d/third
          IdentitiesOnly yes
          IdentityAgent ~/agent.sock
          UserKnownHostsFile ~/known1 "~/known 2" /etc/known3
          GlobalKnownHostsFile none
          AddressFamily inet6
          ConnectTimeout 7
          StrictHostKeyChecking accept-new
        """,
        address="box",
    )
    host = socket.gethostname()
    assert (target.name, target.address) == ("4070ti", "box")
    assert (target.hostname, target.port, target.user) == ("box.example.com", 2222, "you")
    expected = (
        f"with space box.example.com-you-2222-box-{host.partition('.')[0]}-{host}-{os.getuid()}-{ME}-gpubox-%"
    )
    assert target.identity_files == (home / ".ssh" / expected, home / ".ssh" / "id_gpu", home / "third")
    assert (target.identities_only, target.identity_agent) == (True, str(home / "agent.sock"))
    assert target.known_hosts_files == (home / "known1", home / "known 2", Path("/etc/known3"))
    assert (target.host_key_alias, target.address_family, target.connect_timeout) == ("gpubox", "inet6", 7)
    assert target.strict_host_key_checking == "accept-new"


def test_hosts_toml_overrides(place: SshPlace, home: Path) -> None:
    spec = replace(BOX, user="me", port=2022, identity_file="~/.ssh/id_100%", host_key=PIN)
    target = read(
        place, "Host box\n User you\n Port 1\n IdentityFile ~/x\nMatch user me\n ConnectTimeout 9\n", spec
    )
    assert (target.user, target.port, target.connect_timeout) == ("me", 2022, 9)
    assert target.identity_files == (home / ".ssh" / "id_100%",)
    assert target.identities_only
    assert target.strict_host_key_checking == "yes"


def test_an_address_brings_its_own_user_and_port(place: SshPlace) -> None:
    spec = replace(BOX, user="me", port=2022)
    target = read(place, "Host box.lan\n Port 1\n", spec, address="you@box.lan:2200")
    assert (target.hostname, target.user, target.port) == ("box.lan", "you", 2200)
    assert read(place, "", spec, address="[fd00::1]:22").hostname == "fd00::1"


@pytest.mark.parametrize("address", ["-oProxyCommand=touch x", "a b", "$(id)", "", "box:0"])
def test_a_bad_address_never_reaches_ssh(address: str, place: SshPlace) -> None:
    with pytest.raises(UsageError, match="host 4070ti: address"):
        read_ssh_target(BOX, address, replace(place, ssh="/nonexistent/ssh"))


IN_FORCE = {
    "bindinterface": "lo",
    "canonicalizehostname": "always",
    "pkcs11provider": "/usr/lib/pkcs11.so",
    "pubkeyauthentication": "no",
    "remotecommand": "tmux attach",
    "hostbasedauthentication": "yes",
    "gssapiauthentication": "yes",
    "securitykeyprovider": "/usr/lib/sk.so",
    "knownhostscommand": "/bin/echo %H",
    "revokedhostkeys": "/etc/revoked",
    "ciphers": "aes256-gcm@openssh.com",
    "macs": "hmac-sha2-256",
    "kexalgorithms": "curve25519-sha256",
    "hostkeyalgorithms": "ssh-ed25519",
    "casignaturealgorithms": "ssh-ed25519",
    "pubkeyacceptedalgorithms": "ssh-ed25519",
    "requiredrsasize": "3072",
    "proxyusefdpass": "yes",
}


def test_the_tables_of_options_that_are_not_ours_are_covered() -> None:
    assert IN_FORCE.keys() == (LACKED | REFUSED).keys()
    harmless = {word for words in HARMLESS.values() for word in words.split()}
    assert not harmless & SUPPORTED
    assert not (harmless | SUPPORTED) & (LACKED | REFUSED).keys()


SHOWN = {"canonicalizehostname": "always", "pubkeyauthentication": "false"}


@pytest.mark.parametrize(("keyword", "value"), [item for item in IN_FORCE.items() if item[0] in LACKED])
def test_an_option_that_paramiko_lacks_is_named(
    keyword: str, value: str, place: SshPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_train.config.ssh_target.SYSTEM_CONFIG", place.home / "none")
    # HostName is an address, so that CanonicalizeHostname asks no name server.
    config = f"Host box\n HostName 127.0.0.1\n {LACKED[keyword]} {value}\n"
    shown = f"{LACKED[keyword]} {SHOWN.get(keyword, value)}"
    assert read(place, config).lacks == (shown,)
    error = fail(place, config, replace(BOX, transport="paramiko"))
    assert error.problems == [f'ssh_config: host 4070ti: {shown}: not supported with transport = "paramiko"']
    assert 'transport = "openssh"' in str(error.hint)


def test_another_command_than_ours_is_refused_over_any_transport(place: SshPlace) -> None:
    for transport in (None, "paramiko", "openssh"):
        error = fail(place, "Host box\n RemoteCommand tmux attach\n", replace(BOX, transport=transport))
        assert error.problems == ["ssh_config: host 4070ti: RemoteCommand tmux attach: not supported"]


def test_it_counts_only_for_its_own_host(place: SshPlace) -> None:
    config = "Host other\n BindInterface lo\nHost *\n Ciphers aes256-ctr\n"
    assert read(place, config).lacks == ("Ciphers aes256-ctr",)
    assert read(place, "Host other\n BindInterface lo\n").lacks == ()


def test_all_are_named_at_once(place: SshPlace) -> None:
    config = "Host *\n BindInterface lo\n RemoteCommand b\n StrictHostKeyChecking no\n"
    error = fail(place, config, replace(BOX, transport="paramiko"))
    assert [problem.split(": ")[2] for problem in error.problems] == [
        "BindInterface lo",
        "RemoteCommand b",
        "StrictHostKeyChecking no",
    ]
    assert "ssh -G box" in str(fail(place, "Host *\n RemoteCommand b\n").hint)


def test_none_is_not_in_force(place: SshPlace) -> None:
    config = (
        "CertificateFile none\nProxyJump none\nProxyCommand none\nRevokedHostKeys none\nIdentityFile none\n"
    )
    target = read(place, config + "UserKnownHostsFile none\nIdentityAgent none\n")
    assert (target.identity_files, target.identity_agent) == ((), "none")
    assert target.known_hosts_files == (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))


def test_what_makes_no_difference_is_let_pass(place: SshPlace) -> None:
    config = """
        ControlMaster auto
        ControlPath ~/.ssh/%C
        ControlPersist 600
        ServerAliveInterval 30
        Compression yes
        SendEnv LANG LC_*
        SetEnv TERM=xterm
        ForwardAgent yes
        ForwardX11 yes
        LocalForward 8888 localhost:8888
        RemoteForward 9999 localhost:9
        DynamicForward 1080
        LogLevel ERROR
        AddKeysToAgent yes
        VisualHostKey yes
        HashKnownHosts yes
        UpdateHostKeys no
        GSSAPIDelegateCredentials yes
        PermitLocalCommand yes
        PreferredAuthentications publickey
        PasswordAuthentication no
        RequestTTY yes
        BatchMode yes
        VerifyHostKeyDNS yes
        LocalCommand never
        CanonicalDomains example.com
    """
    target = read(place, config)
    assert (target.hostname, target.lacks) == ("box", ())


def test_an_option_of_tomorrow_is_left_to_ssh_until_somebody_has_looked() -> None:
    baseline = parse_options("host box\nport 22\n")
    options = parse_options("host box\nport 22\nteleport moon\nteleport mars\n")
    assert find_unsupported(options, baseline) == ["teleport"]


@pytest.mark.parametrize(
    ("written", "strictness"), [("yes", "yes"), ("ask", "ask"), ("accept-new", "accept-new")]
)
def test_strictness_is_followed(written: str, strictness: str, place: SshPlace) -> None:
    assert read(place, f"StrictHostKeyChecking {written}\n").strict_host_key_checking == strictness


@pytest.mark.parametrize("written", ["no", "off"])
def test_unchecked_host_keys_are_refused_but_for_a_pinned_one(written: str, place: SshPlace) -> None:
    config = f"StrictHostKeyChecking {written}\n"
    assert "pin the key in hosts.toml" in fail(place, config).problems[0]
    assert read(place, config, replace(BOX, host_key=PIN)).strict_host_key_checking == "yes"


@pytest.mark.parametrize(
    ("written", "agent"),
    [
        ("SSH_AUTH_SOCK", None),
        ("none", "none"),
        ("$MY_AGENT", "/run/mine"),
        ("${MY_AGENT}", "/run/mine"),
        ("$NO_SUCH", "none"),
        ("/run/%u", f"/run/{ME}"),
    ],
)
def test_the_agents_socket(written: str, agent: str | None, place: SshPlace) -> None:
    place = replace(place, environ={**place.environ, "MY_AGENT": "/run/mine"})
    assert read(place, f"IdentityAgent {written}\n").identity_agent == agent


@pytest.mark.parametrize(("path", "shown"), [("~/.ssh/%C", "%C"), ("~/.ssh/${NO_SUCH}", "${NO_SUCH}")])
def test_a_token_we_cannot_expand_is_named(path: str, shown: str, place: SshPlace) -> None:
    assert fail(place, f"IdentityFile {path}\n").problems == [
        f"ssh_config: {path}: {shown} is not known here"
    ]


def test_a_config_that_ssh_refuses_is_shown_in_its_words(place: SshPlace, home: Path) -> None:
    error = fail(place, "Host box\n Bogus yes\n")
    assert (
        f"ssh_config: host box: {home}/.ssh/config: line 2: Bad configuration option: bogus" in error.problems
    )


def test_match_exec_of_the_users_own_config_is_run_by_ssh(place: SshPlace) -> None:
    assert read(place, "Match exec true\n Port 7\nMatch exec false\n Port 8\n").port == 7


def test_the_ssh_config_of_home_is_read_though_openssh_looks_in_passwd(place: SshPlace, home: Path) -> None:
    assert place.passwd_home != home
    assert read(place, "Host box\n Port 77\n").port == 77
    elsewhere = replace(place, home=home / "empty")
    assert read_ssh_target(BOX, "box", elsewhere).port == 22
    assert replace(place, home=place.passwd_home).config_arguments == []


def test_what_the_systems_own_file_sets_for_every_host_is_let_pass(
    place: SshPlace, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = "Ciphers aes256-gcm@openssh.com\nMACs hmac-sha2-256\n"
    (home / "system").write_text(policy)
    monkeypatch.setattr("remote_train.config.ssh_target.SYSTEM_CONFIG", home / "system")
    assert read(place, policy).lacks == ()
    assert read(place, policy + "KexAlgorithms curve25519-sha256\n").lacks == (
        "KexAlgorithms curve25519-sha256",
    )
    (home / "system").write_text(policy + "BindInterface lo\n")
    assert read(place, policy + "BindInterface lo\n").lacks == ("BindInterface lo",)
    assert "ciphers" in SYSTEM_WIDE


def test_without_ssh_defaults_are_enough_while_there_is_no_config(place: SshPlace) -> None:
    bare = replace(place, ssh=None)
    plain = read_ssh_target(BOX, "box", bare)
    asked = read_ssh_target(BOX, "box", place)
    assert set(plain.identity_files) <= set(asked.identity_files)
    assert replace(plain, identity_files=asked.identity_files) == asked


PLAIN_CONFIG = """
Host box
  HostName box.example
  User you
  Port 2022
  IdentityFile ~/.ssh/%h_key
  IdentitiesOnly yes
  UserKnownHostsFile ~/.ssh/kh
  HostKeyAlias the-box
  ProxyJump me@gate:2200,inner
  StrictHostKeyChecking yes
Host *
  ServerAliveInterval 5
  ConnectTimeout 2
"""


def test_without_ssh_the_config_means_the_same(place: SshPlace, home: Path) -> None:
    (home / ".ssh" / "config").write_text(PLAIN_CONFIG)
    asked = read_ssh_target(BOX, "box", place)
    assert asked.proxy_jump == "me@gate:2200,inner"
    assert read_ssh_target(BOX, "box", replace(place, ssh=None)) == asked


@pytest.mark.parametrize(
    "line", ["Include more", "Match exec true", "CanonicalizeHostname yes", "Host box\n PKCS11Provider /x"]
)
def test_without_ssh_what_would_be_misread_is_refused(line: str, place: SshPlace, home: Path) -> None:
    (home / ".ssh" / "config").write_text(f"{line}\n")
    with pytest.raises(
        ConfigError, match=line.split()[-2] if "Host box" in line else line.split(maxsplit=1)[0]
    ):
        read_ssh_target(BOX, "box", replace(place, ssh=None))


def test_the_way_there_is_read(place: SshPlace) -> None:
    config = """
        Host box
          HostName 10.0.0.1
          User you
          ProxyCommand nc -x %n %h %p # %r 100%%
          CertificateFile ~/.ssh/extra-cert.pub
          BindAddress 127.0.0.1
    """
    target = read(place, config)
    assert target.proxy_command == "nc -x box 10.0.0.1 22 # you 100%"
    assert target.bind_address == "127.0.0.1"
    assert [path.name for path in target.certificate_files] == ["extra-cert.pub"]
    assert read(place, "ProxyCommand none\nProxyJump none\n").proxy_command is None


def test_without_ssh_hosts_toml_still_counts(place: SshPlace) -> None:
    spec = replace(BOX, user="me", port=2022, identity_file="/k")
    target = read_ssh_target(spec, "box.lan", replace(place, ssh=None))
    assert (target.user, target.port, target.identity_files) == ("me", 2022, (Path("/k"),))


def test_no_ssh_on_path_is_noticed(tmp_path: Path) -> None:
    assert read_ssh_place({"PATH": str(tmp_path), "HOME": str(tmp_path)}).ssh is None
    assert read_ssh_place({"PATH": os.environ["PATH"]}).ssh == shutil.which("ssh")


def test_an_ssh_that_does_not_start_is_an_error(place: SshPlace, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("")
    with pytest.raises(ConfigError, match="cannot be started"):
        read_ssh_target(BOX, "box", replace(place, ssh=str(tmp_path / "ssh")))


def test_an_ssh_that_hangs_is_given_up(
    place: SshPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "ssh"
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o755)
    monkeypatch.setattr("remote_train.config.ssh_query.TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="did not answer"):
        read_ssh_target(BOX, "box", replace(place, ssh=str(script)))


# Aliases


def test_aliases_are_the_literal_names_of_every_included_file(home: Path) -> None:
    ssh = home / ".ssh"
    (ssh / "config.d").mkdir()
    (ssh / "config.d" / "10-a").write_text("Host in-a\n")
    (ssh / "config.d" / "20-b").write_text("Host in-b\nInclude config.d/10-a\nInclude config\n")
    (home / "absolute").write_text("host absolute")
    (ssh / "config").write_text(
        f"""
        # Host comment
        Include config.d/* ~/absolute "{home}/absolute" /nonexistent/*
        Host box "quoted name" *.lan !not q?  # trailing
        HostName real.example
          hOsT=equals
        Host = spaced
        Match host matched
        Host box
        Host "open
        """
    )
    found = read_aliases(home)
    assert found == ("in-a", "in-b", "absolute", "box", "quoted name", "equals", "spaced")


def test_aliases_are_names_that_ssh_knows(home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        'Host a b=c d*\n Port 5\nHost=e\n Port 5\nHost "f g" h # i\n Port 5\n'
    )
    for alias in read_aliases(home):
        if " " not in alias:
            output = subprocess.check_output(
                ["ssh", "-G", "-F", str(home / ".ssh" / "config"), "--", alias],
                text=True,
                stderr=subprocess.DEVNULL,
            )
            assert "port 5" in output.splitlines(), alias
    assert read_aliases(home) == ("a", "b=c", "e", "f g", "h")


def test_no_config_means_no_aliases_and_nothing_blocks(home: Path) -> None:
    assert read_aliases(home) == ()
    os.mkfifo(home / ".ssh" / "config")
    assert read_aliases(home) == ()
