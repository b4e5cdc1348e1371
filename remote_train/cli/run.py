"""`run`: start a training, and stay with it."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from remote_train.cli.options import (
    FailoverAfter,
    GiveUp,
    HostsFile,
    Json,
    NoMeter,
    NoPull,
    WithFailover,
    app,
    choose_give_up,
    make_ask,
    make_listener,
    make_screen,
    settings,
)
from remote_train.cli.signals import DOUBLED, Ended, offering, stay_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.api import Training
    from remote_train.launching import Started
    from remote_train.listener import Listener
    from remote_train.preparing import Prepared
    from remote_train.show.display import Display

BARE = "\0--"
FAILOVER_SECONDS = 60.0
KEEP_SECONDS = 0.5
"""How long a Ctrl-C waits for a copy of the package to be on this laptop: the prompt is due within a second."""
OFFER_SECONDS = 3.0
STOP_SECONDS = 90.0  # the grace, what follows it, and the margin of `stop`


class RunCommand(TyperCommand):
    """`run`: options of ours stand before SCRIPT or `-m MODULE`, everything after it is the script's, `--help` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  (click's context, or typer's own)
        """Mark with BARE where SCRIPT would stand: behind `-m MODULE`, or at a `--` in its place."""
        place = self._find_module(args)
        if place is not None:
            args = [*args[:place], BARE, *args[place:]]
        elif "--" in args:
            place = args.index("--")
            args = [*args[:place], BARE, *args[place + 1 :]]
        return super().parse_args(ctx, args)

    def _find_module(self, args: list[str]) -> int | None:
        """Return the place behind `-m MODULE` among our own options, None where it is not there."""
        values = {
            name for option in self.params for name in option.opts if not getattr(option, "is_flag", True)
        }
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] != "--":
            if args[place] == "-m":
                return place + 2
            place += 2 if args[place] in values else 1
        return None


def _check_launcher(launcher: str | None) -> str | None:
    if launcher not in (None, "torchrun", "python"):
        raise typer.BadParameter(f"{launcher!r} is neither torchrun nor python", param_hint="--launcher")
    return launcher


def _check_on_busy(on_busy: str | None) -> str | None:
    if on_busy not in (None, "queue", "next", "fail", "share"):
        raise typer.BadParameter(f"{on_busy!r} is none of queue, next, fail, share", param_hint="--on-busy")
    return on_busy


@app.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[
        str | None,
        typer.Argument(metavar="[SCRIPT | -m MODULE]", help="Default: `script` of the project file."),
    ] = None,
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own arguments.")
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", metavar="MODULE", help="Run a module instead of a script.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME", help="Where to train; several: the first that is reachable and fit."
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Train on this machine's CPU.")] = False,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Do not train on this machine when no host can be reached.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="ID", help="The run's id. [default: PROJECT-MMDD-xxxx]")
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Start it and return.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="N|all|IDS", help="GPUs to use, the freest first. [default: 1]"),
    ] = None,
    on_busy: Annotated[
        str | None,
        typer.Option(
            "--on-busy",
            metavar="queue|next|fail|share",
            callback=_check_on_busy,
            help="When the GPUs are in use: wait for them, try the next host, end, or start beside whoever uses them. [default: queue]",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--nproc-per-node", metavar="N", min=1, help="Processes. [default: one per GPU]"),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher",
            metavar="torchrun|python",
            callback=_check_launcher,
            help="[default: torchrun for CUDA or several processes]",
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option("--max-restarts", metavar="N", min=0, help="How often torchrun may restart all ranks."),
    ] = 0,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="K[=V]", help="Set a variable, or pass on your own.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="Pass on a variable of yours without recording it."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Take along files that git ignores.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave files out.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="Data of the project, sent once and shared by runs."),
    ] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Option("--checkpoints", metavar="GLOB", help="Which files are checkpoints.")
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Take the code and the settings of another run; ARGS stand behind `--`.",
        ),
    ] = None,
    no_meter: NoMeter = False,
    no_pull: NoPull = False,
    give_up: GiveUp = None,
    failover: WithFailover = False,
    failover_after: FailoverAfter = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Run a training on a host, or on this machine's CPU when none can be reached."""
    from remote_train.launching import start
    from remote_train.preparing import Request
    from remote_train.preparing_from import prepare

    settings.json = json
    patience = check_failover(wanted=failover, after=failover_after, pull=not no_pull, stays=not detach)
    request = Request(
        script=None if module is not None or script == BARE else script,
        module=module,
        args=make_words(script, module, args or []),
        hosts=tuple(host or ()),
        local=local,
        fallback=not no_fallback,
        name=name,
        gpus=gpus,
        on_busy=on_busy,
        processes=processes,
        launcher=launcher,
        max_restarts=max_restarts,
        meter=not no_meter,
        env=tuple(env or ()),
        secrets=tuple(secret or ()),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        data=tuple(data or ()),
        checkpoints=tuple(checkpoints or ()),
        hosts_file=hosts_file,
        give_up=choose_give_up(give_up) if patience is None else patience,
        pull=not (no_pull or detach),
        origin=origin,
    )
    with make_screen() as screen:
        listener = make_listener(screen)
        if dry_run:
            _show_plan(prepare(request, listener, make_ask()), as_json=json)
            return
        started = start(request, listener, make_ask())
        if detach:
            leave(started, screen, listener)
            return

        def open_training() -> Training:
            from remote_train.api import training_of

            return training_of(started)

        wishes = {"shown": {0}, "pull": not no_pull, "give_up": choose_give_up(give_up)}
        with _keeping_package(started):
            stay(open_training, screen, listener, failover=patience, **wishes)


@contextlib.contextmanager
def _keeping_package(started: Started) -> Iterator[None]:
    try:
        yield
    except Ended:
        if started.keeping is not None:
            started.keeping.wait(KEEP_SECONDS)
        raise


def leave(started: Started, screen: Display, listener: Listener) -> None:
    """Say that a run is under way, and stay for what goes on behind it, not long."""
    how = "waits for its turn" if started.state.get("queue") else "runs"
    screen.say(f"it {how}; `remote-train logs -f {started.run.id}` follows it")
    started.wait_behind(listener)
    if started.keeping is not None:
        started.keeping.tell_lost(listener)


def _show_plan(prepared: Prepared, *, as_json: bool) -> None:
    from remote_train.cli.answers import show_plan

    show_plan(prepared, as_json=as_json)


def make_words(script: str | None, module: str | None, args: list[str]) -> tuple[str, ...]:
    """Return the script's arguments; behind `-m MODULE` what was taken for SCRIPT is the first of them."""
    words = ["--" if word == BARE else word for word in args]
    first = [script] if module is not None and script not in (None, BARE) else []
    return (*map(str, first), *words)


def stay(
    open_training: Callable[[], Training],
    screen: Display,
    listener: Listener,
    *,
    failover: float | None = None,
    **wishes: Any,  # noqa: ANN401  (follow's)
) -> None:
    """Follow a run; a signal detaches, and on this machine a second Ctrl-C a moment later stops it.

    With `failover` it goes on elsewhere when its host is lost, or silent for so many seconds.
    """
    training = None
    try:
        gc.enable()  # off since the process began
        training = open_training()
        if failover is None:
            training.follow(listener, **wishes)
        else:
            _stay_anywhere(training, listener, failover, wishes)
    except Ended as cut:
        _detach(training or open_training(), screen, listener, cut.number)
        raise


def _stay_anywhere(training: Training, listener: Listener, seconds: float, wishes: dict[str, Any]) -> None:
    from remote_train.consent import recall_secrets
    from remote_train.failover import Failover

    started = training.started
    if started is not None and started.keeping is not None:
        started.keeping.is_urgent = True
    secrets = recall_secrets(training.run, make_ask()) if started is None else started.prepared.secret_env
    Failover(training, listener, seconds, wishes.pop("give_up", None), secrets).follow(**wishes)


def check_failover(*, wanted: bool, after: float | None, pull: bool, stays: bool) -> float | None:
    """Return after how many seconds of silence to go on elsewhere, None for never; refuse what cannot be."""
    if after is not None and (math.isnan(after) or not wanted):
        why = "nan is no time" if wanted else "means nothing without --failover"
        raise typer.BadParameter(why, param_hint="--failover-after")
    if wanted and not stays:
        why = "somebody has to stay with the run: leave out -d, or follow it with `logs -f --failover`"
        raise typer.BadParameter(why, param_hint="--failover")
    if wanted and not pull:
        why = "without its checkpoints at home a run cannot go on elsewhere"
        raise typer.BadParameter(why, param_hint="--no-pull")
    return (FAILOVER_SECONDS if after is None else after) if wanted else None


def _detach(training: Training, screen: Display, listener: Listener, number: int) -> None:
    from remote_train.attempts import OVER

    if training.run.is_gone():
        listener.tell("detached", run=f"{training.link.host.name}:{training.run.id}")
        return
    if training.run.read()["state"] in OVER:
        say_pull_goes_on(training, listener)
        return
    listener.tell("detached", run=training.id)
    from remote_train.fencing import render_pending

    for text in render_pending(training.run):
        listener.tell("note", text=text)
    if training.link.is_local and number == signal.SIGINT:
        _offer_stop(training, screen, listener)


def say_pull_goes_on(training: Training, listener: Listener) -> None:
    """Say what there is of a pull that was interrupted."""
    text = f"files of {training.id} that came whole are kept; `remote-train pull {training.id}` brings the others"
    listener.tell("interrupted", run=training.id, text=text)


def _offer_stop(training: Training, screen: Display, listener: Listener) -> None:
    """Wait a moment for a second Ctrl-C; one that comes within half a second only means the first."""
    screen.say(f"Ctrl-C once more within {OFFER_SECONDS:.0f} s stops it")
    began = time.monotonic()
    try:
        with offering(OFFER_SECONDS):
            time.sleep(OFFER_SECONDS)
    except Ended as second:
        if second.number == signal.SIGINT and time.monotonic() - began >= DOUBLED:
            stay_for(STOP_SECONDS)
            training.stop(listener=listener)
            screen.say(f"{training.id} was stopped")
