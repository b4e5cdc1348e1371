"""The command `pull`: a run's files come home."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from remote_train.pull import PullWish

DTYPES = ("bf16", "fp16", "fp32")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?(?:/s)?\Z", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def parse_rate(text: str) -> float:
    """Return bytes per second: `2MB/s`, `500K`, `800000`."""
    found = _RATE.match(text.strip())
    rate = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()] if found else 0.0
    if rate < 1000:
        raise typer.BadParameter(f"{text!r} is no rate such as 2MB/s or 500K", param_hint="--limit")
    return rate


def _check_weights(dtype: str | None, *, weights: bool, whole: bool) -> None:
    if dtype is not None and (not weights or dtype not in DTYPES):
        words = f"one of {', '.join(DTYPES)}" if weights else "converts weights: add --weights"
        raise typer.BadParameter(words, param_hint="--dtype")
    if weights and whole:
        raise typer.BadParameter(
            "--all, --follow and --keep-last are for whole files", param_hint="--weights"
        )


def _check_apart(wish: PullWish, files: Path) -> None:
    if wish.aside and wish.to is not None and wish.to.is_relative_to(files.resolve()):
        raise typer.BadParameter("that is where the newest attempt's files come to", param_hint="--to")


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
    follow: Annotated[
        bool, typer.Option("--follow", help="Bring checkpoints as they appear, until the run has ended.")
    ] = False,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last",
            metavar="N",
            min=1,
            help="Keep only the newest N checkpoints here; older ones that pull brought are removed.",
        ),
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option(
            "--attempt",
            metavar="K",
            min=1,
            help="What an older attempt made; with --to. [default: the newest]",
        ),
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="RATE", help="At most so much per second: 2MB/s, 500K.")
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Only the model of the newest checkpoint, as safetensors made on the host."
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="D", help="Convert the weights' floats there: bf16, fp16 or fp32."),
    ] = None,
    give_up: GiveUp = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Bring a run's checkpoints home: whole and verified, or not at all."""
    from remote_train.api import find_training
    from remote_train.pull import PullWish

    settings.json = json
    if keep_last is not None and (everything or match):
        raise typer.BadParameter("counts checkpoints; --all and --match name files", param_hint="--keep-last")
    if attempt is not None and (to is None or follow):
        raise typer.BadParameter(
            "comes to a folder apart: add --to DIR, leave out --follow", param_hint="--attempt"
        )
    _check_weights(dtype, weights=weights, whole=everything or follow or keep_last is not None)
    wish = PullWish(
        to=to.resolve() if to else None,
        match=tuple(match or ()),
        latest=latest,
        everything=everything,
        give_up=choose_give_up(give_up),
        keep_last=keep_last,
        limit=parse_rate(limit) if limit is not None else None,
        weights=weights,
        dtype=dtype,
        aside=attempt is not None,
    )
    training = find_training(run, hosts_file, make_ask(), attempt)
    _check_apart(wish, training.run.files)
    with make_screen() as screen:
        listener = make_listener(screen)
        try:
            pulled = training.pull_along(wish, listener) if follow else training.pull(wish, listener)
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
