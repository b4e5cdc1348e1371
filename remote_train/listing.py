"""`hosts list`: every name that --host takes, and where it leads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.config.host_spec import HostSpec
from remote_train.config.host_target import read_target
from remote_train.config.hosts_file import read_hosts
from remote_train.config.ssh_aliases import read_aliases
from remote_train.errors import UsageError
from remote_train.transport.login import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator

Row = dict[str, Any]


def list_hosts(hosts_file: Path | None) -> list[Row]:
    """Return a row for each host of hosts.toml, each alias of ~/.ssh/config, and this machine.

    Keys: name, address, port, user, jump, transport, pin, device, source, default, trouble (why it cannot be used).
    """
    return list(_list_rows(hosts_file))


def _list_rows(hosts_file: Path | None) -> Iterator[Row]:
    known = read_hosts(hosts_file)
    for host in known.hosts.values():
        if not host.is_local:
            yield _describe(host, str(known.path), default=host.name in known.default)
    for alias in read_aliases(Path.home()):
        if alias not in known.hosts:
            host = HostSpec(name=alias, address=(alias,))
            yield _describe(host, "~/.ssh/config", default=alias in known.default)
    yield {"name": "local", "address": [], "device": "cpu", "source": "this machine"}


def _describe(host: HostSpec, source: str, *, default: bool) -> Row:
    """Ask ssh_config what it makes of a host; what it refuses is told in place of it."""
    row: Row = {
        "name": host.name,
        "address": list(host.address) or [host.name],
        "user": host.user,
        "jump": list(host.proxy_jump or ()),
        "transport": host.transport,
        "pin": host.host_key,
        "device": host.device,
        "source": source,
        "default": default,
    }
    try:
        target = read_target(host)
    except UsageError as error:  # a ConfigError is one
        return {**row, "trouble": error.message.replace("\n", "; ")}
    row |= {"address": list(target.addresses), "port": target.port, "user": target.user}
    row["jump"] = [plain_name(hop) for hop in target.jumps] or row["jump"]
    return row | {"transport": "openssh" if target.need else "paramiko"}
