"""The name that ssh looks a host of several addresses up under, and what it must not take there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import HostKeyRefused
from remote_train.transport.known_hosts import KnownHostsFile, make_fingerprint
from remote_train.transport.login import HostIdentity
from remote_train.transport.openssh_command import Policy
from remote_train.transport.openssh_trust import choose_alias, hold_to
from tests.sshd import SshdTarget, key_bytes, make_key, public_line

if TYPE_CHECKING:
    from pathlib import Path

LAN, TAIL = "192.168.1.3", "box.ts.net"
ASK = Policy(strict="ask", prompts=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder / "k"), make_key(folder / "other")


def identity(text: str, keys: tuple[Path, Path], port: int = 22, **changes: object) -> HostIdentity:
    """A host of two addresses; K and O in the text stand for the keys."""
    lines = text.replace(" K", f" {public_line(keys[0])}").replace(" O", f" {public_line(keys[1])}")
    target = replace(SshdTarget(addresses=(LAN, TAIL), port=port), **changes)  # type: ignore[arg-type]
    return HostIdentity(target, (KnownHostsFile("known_hosts", lines),))


@pytest.mark.parametrize(
    ("text", "port", "alias"),
    [
        ("", 22, LAN),
        (f"{TAIL} K", 22, TAIL),
        (f"@revoked * O\n{TAIL} K", 22, TAIL),
        (f"@cert-authority {TAIL} K", 22, TAIL),
        (f"@cert-authority {LAN} O\n{TAIL} K", 22, TAIL),
        (f"{TAIL} K", 2222, TAIL),
        (f"{LAN} O\n[{TAIL}]:2222 K", 2222, f"[{TAIL}]:2222"),
        ("", 2222, f"[{LAN}]:2222"),
    ],
)
def test_the_name_is_one_that_a_key_is_known_under(
    text: str, port: int, alias: str, keys: tuple[Path, Path]
) -> None:
    assert choose_alias(identity(text, keys, port)) == alias


def test_one_address_or_an_alias_is_left_to_ssh(keys: tuple[Path, Path]) -> None:
    assert choose_alias(identity("", keys, addresses=(LAN,))) is None
    assert choose_alias(identity("", keys, host_key_alias="box")) is None


def test_nothing_new_is_taken_where_a_key_is_known_or_one_is_revoked_out_of_sight(
    keys: tuple[Path, Path],
) -> None:
    assert hold_to(identity("", keys), ASK).strict == "ask"
    assert hold_to(identity(f"@cert-authority {TAIL} K", keys), ASK).strict == "ask"
    assert hold_to(identity("@revoked * K", keys), ASK).strict == "ask", "ssh sees it itself"
    assert hold_to(identity(f"{TAIL} K", keys), ASK).strict == "yes"
    assert hold_to(identity(f"@revoked {TAIL} O", keys), ASK).strict == "yes"


def test_a_passphrase_may_be_mistyped_where_there_is_one(keys: tuple[Path, Path], tmp_path: Path) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret words")
    for files, prompts, tries in (
        ((keys[0],), True, False),
        ((keys[0], locked), True, True),
        ((locked,), False, False),
    ):
        held = hold_to(identity("", keys, identity_files=files), replace(ASK, prompts=prompts))
        assert held.locked is tries


def test_a_key_that_is_revoked_under_another_name_is_refused_before_ssh_starts(
    keys: tuple[Path, Path],
) -> None:
    pin = make_fingerprint(key_bytes(keys[0]))
    for held in (
        identity(f"{LAN} K\n@revoked {TAIL} K", keys),
        replace(identity(f"@revoked {TAIL} K", keys), pin=pin),
    ):
        with pytest.raises(HostKeyRefused) as caught:
            hold_to(held, ASK)
        assert caught.value.facts["verdict"] == "revoked"
        assert pin in caught.value.message
    assert hold_to(identity(f"{LAN} K\n@revoked {TAIL} O", keys), ASK).alias == LAN
    assert hold_to(identity(f"* K\n@revoked * O\n{TAIL} O", keys), ASK).alias == LAN, (
        "what ssh sees, it judges"
    )
