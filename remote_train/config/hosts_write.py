"""Write hosts.toml: whole or not at all, checked before, 0600, one writer at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.config.hosts_file import hosts_path
from remote_train.config.jumps import link_jumps
from remote_train.config.ssh_aliases import read_aliases
from remote_train.config.toml_file import parse_toml, read_private_text
from remote_train.errors import LocalSpace
from remote_train.flocks import locked
from remote_train.host.durable import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remote_train.config.host_spec import Hosts


def read_changed(path: Path | None, edit: Callable[[str], str], environ: Mapping[str, str]) -> Hosts:
    """Return what hosts.toml would say after a change; nothing is written. Raises ConfigError with every fault."""
    return _check(hosts_path(path, environ), edit)[1]


def write_changed(path: Path | None, edit: Callable[[str], str], environ: Mapping[str, str]) -> Path:
    """Change hosts.toml and return where it is; a reader sees the old file or the new one, also after a power cut.

    The text is read anew while other commands of ours wait, so that no change of theirs is lost. A link is
    followed, and the file it leads to replaced. Raises ConfigError, LocalSpace.
    """
    place = hosts_path(path, environ)
    target = Path(os.path.realpath(place))
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(target.parent):
            write_whole(str(target), _check(place, edit)[0].encode())
    except OSError as error:
        raise LocalSpace(
            f"{place}: {error.strerror or error}", hint="make it writable, and type it again"
        ) from error
    return place


def _check(place: Path, edit: Callable[[str], str]) -> tuple[str, Hosts]:
    from remote_train.config.hosts_schema import make_hosts  # noqa: PLC0415 - pydantic costs 50 ms

    held, newline = read_private_text(place) if place.exists() else ("", "\n")
    text = edit(held)
    hosts = link_jumps(make_hosts(parse_toml(place, text), read_aliases(Path.home())))
    return text.replace("\n", newline), hosts
