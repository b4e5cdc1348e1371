"""The command `bench`: what each host's device does with the same models."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from remote_train.cli.options import HostsFile, Json, app, make_ask, make_screen, settings


@app.command()
def bench(
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME", help="Repeatable; `local` too. [default: your default hosts and local]"
        ),
    ] = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Measure matrix products and train two small GPTs on each host, side by side: about a minute."""
    from remote_train.benching import bench_hosts
    from remote_train.bootstrap import read_agent
    from remote_train.cli.answers import write_text
    from remote_train.config.hostnames import choose_hosts
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases
    from remote_train.metrics.benchmark import MODELS
    from remote_train.reach import make_links
    from remote_train.show.bench import render_bench
    from remote_train.show.jsonl import write_event

    settings.json = json
    known = read_hosts(hosts_file)
    wanted = tuple(hosts or (*known.default, "local"))
    chosen = choose_hosts(wanted, known, read_aliases(Path.home()))
    with make_screen() as screen:
        rows = bench_hosts(make_links(chosen, read_agent(), make_ask(), Path.cwd()), MODELS, screen.say)
    if json:
        for row in rows:
            write_event(sys.stdout.buffer, "bench", row)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write_text(render_bench(rows, MODELS, width))
    if not any(row["ok"] for row in rows):
        raise typer.Exit(next(row["exit_code"] for row in rows))
