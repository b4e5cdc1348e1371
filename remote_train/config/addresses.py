"""Addresses as people write them: user@host, host:port, [v6]:port; and the names that may never reach ssh.

Pure text rules. Whether a host answers, or is known, is decided elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_PORT = re.compile(r"[0-9]{1,5}")
# What OpenSSH refuses in names too: they may stand in commands that a shell reads (ProxyCommand, Match exec).
_FORBIDDEN = frozenset("'\"`$\\;&<>|(){}*?!,#/")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Address:
    """Where to connect; None where the writer left it to ssh_config or the default."""

    host: str
    user: str | None = None
    port: int | None = None


def looks_like_address(text: str) -> bool:
    """Tell an address from a name: it has `@`, `.` or `:`."""
    return any(mark in text for mark in "@.:")


def parse_address(text: str) -> Address:
    """Parse [user@]host[:port], [user@][v6][:port] or a bare IPv6; ValueError says what is wrong."""
    user, at, place = text.rpartition("@")
    if at:
        _raise_if(find_user_fault(user))
    host, port = _split_port(place)
    _raise_if(find_host_fault(host))
    return Address(host, user if at else None, None if port is None else _parse_port(port))


def find_host_fault(host: str) -> str | None:
    """Say why a host name or IP address cannot be used; None when it can."""
    fault = _find_text_fault(host)
    if fault is None and ":" in host and not _is_ipv6(host):
        return f"{host!r} is neither host:port nor an IPv6 address"
    return fault


def find_user_fault(user: str) -> str | None:
    r"""Say why a login name cannot be used; None when it can. DOMAIN\user is allowed, as in OpenSSH."""
    return _find_text_fault(user.replace("\\", "") if not user.endswith("\\") else user)


def find_name_fault(name: str) -> str | None:
    """Say why a key of hosts.toml cannot name a host; None when it can."""
    if not _HOST_NAME.fullmatch(name):
        return "a host's name has letters, digits, '.', '_' and '-' only, and does not begin with '-' or '.'"
    return None


def _raise_if(fault: str | None) -> None:
    if fault is not None:
        raise ValueError(fault)


def _split_port(place: str) -> tuple[str, str | None]:
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not _is_ipv6(host):
            raise ValueError(f"{place!r} is not [IPv6] or [IPv6]:port")
        return host, rest[1:] if rest else None
    if place.count(":") == 1:
        host, _, port = place.partition(":")
        return host, port
    return place, None


def _parse_port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"port {text!r} is not a number from 1 to 65535")
    return int(text)


def _find_text_fault(text: str) -> str | None:
    if not text:
        return "is empty"
    if text.startswith("-"):
        return f"{text!r} begins with '-', which ssh would take for an option"
    for character in text:
        if character.isspace() or not character.isprintable():
            return f"{text!r} has a space or control character"
        if character in _FORBIDDEN:
            return f"{text!r} has the character {character!r}"
    return None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
