"""`resume`: go on from the newest checkpoint, on the same host or elsewhere, and stay with it as `run` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from remote_train.cli.options import (
    GiveUp,
    HostsFile,
    Json,
    NoMeter,
    NoPull,
    app,
    choose_give_up,
    make_ask,
    make_listener,
    make_screen,
    settings,
)
from remote_train.cli.run import BARE, leave, stay

if TYPE_CHECKING:
    from remote_train.api import Training


class ResumeCommand(TyperCommand):
    """`resume`: what stands behind `--` is the script's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  (click's context, or typer's own)
        """Mark with BARE where the script's arguments begin: RUN may be left out."""
        if "--" in args:
            place = args.index("--")
            args = [*args[: place + 1], BARE, *args[place + 1 :]]
        return super().parse_args(ctx, args)


@app.command(cls=ResumeCommand)
def resume(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [-- ARGS]...",
            help="Id, unique prefix, HOST:ID, default: this project's latest; and more arguments of the script.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="NAME", help="Where to go on. [default: where it was]"),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Go on on this machine's CPU.")] = False,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Without a checkpoint, begin anew even if the last attempt may still run."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Start it and return.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="NAME", help="Pass on one more variable of yours without recording it."
        ),
    ] = None,
    no_meter: NoMeter = False,
    no_pull: NoPull = False,
    give_up: GiveUp = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Go on with a run that is over, from its newest checkpoint, as its next attempt."""
    from remote_train.api import training_of
    from remote_train.find import find_run_of
    from remote_train.resume import ResumeWish
    from remote_train.resume import resume as start

    settings.json = json
    name, args = split_words(words or [])
    wish = ResumeWish(
        host=host,
        local=local,
        args=args,
        secrets=tuple(secret or ()),
        meter=not no_meter,
        hosts_file=hosts_file,
        give_up=choose_give_up(give_up),
        pull=not (no_pull or detach),
        anew=anew,
    )
    with make_screen() as screen:
        listener = make_listener(screen)
        started = start(find_run_of(name, hosts_file, make_ask()), wish, listener, make_ask())
        if detach:
            leave(started, screen, listener)
            return

        def open_training() -> Training:
            return training_of(started)

        stay(open_training, screen, listener, shown={0}, pull=not no_pull, give_up=wish.give_up)


def split_words(words: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return RUN, None when it was left out, and the script's arguments."""
    place = words.index(BARE) if BARE in words else len(words)
    if place > 1:
        raise typer.BadParameter(
            f"{words[1]!r}: one run at a time; arguments of the script stand behind `--`", param_hint="RUN"
        )
    return (words[0] if place else None), tuple(words[place + 1 :])
