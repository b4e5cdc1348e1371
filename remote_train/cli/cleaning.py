"""`gc`: free a host's disk of what is at home, or of use to nobody."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from remote_train.cli.options import HostsFile, Json, app, make_ask, settings


@app.command("gc")
def collect(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="[default: the hosts of this project's runs]"),
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=0, help="Ended runs of a project that stay on a host.")
    ] = 10,
    data: Annotated[
        bool, typer.Option("--data", help="Also data folders that no run uses now. [default: after 30 days]")
    ] = False,
    persist: Annotated[
        bool, typer.Option("--persist", help="Also the persistent folders of this project.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed.")] = False,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Remove old runs from hosts whose output and checkpoints are here; nothing here is removed."""
    from remote_train.collect import Wish, choose_persist, clean_hosts
    from remote_train.find import current_project
    from remote_train.records import list_runs
    from remote_train.show.jsonl import write_event
    from remote_train.show.kept import render_kept

    settings.json = json
    ask = make_ask()
    project = choose_persist(None if yes or dry_run else ask, sure=yes or dry_run) if persist else None
    wish = Wish(tuple(host or ()), keep, dry_run, data, project, hosts_file)
    code = 0
    for row in clean_hosts(wish, list_runs(current_project()), ask):
        code = code or row["exit_code"]
        if json:
            write_event(sys.stdout.buffer, "gc", row)
        else:
            sys.stdout.write(render_kept(row))
            sys.stdout.flush()
    if code:
        raise typer.Exit(code)
