"""Commands about hosts and the project file that only look: hosts list, hosts check, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remote_train.cli.options import HostsFile, Json, app, make_ask, make_screen, say, settings


def complete_names(incomplete: str) -> list[str]:
    """Return the names of hosts that begin so, for the shell's completion."""
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases
    from remote_train.errors import ConfigError

    try:
        known = [*read_hosts(None).hosts, *read_aliases(Path.home())]
    except ConfigError:  # the command itself will say it
        return []
    return [name for name in dict.fromkeys(known) if name.startswith(incomplete)]


HostName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Of hosts.toml or ~/.ssh/config.", autocompletion=complete_names),
]
hosts = typer.Typer(help="The hosts you can train on.", no_args_is_help=True)
app.add_typer(hosts, name="hosts")


@hosts.command("list")
def list_all(hosts_file: HostsFile = None, json: Json = False) -> None:
    """List the hosts of hosts.toml and ~/.ssh/config."""
    from remote_train.cli.answers import show_hosts
    from remote_train.listing import list_hosts

    settings.json = json
    show_hosts(list_hosts(hosts_file), as_json=json)


@hosts.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Default: every host of hosts.toml.", autocompletion=complete_names
        ),
    ] = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Connect to hosts and say what is there: login, Python and torch, GPUs, disk, and a verdict."""
    from remote_train.bootstrap import read_agent
    from remote_train.cli.answers import show_checks
    from remote_train.config.host_spec import LOCAL
    from remote_train.config.hostnames import choose_hosts
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases
    from remote_train.errors import UsageError
    from remote_train.query import check_host
    from remote_train.reach import make_links

    settings.json = json
    known = read_hosts(hosts_file)
    wanted = tuple(names or ()) or tuple(name for name in known.hosts if name != LOCAL)
    if not wanted:
        raise UsageError("hosts.toml names no host", hint="remote-train hosts add NAME [user@]address")
    links = make_links(
        choose_hosts(wanted, known, read_aliases(Path.home())), read_agent(), make_ask(), Path.cwd()
    )
    for link in links:
        link.notify = say
        link.dial()
    rows = [check_host(link) for link in links]
    show_checks(rows, as_json=json)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(next(row["exit_code"] for row in rows if not row["ok"]))


@app.command()
def init() -> None:
    """Write a remote-train.toml for this project, and say where hosts.toml belongs."""
    from remote_train.init import write_project_file

    with make_screen() as screen:
        for line in write_project_file(Path.cwd()):
            screen.say(line)
