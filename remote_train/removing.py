"""`hosts remove`: forget a host, and say what of it is still there. The host itself and known_hosts are not touched."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import places_of
from remote_train.config.hosts_edit import drop_host
from remote_train.config.hosts_file import hosts_path, read_hosts
from remote_train.config.hosts_write import read_changed, write_changed
from remote_train.config.nearest import find_nearest
from remote_train.config.ssh_aliases import read_aliases
from remote_train.errors import UsageError
from remote_train.records import list_runs

if TYPE_CHECKING:
    from remote_train.transport import Ask


def list_there(name: str) -> list[dict[str, Any]]:
    """Return the runs of this laptop that lie on a host, as their records have it: run, state."""
    found = []
    for run in list_runs():
        record = run.read()
        if not record.get("pruned") and name in [host for host, _ in places_of(record)]:
            found.append({"run": run.id, "state": record["state"]})
    return found


def remove_host(name: str, hosts_file: Path | None, ask: Ask | None) -> dict[str, Any]:
    """Take a host out of hosts.toml after a yes, where somebody can be asked; return what was done.

    Keys: host, file, removed, default (what is left of it), runs (those still there). Raises UsageError, ConfigError,
    LocalSpace.
    """
    _expect(name, hosts_file)
    there = list_there(name)
    left = read_changed(hosts_file, partial(drop_host, name=name), os.environ)
    row = {
        "host": name,
        "file": str(hosts_path(hosts_file, os.environ)),
        "runs": there,
        "default": list(left.default),
    }
    if ask is not None and not ask(_word_question(name, there)):
        return {**row, "removed": False}
    write_changed(hosts_file, partial(drop_host, name=name), os.environ)
    return {**row, "removed": True}


def _word_question(name: str, there: list[dict[str, Any]]) -> str:
    names = ", ".join(f"{each['run']} ({each['state']})" for each in there[:10])
    more = f" and {len(there) - 10} more" if len(there) > 10 else ""
    runs = f"Runs that are still there, and out of reach then: {names}{more}.\n" if there else ""
    return f"{runs}Remove {name} from hosts.toml?"


def _expect(name: str, hosts_file: Path | None) -> None:
    known = read_hosts(hosts_file)
    if name in known.hosts:
        behind = [host.name for host in known.hosts.values() if name in (host.proxy_jump or ())]
        if behind:
            raise UsageError(
                f"{name} is the jump host of {', '.join(behind)}: its name alone might lead them to another machine",
                hint=f"take it out of proxy_jump of {behind[0]} first, or remove that host first",
            )
        return
    if name in read_aliases(Path.home()):
        raise UsageError(f"{name} is not in hosts.toml; it is in ~/.ssh/config, which is yours to change")
    nearest = find_nearest(name, list(known.hosts))
    hint = f"did you mean '{nearest}'?" if nearest else "`remote-train hosts list` shows every name"
    raise UsageError(f"there is no host {name!r} in hosts.toml", hint=hint)
