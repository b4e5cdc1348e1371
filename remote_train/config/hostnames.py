"""Turn the names of --host into hosts, by the rule of DESIGN §8: a typo must not become a CPU run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.config.addresses import looks_like_address, parse_address
from remote_train.config.host_spec import LOCAL, Hosts, HostSpec, make_local
from remote_train.config.nearest import find_nearest
from remote_train.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def choose_hosts(requested: Sequence[str], hosts: Hosts, aliases: Collection[str]) -> tuple[HostSpec, ...]:
    """Choose the hosts to try, in order, each once.

    A name is a key of hosts.toml, a literal alias of ~/.ssh/config, `local`, or an address. Nothing requested
    means hosts.default, which may be empty. Raises UsageError with the nearest name.
    """
    names = dict.fromkeys(requested or hosts.default)
    return tuple(choose_host(name, hosts, aliases) for name in names)


def choose_host(name: str, hosts: Hosts, aliases: Collection[str]) -> HostSpec:
    """Choose the one host that this name means. Raises UsageError."""
    if name == LOCAL:
        return hosts.hosts.get(LOCAL) or make_local()
    if name in hosts.hosts:
        return hosts.hosts[name]
    if name in aliases and not name.startswith("-"):
        return HostSpec(name=name, address=(name,))
    if looks_like_address(name):
        return _make_from_address(name)
    raise _make_unknown(name, [*hosts.hosts, *aliases, LOCAL])


def _make_from_address(text: str) -> HostSpec:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise UsageError(
            f"host {text!r}: {error}", hint="write user@host, host:port or [IPv6]:port"
        ) from None
    return HostSpec(name=text, address=(address.host,), user=address.user, port=address.port)


def _make_unknown(name: str, known: list[str]) -> UsageError:
    nearest = find_nearest(name, known)
    if nearest:
        hint = f"did you mean '{nearest}'? `remote-train hosts list` shows every name"
    else:
        names = ", ".join(dict.fromkeys(known))
        hint = f"known: {names}; `remote-train hosts add` describes another, or give an address such as me@{_safe(name)}.lan"
    return UsageError(f"host {name!r}: neither in hosts.toml nor in ~/.ssh/config", hint=hint)


def _safe(name: str) -> str:
    return name if name.isascii() and name.isalnum() else "box"
