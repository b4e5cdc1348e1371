from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.config.addresses import Address, find_user_fault, looks_like_address, parse_address
from remote_train.config.host_spec import Hosts, HostSpec
from remote_train.config.hostnames import choose_hosts
from remote_train.errors import UsageError

GOOD = {
    "box": Address("box"),
    "box.lan": Address("box.lan"),
    "me@box": Address("box", "me"),
    "me@corp@box": Address("box", "me@corp"),
    "box:2222": Address("box", None, 2222),
    "me@10.0.0.1:65535": Address("10.0.0.1", "me", 65535),
    "[::1]:22": Address("::1", None, 22),
    "me@[fd00::2]": Address("fd00::2", "me"),
    "fe80::1%eth0": Address("fe80::1%eth0"),
    "::1": Address("::1"),
    "bücher.example": Address("bücher.example"),
}
BAD = {
    "": "is empty",
    "@box": "is empty",
    "me@": "is empty",
    "-oProxyCommand=x": "begins with '-'",
    "me@-x": "begins with '-'",
    "-me@x": "begins with '-'",
    "a b": "space or control character",
    "a\nb": "space or control character",
    "a\u200bb": "space or control character",
    "a;b": "has the character ';'",
    "`id`": "has the character '`'",
    "ssh://box": "neither host:port|has the character|not a number",
    "box:": "port '' is not",
    "box:0": "port '0' is not",
    "box:٣": "port '٣' is not",
    "box:65536": "port '65536' is not",
    "box:22:33": "neither host:port nor an IPv6",
    "[box]:22": "is not \\[IPv6\\]",
    "[::1]22": "is not \\[IPv6\\]",
    "[::1]:x": "port 'x' is not",
    "\\me@box": "",
}


@pytest.mark.parametrize(("text", "address"), GOOD.items())
def test_an_address_is_taken_apart(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(("text", "message"), [case for case in BAD.items() if case[1]])
def test_a_bad_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(text)


@given(st.text(max_size=12))
def test_nothing_dangerous_passes(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    for part in (address.host, address.user or "u"):
        assert part
        assert not part.startswith("-")
        assert part.isprintable()
        assert not set(part) & set(" '\"`$;&<>|(){}")


def test_domain_users_are_allowed_as_in_openssh() -> None:
    assert find_user_fault("CORP\\me") is None
    assert find_user_fault("me\\") is not None


HOSTS = Hosts(
    default=("4070ti", "alias-box"),
    hosts={
        "4070ti": HostSpec(name="4070ti", address=("10.0.0.1",), user="me"),
        "a.b": HostSpec(name="a.b", address=("a.b",)),
    },
)
ALIASES = ("alias-box", "4070ti")


def choose(*names: str, hosts: Hosts = HOSTS) -> tuple[HostSpec, ...]:
    return choose_hosts(names, hosts, ALIASES)


def test_a_key_wins_over_an_alias_and_an_address() -> None:
    assert choose("4070ti", "a.b") == (HOSTS.hosts["4070ti"], HOSTS.hosts["a.b"])


def test_an_alias_works_as_it_is() -> None:
    assert choose("alias-box") == (HostSpec(name="alias-box", address=("alias-box",)),)


def test_local_is_this_machine() -> None:
    (local,) = choose("local")
    assert local.is_local
    assert (local.device, local.address) == ("cpu", ())


@pytest.mark.parametrize("text", [text for text in GOOD if looks_like_address(text)])
def test_an_address_needs_no_entry(text: str) -> None:
    (spec,) = choose(text)
    address = GOOD[text]
    assert spec == HostSpec(name=text, address=(address.host,), user=address.user, port=address.port)


def test_the_order_given_stays_and_each_host_comes_once() -> None:
    assert [spec.name for spec in choose("local", "a.b", "local", "4070ti")] == ["local", "a.b", "4070ti"]


def test_nothing_requested_is_the_default() -> None:
    assert [spec.name for spec in choose()] == ["4070ti", "alias-box"]
    assert choose(hosts=Hosts()) == ()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("4070it", "4070ti"), ("alias_box", "alias-box"), ("LOCAL", "local"), ("loacl", "local")],
)
def test_a_typo_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="neither in hosts.toml nor in ~/.ssh/config") as caught:  # noqa: RUF043 - plain enough
        choose("4070ti", name)
    assert caught.value.exit_code == 2
    assert f"did you mean '{nearest}'?" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["zzz", "", "-oProxyCommand=x", "q\nq", "$(id)"])
def test_a_name_like_none_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(name)
    assert "4070ti, a.b, alias-box" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["-x.y", "me@-oProxyCommand=x", "box:99999", "a b.c", "1:2:3"])
def test_a_bad_address_is_exit_2(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(name)
    assert caught.value.exit_code == 2


def test_an_alias_that_ssh_would_take_for_an_option_is_refused() -> None:
    with pytest.raises(UsageError):
        choose_hosts(["-x"], Hosts(), ["-x"])
