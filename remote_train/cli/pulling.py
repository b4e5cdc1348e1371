"""The command `pull`: a run's files come home."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import Annotated

import typer

from remote_train.cli.options import (
    GiveUp,
    HostsFile,
    Json,
    RunArgument,
    app,
    choose_give_up,
    make_ask,
    make_listener,
    make_screen,
    settings,
)
from remote_train.cli.run import say_pull_goes_on
from remote_train.cli.signals import Ended


@app.command()
def pull(
    run: RunArgument = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DEST", help="Folder. [default: runs/ID/files of the project]"),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="GLOB", help="Bring these files instead of the checkpoints."),
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Only the newest checkpoint.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every file the run made.")] = False,
    give_up: GiveUp = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Bring a run's checkpoints home: whole and verified, or not at all."""
    from remote_train.api import find_training
    from remote_train.pull import PullWish

    settings.json = json
    training = find_training(run, hosts_file, make_ask())
    wish = PullWish(
        to.resolve() if to else None, tuple(match or ()), latest, everything, choose_give_up(give_up)
    )
    with make_screen() as screen:
        listener = make_listener(screen)
        try:
            pulled = training.pull(wish, listener)
        except Ended:
            say_pull_goes_on(training, listener)
            raise
        if json:
            files = [str(path) for path in (*pulled.files, *pulled.unchanged)]
            listener.tell("pull", run=training.id, files=files, bytes=pulled.bytes)
        elif not pulled.files:
            here = len(pulled.unchanged)
            screen.say(
                f"nothing new: {here} file{'s' * (here != 1)} here already"
                if here
                else "the run has made no such file"
            )
