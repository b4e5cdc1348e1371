"""Jump hosts: what proxy_jump of hosts.toml and ProxyJump of ssh_config name, as hosts."""

from __future__ import annotations

import re
from dataclasses import replace

from remote_train.config.host_spec import Hosts, HostSpec
from remote_train.errors import ConfigError

MOST_JUMPS = 8


def link_jumps(hosts: Hosts) -> Hosts:
    """Return hosts.toml with the jump hosts of each host filled in, and theirs; raise ConfigError for a circle."""
    return replace(hosts, hosts={name: _link(hosts, host, ()) for name, host in hosts.hosts.items()})


def _link(hosts: Hosts, host: HostSpec, behind: tuple[str, ...]) -> HostSpec:
    if host.name in behind or len(behind) > MOST_JUMPS:
        raise make_circle_error([*behind, host.name], str(hosts.path))
    found = []
    for name in host.proxy_jump or ():
        known = hosts.hosts.get(name)
        if known is None or known.is_local:
            found.append(HostSpec(name=name, address=(name,)))
        else:
            found.append(_link(hosts, known, (*behind, host.name)))
    return replace(host, jumps=tuple(found))


def make_circle_error(names: list[str], where: str) -> ConfigError:
    """Return the error for jump hosts that lead to one another without end."""
    return ConfigError(
        [f"{where}: host {names[0]}: its jump hosts lead in a circle: {' > '.join(names)}"],
        hint="a jump host that is reached directly has proxy_jump = []; in ~/.ssh/config: ProxyJump none",
    )


def parse_jumps(written: str | None) -> tuple[HostSpec, ...]:
    """Return the hosts that a ProxyJump of ssh_config names, the nearest first."""
    if written is None or written == "none":
        return ()
    names = [part.strip().removeprefix("ssh://").rstrip("/") for part in written.split(",")]
    names = [re.sub(r"\[([0-9.]+)\]", r"\1", name) for name in names]  # `ssh -G` has 10.0.0.1 in brackets too
    return tuple(HostSpec(name=name, address=(name,)) for name in names)
