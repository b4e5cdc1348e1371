"""The commands and their options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import remote_train

if TYPE_CHECKING:
    from remote_train.api import Training
    from remote_train.listener import Listener
    from remote_train.show.screen import Screen
    from remote_train.transport import Ask

BARE = "\0--"
HELP = {"help_option_names": ["-h", "--help"]}


@dataclass
class Settings:
    """What the whole process was asked for."""

    debug: bool = False
    json: bool = False


settings = Settings()
app = typer.Typer(
    name="remote-train",
    help="Send a PyTorch training run to a GPU box over SSH, and follow it as if it were local.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    rich_markup_mode=None,
)

RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="Id, unique prefix, HOST:ID; default: this project's latest."),
]
HostsFile = Annotated[
    Path | None, typer.Option("--hosts-file", envvar="REMOTE_TRAIN_HOSTS", help="Use this hosts.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
GiveUp = Annotated[
    float | None,
    typer.Option(
        "--give-up",
        metavar="SECONDS",
        help="Leave after so long without a connection; the run goes on. [default: never on a terminal, else 600]",
    ),
]
NoPull = Annotated[
    bool, typer.Option("--no-pull", help="Do not bring the newest checkpoint home at the end.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"remote-train {remote_train.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    settings.debug = debug


class RunCommand(TyperCommand):
    """`run`: options of ours stand before SCRIPT, everything after it is the script's, `--` and `--help` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  (click's context, or typer's own)
        """Keep the first `--` visible: in front of SCRIPT's place it means that there is none."""
        if "--" in args:
            place = args.index("--")
            args = [*args[:place], BARE, *args[place + 1 :]]
        return super().parse_args(ctx, args)


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
        str, typer.Option("--gpus", metavar="N|all|IDS", help="GPUs to use, the freest first.")
    ] = "1",
    processes: Annotated[
        int | None,
        typer.Option("--nproc-per-node", metavar="N", min=1, help="Processes. [default: one per GPU]"),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher", metavar="torchrun|python", help="[default: torchrun for CUDA or several processes]"
        ),
    ] = None,
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
        typer.Option("--data", metavar="PATH", help="A folder that lies on the host already (hosts.toml)."),
    ] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Option("--checkpoints", metavar="GLOB", help="Which files are checkpoints.")
    ] = None,
    no_pull: NoPull = False,
    give_up: GiveUp = None,
    hosts_file: HostsFile = None,
    json: Json = False,
) -> None:
    """Run a training on a host, or on this machine's CPU when none can be reached."""
    from remote_train.launch import Request, prepare

    settings.json = json
    if launcher not in (None, "torchrun", "python"):
        raise typer.BadParameter(f"{launcher!r} is neither torchrun nor python", param_hint="--launcher")
    words = ["--" if word == BARE else word for word in args or []]
    if module is not None and script is not None:
        words = [*([script] if script != BARE else []), *words]
    request = Request(
        script=None if module is not None or script == BARE else script,
        module=module,
        args=tuple(words),
        hosts=tuple(host or ()),
        local=local,
        fallback=not no_fallback,
        name=name,
        gpus=gpus,
        processes=processes,
        launcher=launcher,
        env=tuple(env or ()),
        secrets=tuple(secret or ()),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        data=tuple(data or ()),
        checkpoints=tuple(checkpoints or ()),
        hosts_file=hosts_file,
        give_up=choose_give_up(give_up),
    )
    with make_screen() as screen:
        listener = make_listener(screen)
        if dry_run:
            from remote_train.cli.answers import show_plan

            show_plan(prepare(request, listener, make_ask()), as_json=json)
            return
        from remote_train.api import start

        training = start(request, listener, make_ask())
        if detach:
            screen.say(f"it runs; `remote-train logs -f {training.id}` follows it")
            return
        stay(training, screen, listener, shown={0}, pull=not no_pull, give_up=request.give_up)


def make_screen() -> Screen:
    """Return the screen of this process."""
    import os

    from remote_train.show import live

    return live.make_screen(colour="NO_COLOR" not in os.environ)


def make_listener(screen: Screen, *, prefix_ranks: bool = False) -> Listener:
    """Return who is told what happens: a person, or a program with --json."""
    from remote_train.show.live import JsonListener, LiveListener

    if settings.json:
        return JsonListener(sys.stdout.buffer)
    return LiveListener(screen, prefix_ranks=prefix_ranks)


def make_ask() -> Ask | None:
    """Return a way to ask the person at the terminal a yes-or-no question; None where nobody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, default=False, err=True)


def choose_give_up(given: float | None) -> float | None:
    """Return the patience: endless for a person, ten minutes for a program."""
    if given is not None:
        return given
    return None if sys.stdout.isatty() or sys.stderr.isatty() else 600.0


def stay(training: Training, screen: Screen, listener: Listener, **wishes: Any) -> None:  # noqa: ANN401  (follow's)
    """Follow a run; Ctrl-C detaches, and on this machine a second one a moment later stops it."""
    from remote_train.cli.main import Ended

    try:
        training.follow(listener, **wishes)
    except KeyboardInterrupt:
        screen.status(None)
        screen.say(
            f"detached, {training.id} goes on; `remote-train logs -f {training.id}` attaches again, "
            f"`remote-train stop {training.id}` stops it"
        )
        if training.link.is_local:
            _offer_stop(training, screen, listener)
        raise
    except Ended:
        screen.status(None)
        raise


def _offer_stop(training: Training, screen: Screen, listener: Listener) -> None:
    """Wait a moment for a second Ctrl-C; one that comes within half a second only means the first."""
    import time

    screen.say("Ctrl-C once more within 3 s stops it")
    began = time.monotonic()
    try:
        time.sleep(3.0)
    except KeyboardInterrupt:
        if time.monotonic() - began >= 0.5:
            training.stop(listener=listener)
            screen.say(f"{training.id} was stopped")


from remote_train.cli import hosts, runs  # noqa: E402, F401  (their commands register themselves on `app`)
