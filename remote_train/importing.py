"""`hosts import`: the hosts of ~/.ssh/config, each as a table of hosts.toml that leaves the way there to ssh_config."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from remote_train.config.addresses import find_name_fault
from remote_train.config.host_spec import LOCAL, HostSpec
from remote_train.config.host_target import read_target
from remote_train.config.hosts_edit import add_names
from remote_train.config.hosts_file import read_hosts
from remote_train.config.hosts_write import write_changed
from remote_train.config.ssh_aliases import read_aliases, read_patterns
from remote_train.errors import ConfigError

FORGES = (
    "github.com", "ssh.github.com", "gitlab.com", "altssh.gitlab.com", "bitbucket.org", "altssh.bitbucket.org",
    "ssh.dev.azure.com", "vs-ssh.visualstudio.com", "codeberg.org", "git.sr.ht", "gitee.com", "huggingface.co", "hf.co",
)  # fmt: skip
"""Hosts that take git over SSH and give nobody a shell, by the names that they publish."""
ENTRIES = ("git-codecommit.", "source.developers.google.com")
"""Beginnings of such names."""

Row = dict[str, Any]


def import_hosts(hosts_file: Path | None, *, dry_run: bool = False) -> list[Row]:
    """Add every literal host of ~/.ssh/config to hosts.toml; return a row for each name, and for each pattern.

    Keys: host, done ("added", or "kept" or "left out"), why. `default` stays as it is. Raises ConfigError, LocalSpace.
    """
    known = read_hosts(hosts_file)
    rows = [_judge(alias, alias in known.hosts) for alias in read_aliases(Path.home())]
    rows += [_row(each, "left out", "a pattern, no host") for each in read_patterns(Path.home())]
    new = [row["host"] for row in rows if row["done"] == "added"]
    if new and not dry_run:
        write_changed(hosts_file, partial(add_names, names=new), os.environ)
    return rows


def _judge(alias: str, known: bool) -> Row:
    if known:
        return _row(alias, "kept", "in hosts.toml already")
    fault = find_name_fault(alias) or ("always means this machine" if alias == LOCAL else None)
    if fault is not None:
        return _row(alias, "left out", fault)
    try:
        target = read_target(HostSpec(name=alias, address=(alias,)))
    except ConfigError as error:
        return _row(alias, "left out", "; ".join(error.problems))
    if any(is_forge(address) for address in target.addresses):
        return _row(alias, "left out", f"{target.addresses[0]} takes git, and runs nothing")
    if target.user == "git":
        return _row(alias, "left out", "its user is git, which runs nothing")
    return _row(
        alias,
        "added",
        f"{target.user}@{target.addresses[0]}" + (f":{target.port}" if target.port != 22 else ""),
    )


def _row(host: str, done: str, why: str) -> Row:
    return {"host": host, "done": done, "why": why}


def is_forge(address: str) -> bool:
    """Tell a server for git alone by its name."""
    return address.lower() in FORGES or address.lower().startswith(ENTRIES)
