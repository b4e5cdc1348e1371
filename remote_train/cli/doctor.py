"""The command `doctor`: what stands between this laptop and a training, step by step."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import remote_train
from remote_train.cli.options import HostsFile, Json, app, make_ask, settings


@app.command()
def doctor(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[HOST]...", help="Default: this machine.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Tell a machine by a text of lspci -nnk, nvidia-smi, lscpu; - is stdin.",
        ),
    ] = None,
    speed: Annotated[
        bool,
        typer.Option("--speed/--no-speed", help="Fill the link for some seconds to see what it carries."),
    ] = True,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Explain a host, or this machine, step by step, and end with what to do next."""
    settings.json = json
    if text is not None:
        if names:
            raise typer.BadParameter("--from tells a machine by a text: leave the hosts out")
        rows = [_examine_text(text)]
    else:
        rows = _examine(names or [], hosts_file, speed=speed)
    show_examinations(rows, as_json=json)
    code = next((row["exit_code"] for row in rows if not row["ok"]), 0)
    if code:
        raise typer.Exit(code)


def _examine(names: list[str], hosts_file: Path | None, *, speed: bool) -> list[dict[str, Any]]:
    from remote_train.bootstrap import read_agent
    from remote_train.config.host_spec import make_local
    from remote_train.config.hostnames import choose_hosts
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases
    from remote_train.doctor import examine_host
    from remote_train.doctor_here import examine_laptop
    from remote_train.reach import make_links

    if not names:
        link = make_links([make_local()], read_agent(), None, Path.cwd())[0]
        return [examine_laptop(link, hosts_file, remote_train.__version__)]
    chosen = choose_hosts(tuple(names), read_hosts(hosts_file), read_aliases(Path.home()))
    links = make_links(chosen, read_agent(), make_ask(), Path.cwd())
    return [examine_host(link, speed=speed) for link in links]


def _examine_text(path: Path) -> dict[str, Any]:
    from remote_train.doctor_here import examine_text
    from remote_train.errors import UsageError

    if str(path) == "-":
        return examine_text("the machine", sys.stdin.read())
    try:
        return examine_text(path.stem, path.read_text("utf-8", "replace"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name a file, or - for stdin") from None


def show_examinations(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print what was found: a table for people, an event for each machine for programs."""
    from remote_train.cli.answers import name_files, write_text
    from remote_train.show.doctor import render_examinations
    from remote_train.show.jsonl import write_event

    rows = name_files(rows)
    if as_json:
        for row in rows:
            write_event(sys.stdout.buffer, "doctor", row)
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    write_text(render_examinations(rows, width, colour=terminal and "NO_COLOR" not in os.environ))
