"""`hosts add`: connect to a host as every later command will, and describe it in hosts.toml once it is found fit.

hosts.toml is not written unless all of it went well. An accepted key goes where ssh keeps it, into known_hosts, so that
both know the host, fit or not; one whose fingerprint was stated is pinned as well: then no other is ever accepted.
"""

from __future__ import annotations

import os
import shlex
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.bootstrap import read_agent
from remote_train.config.addresses import find_name_fault, parse_address
from remote_train.config.host_spec import LOCAL
from remote_train.config.host_target import read_target
from remote_train.config.hosts_edit import set_host
from remote_train.config.hosts_write import read_changed, write_changed
from remote_train.config.ssh_aliases import read_aliases
from remote_train.errors import HostKeyRefused, UsageError
from remote_train.preflight import find_unfit
from remote_train.query import check_host
from remote_train.reach import make_links
from remote_train.transport.known_hosts_edit import replace_known_host
from remote_train.transport.login import HostIdentity
from remote_train.trusting import Trusting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.config.host_spec import HostSpec
    from remote_train.reach import HostLink
    from remote_train.session import Session
    from remote_train.transport import Ask, Notify

    Person = tuple[Ask | None, Notify | None]
    """Who is asked, and who is told."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """A host to describe: its name, the addresses as typed, and more keys of hosts.toml."""

    name: str
    addresses: tuple[str, ...]
    keys: dict[str, str] = field(default_factory=dict)
    replace: bool = False
    hosts_file: Path | None = None

    @property
    def command(self) -> str:
        """The command that describes it, to be typed again with something more."""
        options = [word for key, value in self.keys.items() for word in (f"--{key.replace('_', '-')}", value)]
        options += ["--replace"] if self.replace else []
        return shlex.join(["remote-train", "hosts", "add", self.name, *self.addresses, *options])


def make_values(wish: Wish, aliases: Sequence[str]) -> Row:
    """Return the keys of the host's table; raise UsageError for a name or addresses that make none.

    User and port stand in the table once, so all addresses must agree on them. No address: the name's own, by ~/.ssh/config.
    """
    fault = find_name_fault(wish.name)
    if fault or wish.name == LOCAL:
        raise UsageError(f"{wish.name!r}: {fault or 'always means this machine'}", hint="choose another name")
    if not wish.addresses and wish.name not in aliases:
        raise UsageError(
            f"{wish.name} is no name of ~/.ssh/config, so it needs an address",
            hint=f"remote-train hosts add {wish.name} [user@]address[:port]",
        )
    try:
        parsed = [parse_address(text) for text in wish.addresses]
    except ValueError as error:
        raise UsageError(str(error), hint="write [user@]host, host:port or [IPv6]:port") from None
    values: Row = {"address": [each.host for each in parsed]} if parsed else {}
    for key in ("user", "port"):
        found = {getattr(each, key) for each in parsed} - {None}
        if len(found) > 1:
            raise UsageError(
                f"the addresses have different {key}s: {sorted(map(str, found))}", hint="one host has one"
            )
        if found:
            values[key] = found.pop()
    return values | wish.keys


def add_host(
    wish: Wish, ask: Ask | None, notify: Notify | None = None, *, check: bool = True
) -> tuple[Row | None, Row | None]:
    """Return what `hosts check` says of the host, and what was written; None for what was not done.

    Raises UsageError, ConfigError, LocalSpace; and HostKeyRefused with the command to type.
    """
    values = make_values(wish, read_aliases(Path.home()))
    spec = _preview(wish, values)
    row = None
    if check:
        row, values = _check(wish, spec, values, (ask, notify))
        if not row["ok"]:
            return row, None
    place = write_changed(wish.hosts_file, partial(_edit, wish, values), os.environ)
    default = wish.name in read_changed(wish.hosts_file, str, os.environ).default
    return row, {"host": wish.name, "file": str(place), "default": default, **values}


def _edit(wish: Wish, values: Row, text: str) -> str:
    return set_host(text, wish.name, values, replace=wish.replace)


def _preview(wish: Wish, values: Row) -> HostSpec:
    """Return the host as hosts.toml would have it; every fault of its values, and a name that is taken, end here."""
    return read_changed(wish.hosts_file, partial(_edit, wish, values), os.environ).hosts[wish.name]


def _check(wish: Wish, spec: HostSpec, values: Row, person: Person) -> tuple[Row, Row]:
    """Return the check's row, and the values with a Python that has torch where the host's own has none."""
    link = _link(spec, person)
    usual = link.pythons
    further = partial(_look_further, link)
    row = check_host(link, further)
    if row.get("host_key_of") == spec.name:  # and not of a host on the way to it
        if _ask_for_stated(spec, person[0]):
            row = check_host(link, further)
        if row["exit_code"] == HostKeyRefused.exit_code:
            return {**row, "next": _next_of_key(wish, spec, row)}, values
    found = {} if link.pythons == usual else {"python": link.pythons[0]}
    return {**row, "next": _next_of_unfit(wish, row["next"])}, values | found


def _link(spec: HostSpec, person: Person) -> HostLink:
    link = make_links([spec], read_agent(), person[0], Path.cwd())[0]
    link.notify = person[1]
    return link


def _look_further(link: HostLink, session: Session, facts: Row) -> Row:
    """Return what the host is like with a Python that has torch, where the one it would take has none; `link` has it then.

    All over one connection: a code that a host asks for is good for one login.
    """
    named = link.host.python or link.host.conda or link.host.uv
    if named or facts["python"].get("torch") or find_unfit(link.host, facts) is None:
        return facts
    usual = link.pythons
    for python in _search(session):
        link.pythons = [python]
        found = link.read_facts(session, fresh=True)
        if found["python"].get("torch"):
            return found
    link.pythons = usual
    return facts


def _search(session: Session) -> list[str]:
    """Return Pythons of the host that have torch, the usual places first; those that hosts.toml cannot name left out."""
    found = session.request("search").get("pythons", [])
    paths = [item.get("path") for item in found if isinstance(item, dict)]
    return [path for path in paths if isinstance(path, str) and _is_plain(path)][:3]


def _is_plain(path: str) -> bool:
    from remote_train.config.hosts_schema import is_program  # noqa: PLC0415 - pydantic costs 50 ms

    return is_program(path)


def _ask_for_stated(spec: HostSpec, ask: Ask | None) -> bool:
    """Where the stated fingerprint is of a key of another type, have that type asked for from now on; tell whether."""
    if spec.host_key is None:
        return False
    target = read_target(spec)
    with closing(Trusting(spec, ask=ask)) as trusting:
        offer = trusting.find_stated(target, spec.host_key)
    if offer is None or offer.verdict != "match":
        return False
    names, hashed = HostIdentity(target, ()).names, target.hash_known_hosts
    replace_known_host(target.known_hosts_files, names, offer.key_type, offer.key, hashed=hashed)
    return True


def _next_of_unfit(wish: Wish, text: str | None) -> str | None:
    """Return a next step as it is typed for a host that hosts.toml does not have yet."""
    for key, value in (("device", "cpu"), ("python", "…")):
        if text and f'`{key} = "{value}' in text and key not in wish.keys:
            return f"{text}; here: {wish.command} --{key} {'PATH' if key == 'python' else value}"
    return text


def _next_of_key(wish: Wish, spec: HostSpec, row: Row) -> str:
    """Return what to type about a key that was refused: the host has no name yet that `hosts trust` would know."""
    if row.get("host_key") == "unknown":
        return (
            f"compare it with what the host itself says, then: {wish.command} --host-key {row['fingerprint']}"
        )
    if row.get("host_key") == "changed" and spec.host_key is None:
        address = wish.addresses[0] if wish.addresses else wish.name
        return f"someone may be listening in; if you know why it changed: remote-train hosts trust {shlex.quote(address)}"
    return "nothing was written" if spec.host_key else str(row["next"])
