"""Several addresses and jump hosts as one host: who has to agree, and what ssh is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.config.host_target import read_target
from remote_train.config.ssh_target import SshPlace, read_ssh_place
from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.config.host_target import HostTarget

BOX = HostSpec(name="box", address=("lan.x", "ts.x"))


@pytest.fixture
def place(tmp_path: Path) -> SshPlace:
    (tmp_path / ".ssh").mkdir()
    return read_ssh_place({**os.environ, "HOME": str(tmp_path)})


def read(place: SshPlace, config: str, host: HostSpec = BOX) -> HostTarget:
    (place.home / ".ssh" / "config").write_text(config)
    return read_target(host, place)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("Port 2222", "ports: lan.x: 2222, ts.x: 22"),
        ("User you", "users: lan.x: you"),
        ("HostKeyAlias box", "HostKeyAlias: lan.x: box, ts.x: none"),
        ("AddressFamily inet", "AddressFamily: lan.x: inet, ts.x: any"),
        ("BindAddress 10.0.0.1", "BindAddress: lan.x: 10.0.0.1, ts.x: none"),
    ],
)
def test_addresses_of_one_host_agree_on_who_it_is(line: str, what: str, place: SshPlace) -> None:
    with pytest.raises(ConfigError) as caught:
        read(place, f"Host lan.x\n  {line}\n")
    assert f"ssh_config gives them different {what}" in str(caught.value)
    assert read(place, f"Host lan.x ts.x\n  {line}\n").addresses == ("lan.x", "ts.x")


def test_a_host_is_known_by_what_the_files_of_any_of_its_addresses_say(place: SshPlace) -> None:
    target = read(place, "UserKnownHostsFile /k_%h\nGlobalKnownHostsFile none\n")
    assert [str(file) for file in target.known_hosts_files] == ["/k_lan.x", "/k_ts.x"]
    assert all('UserKnownHostsFile="/k_lan.x" "/k_ts.x"' in way.arguments for way in target.ways)
    target = read(place, "UserKnownHostsFile /k_%p_%r\n")
    assert not any("UserKnownHostsFile" in word for way in target.ways for word in way.arguments)


@pytest.mark.parametrize("option", ["UserKnownHostsFile", "GlobalKnownHostsFile"])
def test_ssh_is_told_of_all_known_hosts_files_where_the_first_address_has_them_all(
    option: str, place: SshPlace
) -> None:
    config = f"Match host ts.x\n  {option} /k\nMatch host lan.x\n  {option} /k /more\n"
    target = read(place, f"{config}Host *\n  UserKnownHostsFile /u\n  GlobalKnownHostsFile none\n")
    told = " ".join(f'"{file}"' for file in target.known_hosts_files)
    assert "/more" in told
    behind = read_target(HostSpec("b", ("b",), proxy_jump=("box",), jumps=(BOX,)), place)
    for way in (*target.ways, *(way.jumps[0] for way in behind.ways)):
        assert f"UserKnownHostsFile={told}" in way.arguments


@pytest.mark.parametrize("first", ["/dev/null", "none", f"/{300 * 'x'}"])
def test_a_file_that_can_keep_keys_is_the_first_of_them(first: str, place: SshPlace) -> None:
    config = f"Match host lan.x\n  UserKnownHostsFile {first}\nMatch host ts.x\n  UserKnownHostsFile ~/k\n"
    target = read(place, f"{config}Host *\n  GlobalKnownHostsFile /etc/ssh/ssh_known_hosts\n")
    assert target.known_hosts_files[0] == place.home / "k"
    for way in target.ways:
        assert way.arguments[1].startswith(f'UserKnownHostsFile="{place.home}/k" ')


@pytest.mark.parametrize("said", ["yes", "no"])
def test_ssh_config_says_whether_a_line_of_known_hosts_shows_a_name(said: str, place: SshPlace) -> None:
    assert read(place, f"HashKnownHosts {said}\n").hash_known_hosts is (said == "yes")


def test_one_proxy_command_is_one_way_to_all_addresses(place: SshPlace) -> None:
    target = read(place, "Host *.x\n  ProxyCommand nc %h %p\n")
    assert target.proxy_commands == {"lan.x": "nc lan.x 22", "ts.x": "nc ts.x 22"}
    with pytest.raises(ConfigError, match="different ways"):
        read(place, "Host lan.x\n  ProxyCommand nc %h %p\n")


def test_the_strictest_of_all_addresses_holds(place: SshPlace) -> None:
    lax = "Host lan.x\n  StrictHostKeyChecking accept-new\n"
    assert read(place, lax).strict_host_key_checking == "ask"
    assert read(place, lax + "Host ts.x\n  StrictHostKeyChecking yes\n").strict_host_key_checking == "yes"
    everywhere = "Host *\n  StrictHostKeyChecking accept-new\n"
    assert read(place, everywhere).strict_host_key_checking == "accept-new"


@pytest.mark.parametrize("jump", [{"proxy_jump": ("gate",), "jumps": (HostSpec("gate", ("gate",)),)}, {}])
def test_what_paramiko_lacks_is_not_left_out_for_a_jump_host(
    jump: dict[str, object], place: SshPlace
) -> None:
    config = "Host gate\n  RevokedHostKeys ~/krl\nHost a\n  ProxyJump gate\n"
    target = read(place, config, HostSpec(name="a", address=("a",), **jump))  # type: ignore[arg-type]
    assert target.need.startswith("jump host gate: ssh_config says RevokedHostKeys")
    with pytest.raises(
        ConfigError, match=r"jump host gate: RevokedHostKeys .*: not supported with transport"
    ):
        read(place, config, HostSpec(name="a", address=("a",), transport="paramiko", **jump))  # type: ignore[arg-type]


def test_ssh_goes_by_each_address_through_each_of_the_jump_hosts_own(place: SshPlace) -> None:
    far = HostSpec("far", ("f1", "f2"), user="you", port=23, identity_file="~/100% k")
    box = HostSpec("box", ("lan.x",), proxy_jump=("near", "far"), jumps=(HostSpec("near", ("n",)), far))
    ways = read(place, "Host n\n  ProxyCommand nc %h %p\n", box).ways
    assert [[hop.hostname for hop in way.jumps] for way in ways] == [["n", "f1"], ["n", "f2"]]
    assert all(hop.proxied for way in ways for hop in way.jumps)
    arguments = (
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        f'IdentityFile="{place.home}/100%% k"',
        "-l",
        "you",
        "-p",
        "23",
        "--",
        "f1",
    )
    assert ways[0].jumps[1].arguments == arguments
    nested = read(place, "Host n\n  ProxyJump a,me@b:24\n", box).ways
    assert [hop.arguments[-1] for hop in nested[0].jumps] == ["a", "b", "n", "f1"]
    assert [hop.proxied for hop in nested[0].jumps] == [False, True, True, True]
    (way,) = read(
        place, "Host lan.x\n  ProxyJump me@10.0.0.1,[10.0.0.2]:24\n", HostSpec("box", ("lan.x",))
    ).ways
    assert [hop.hostname for hop in way.jumps] == ["10.0.0.1", "10.0.0.2"], (
        "`ssh -G` has brackets around these"
    )
    none = HostSpec("box", ("lan.x",), proxy_jump=())
    (way,) = read(place, "Host lan.x\n  ProxyJump a\n", none).ways
    assert way.arguments[:2] == ("-o", "ProxyCommand=none")
    assert not way.proxied
