"""Find and read the user's hosts.toml. Never the project's folder: that may be a clone of a stranger's.

Where the file is, and what a missing one means, stands here; its schema is in `hosts_schema`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_config_path

from remote_train.config.host_spec import LOCAL, Hosts, HostSpec, make_local
from remote_train.config.jumps import link_jumps
from remote_train.config.proven import make_key, recall, remember
from remote_train.config.ssh_aliases import read_aliases
from remote_train.config.toml_file import read_private_text
from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HOSTS_VARIABLE", "LOCAL", "HostSpec", "Hosts", "hosts_path", "make_local", "read_hosts"]

_TUPLES = ("address", "setup", "proxy_jump", "jumps")
HOSTS_VARIABLE = "REMOTE_TRAIN_HOSTS"


def hosts_path(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    """Say where hosts.toml is: --hosts-file, then $REMOTE_TRAIN_HOSTS, then the user's config folder."""
    return _find_named(explicit, environ) or user_config_path("remote-train") / "hosts.toml"


def read_hosts(path: Path | None, environ: Mapping[str, str] | None = None) -> Hosts:
    """Read hosts.toml; `path` is --hosts-file or None.

    Missing at its default place, it is empty; missing where the user said it is, a ConfigError. Every fault
    of the file comes in one ConfigError.
    """
    environ = os.environ if environ is None else environ
    place = hosts_path(path, environ)
    if not os.path.lexists(place):
        if _find_named(path, environ) is None:
            return Hosts()
        raise ConfigError([f"{place}: does not exist"], hint="named by --hosts-file or $" + HOSTS_VARIABLE)
    aliases = read_aliases(Path.home())
    key = make_key("hosts", [read_private_text(place)[0], *aliases])
    held = recall(key)
    if held is not None:
        return link_jumps(_make_hosts(held, place))
    # Only a file that is new or has changed pays for pydantic.
    from remote_train.config.hosts_schema import read_hosts_file  # noqa: PLC0415 - see the line above

    hosts = read_hosts_file(place, aliases)
    remember(
        key, {"default": hosts.default, "hosts": {name: vars(host) for name, host in hosts.hosts.items()}}
    )
    return link_jumps(hosts)


def _make_hosts(held: dict[str, Any], place: Path) -> Hosts:
    hosts = {
        name: HostSpec(**{**fields, **{key: _make_tuple(fields[key]) for key in _TUPLES}})
        for name, fields in held["hosts"].items()
    }
    return Hosts(default=tuple(held["default"]), hosts=hosts, path=place)


def _make_tuple(value: list[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _find_named(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    if explicit is not None:
        return explicit
    named = environ.get(HOSTS_VARIABLE)
    return Path(named) if named else None
