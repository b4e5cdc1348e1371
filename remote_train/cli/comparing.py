"""The command `compare`: two runs side by side."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from remote_train.cli.options import HostsFile, Json, app, make_ask, say, settings


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="RUN", help="Id, unique prefix, HOST:ID.")],
    b: Annotated[str, typer.Argument(metavar="RUN", help="The one that is said to be faster or slower.")],
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Show two runs side by side, and which settings differ: only on the same ones is a ratio called a gain."""
    from remote_train.api import find_training
    from remote_train.cli.answers import write_text
    from remote_train.cli.runs import catch_up
    from remote_train.comparing import compare_runs
    from remote_train.show.jsonl import write_event
    from remote_train.show.sides import render_comparison

    settings.json = json
    found = [find_training(run, hosts_file, make_ask()) for run in (a, b)]
    for training in found:
        trouble = catch_up(training)
        if trouble is not None:
            say(f"{training.id}: as last seen; {trouble}")
    compared = compare_runs(*(training.run for training in found))
    if json:
        write_event(sys.stdout.buffer, "comparison", compared)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write_text(render_comparison(compared, width))
