"""One host as a transport wants it: all its addresses under one identity, and the jump hosts on the way to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from remote_train.config.jumps import MOST_JUMPS, make_circle_error, parse_jumps
from remote_train.config.ssh_target import SshPlace, SshTarget, read_ssh_place, read_ssh_target
from remote_train.errors import ConfigError
from remote_train.transport.choice import find_need
from remote_train.transport.known_hosts import find_keeper
from remote_train.transport.openssh_command import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from remote_train.config.host_spec import HostSpec
    from remote_train.config.ssh_target import SshWay

ONE_IDENTITY = {
    "ports": "port",
    "users": "user",
    "HostKeyAlias": "host_key_alias",
    "AddressFamily": "address_family",
    "BindAddress": "bind_address",
}
"""What has to be the same for all addresses of a host, as people call it."""
HERE = {"port": " or port in hosts.toml", "user": " or user in hosts.toml"}
STRICTEST = ("yes", "ask", "accept-new")


@dataclass(frozen=True)
class HostTarget:
    """What transport.SshTarget says, field by field."""

    name: str
    addresses: tuple[str, ...]
    port: int
    user: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    identity_agent: str | None
    known_hosts_files: tuple[Path, ...]
    hash_known_hosts: bool
    host_key_alias: str | None
    certificate_files: tuple[Path, ...]
    address_family: str
    bind_address: str | None
    connect_timeout: int | None
    strict_host_key_checking: Literal["yes", "ask", "accept-new"]
    pin: str | None
    password: bool
    proxy_commands: Mapping[str, str]
    jumps: tuple[HostTarget, ...] = ()
    ways: tuple[SshWay, ...] = ()
    """How ssh itself goes to each address; empty where there is no ssh."""
    lacks: tuple[str, ...] = ()
    """What is in force that paramiko cannot do, as it stands in ssh_config."""
    need: str = ""
    """Why ssh itself has to be used; "": paramiko can do all that is asked for."""

    @property
    def is_proxied(self) -> bool:
        """Tell a host that is reached through others: whether it answers is found out by logging in to those."""
        return bool(self.jumps or self.proxy_commands) or any(way.proxied for way in self.ways)

    @property
    def nearest(self) -> HostTarget:
        """The host that is connected to first."""
        return self.jumps[0] if self.jumps else self


def read_target(host: HostSpec, place: SshPlace | None = None) -> HostTarget:
    """Return a host's target; raise ConfigError for options we cannot honour, its jump hosts' included.

    As with ssh, the nearest jump host is reached as its own configuration says, and the others through the one
    before them.
    """
    return _read_way(host, place or read_ssh_place(), ())


def _read_way(host: HostSpec, place: SshPlace, behind: tuple[str, ...]) -> HostTarget:
    if host.name in behind or len(behind) > MOST_JUMPS:
        raise make_circle_error([*behind, host.name], "ssh_config")
    found = _read_addresses(host, place)
    target = _make_target(host, found)
    hops = parse_jumps(found[0].proxy_jump) if host.proxy_jump is None else host.jumps
    jumps: tuple[HostTarget, ...] = ()
    if hops:
        first = _read_way(hops[0], place, (*behind, host.name))
        others = [_add_needs(_make_target(hop, _read_addresses(hop, place)), hop) for hop in hops[1:]]
        jumps = (
            *first.jumps,
            _make_hop(first),
            *(replace(_make_hop(hop), proxy_commands={}) for hop in others),
        )
    if hops or host.proxy_jump is not None:
        ways = tuple(each for way in target.ways for each in _lead(way, jumps))
        target = replace(target, proxy_commands={}, jumps=jumps, ways=ways)
    return _add_needs(target, host)


def _make_hop(target: HostTarget) -> HostTarget:
    """Return one of the hosts on the way, each of whose ways goes through those before it."""
    ways = tuple(dict.fromkeys(replace(way, jumps=()) for way in target.ways))
    return replace(target, jumps=(), ways=ways, name=f"jump host {target.name}")


def _lead(way: SshWay, jumps: Sequence[HostTarget]) -> Iterator[SshWay]:
    """Lead a way through these jump hosts and no others, by each address that one of them has."""
    if not jumps:
        # This sets a ProxyJump of ssh_config aside too, which ProxyJump=none does not do to a ProxyCommand.
        yield replace(way, arguments=("-o", "ProxyCommand=none", *way.arguments), proxied=False)
        return
    for nearest, *others in product(*(hop.ways for hop in jumps)):
        behind = (replace(each, proxied=True) for each in others)
        yield replace(way, jumps=(nearest, *behind), proxied=True)


def _add_needs(target: HostTarget, host: HostSpec) -> HostTarget:
    """Say why ssh has to be used, for the host itself or for one of its jump hosts."""
    if host.transport == "paramiko":
        _refuse_lacks(target)
    if host.transport == "paramiko" or not target.ways:
        return target
    if host.transport == "openssh":
        return replace(target, need='hosts.toml says transport = "openssh"')
    own = find_need(target, target.lacks, target.pin)
    needs = [own, *(f"{hop.name}: {hop.need}" for hop in target.jumps if hop.need)]
    return replace(target, need=next(filter(None, needs), ""))


def _refuse_lacks(target: HostTarget) -> None:
    problems = [
        f'ssh_config: {hop.name}: {lack}: not supported with transport = "paramiko" for {target.name}'
        for hop in target.jumps
        for lack in hop.lacks
    ]
    if problems:
        raise ConfigError(
            problems, hint=f"take transport out of [hosts.{target.name}]: ssh itself is used then"
        )


def _read_addresses(host: HostSpec, place: SshPlace) -> list[SshTarget]:
    found = [read_ssh_target(host, address, place) for address in host.address or (host.name,)]
    for what, name in ONE_IDENTITY.items():
        if len({getattr(target, name) for target in found}) > 1:
            said = ", ".join(f"{target.address}: {_show(getattr(target, name))}" for target in found)
            raise ConfigError(
                [
                    f"host {host.name}: its addresses are one host, and ssh_config gives them different {what}: {said}"
                ],
                hint=f"say the same for all in ~/.ssh/config{HERE.get(name, '')}, or give each a host of its own",
            )
    if len({(target.proxy_jump, target.proxy_written) for target in found}) > 1 and host.proxy_jump is None:
        raise ConfigError(
            [
                f"host {host.name}: ssh_config leads to its addresses by different ways (ProxyJump, ProxyCommand)"
            ],
            hint="give each way a host of its own in hosts.toml, and list both after --host",
        )
    return found


def _show(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join("none" if each is None else str(each) for each in values)


def _join_known_hosts(found: Sequence[SshTarget]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the known_hosts files of all addresses, and how ssh is told of them, whichever it goes to.

    A host is known by what any of them says, and a key that any of them revokes is none of its.
    """
    files = tuple(dict.fromkeys(file for target in found for file in target.known_hosts_files))
    if all(target.known_hosts_files == files for target in found):
        return files, ()
    keeper = find_keeper(files)
    files = tuple(sorted(files, key=lambda file: file != keeper))  # an accepted key is written into the first
    named = " ".join(quote(str(file).replace("%", "%%")) for file in files)
    return files, ("-o", f"UserKnownHostsFile={named}")


def _make_target(host: HostSpec, found: list[SshTarget]) -> HostTarget:
    first = found[0]
    files, option = _join_known_hosts(found)
    ways = {target.hostname: target.way for target in found if target.way}.values()
    return HostTarget(
        name=host.name,
        addresses=tuple(dict.fromkeys(target.hostname for target in found)),
        port=first.port,
        user=first.user,
        identity_files=first.identity_files,
        identities_only=first.identities_only,
        identity_agent=first.identity_agent,
        known_hosts_files=files,
        hash_known_hosts=first.hash_known_hosts,
        host_key_alias=first.host_key_alias,
        certificate_files=first.certificate_files,
        address_family=first.address_family,
        bind_address=first.bind_address,
        connect_timeout=first.connect_timeout,
        strict_host_key_checking=min(
            (target.strict_host_key_checking for target in found), key=STRICTEST.index
        ),
        pin=host.host_key,
        password=host.password,
        proxy_commands={each.hostname: each.proxy_command for each in found if each.proxy_command},
        ways=tuple(replace(way, arguments=(*option, *way.arguments)) for way in ways),
        lacks=tuple(dict.fromkeys(lack for target in found for lack in target.lacks)),
    )
