"""Commands that change whom we know: hosts add, remove, trust, import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from remote_train.cli.hosts import HostName, hosts
from remote_train.cli.options import HostsFile, Json, make_ask, make_type_in, say, settings

Addresses = Annotated[
    list[str] | None,
    typer.Argument(metavar="[[USER@]ADDRESS[:PORT]]...", help="Default: the name, through ~/.ssh/config."),
]


@hosts.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you will call it.")],
    addresses: Addresses = None,
    identity_file: Annotated[
        Path | None, typer.Option("--identity-file", metavar="FILE", help="The private key to log in with.")
    ] = None,
    proxy_jump: Annotated[
        str | None, typer.Option("--proxy-jump", metavar="HOST", help="The host to go through.")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="The Python there that has torch.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cuda|cpu", help="What to train on there. [default: cuda]"),
    ] = None,
    transport: Annotated[
        str | None, typer.Option("--transport", metavar="NAME", help="How to speak SSH to it.")
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option(
            "--host-key", metavar="SHA256:…", help="The fingerprint its key must have, now and later."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Describe a host anew.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not connect.")] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Connect to a host, say what is there, and write it into hosts.toml."""
    from remote_train.adding import Wish, add_host
    from remote_train.cli.answers import show_change, show_checks
    from remote_train.errors import HostKeyRefused

    settings.json = json
    key_file = os.path.abspath(identity_file.expanduser()) if identity_file else None  # noqa: PTH100  (links stay)
    keys = {
        "identity_file": key_file,
        "proxy_jump": proxy_jump,
        "python": python,
        "device": device,
        "transport": transport,
        "host_key": host_key,
    }
    wish = Wish(name, tuple(addresses or ()), {k: v for k, v in keys.items() if v}, replace, hosts_file)
    row, written = add_host(wish, make_ask(), say, check=not no_check)
    if row is not None:
        show_checks([row], as_json=json)
    if written is None:
        if not json:
            unseen = row is not None and row["exit_code"] == HostKeyRefused.exit_code
            say(f"{name} was not written{'' if unseen else '; --no-check writes it as it is'}")
        raise typer.Exit(row["exit_code"] if row else 2)
    default = ", and is the default" if written["default"] else f"; --host {name} trains there"
    show_change("added", written, f"{name} is in {written['file']}{default}", as_json=json)


@hosts.command("remove")
def remove(
    name: HostName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Take a host out of hosts.toml; the host itself, its runs and known_hosts stay as they are."""
    from remote_train.cli.answers import show_change
    from remote_train.removing import remove_host

    settings.json = json
    row = remove_host(name, hosts_file, None if yes else make_ask())
    words = f"{name} is no longer in {row['file']}" if row["removed"] else "nothing was changed"
    if row["runs"]:
        words += f"\nstill there: {', '.join(each['run'] for each in row['runs'])}"
    show_change("removed", row, words, as_json=json)


@hosts.command("trust")
def trust(
    name: HostName,
    key: Annotated[
        str | None, typer.Option("--key", metavar="SHA256:…", help="The fingerprint that its key must have.")
    ] = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Look at a host's key without logging in, and trust it once you have said that it is right."""
    from remote_train.cli.answers import show_change
    from remote_train.config.hostnames import choose_host
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases
    from remote_train.trusting import Trusting

    settings.json = json
    host = choose_host(name, read_hosts(hosts_file), read_aliases(Path.home()))
    if host.is_local:
        raise typer.BadParameter("this machine has no key to trust")
    row = Trusting(host, hosts_file, make_ask(), make_type_in()).trust(key)
    where = f", written to {', '.join(row['files'])}" if row["files"] else " already"
    words = f"{name}: {row['key_type']} {row['fingerprint']} is trusted{where}"
    show_change("trusted", row, words, as_json=json)


@hosts.command("import")
def import_all(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Add every host of ~/.ssh/config to hosts.toml, those that only serve git aside."""
    from remote_train.cli.answers import show_imports
    from remote_train.importing import import_hosts

    settings.json = json
    rows = import_hosts(hosts_file, dry_run=dry_run)
    show_imports(rows, as_json=json)
    added = sum(row["done"] == "added" for row in rows)
    use = "; --host NAME trains on one, `default` of hosts.toml names the first" if added else ""
    if not json:
        say(f"{added} {'would be ' if dry_run else ''}added{use}")
