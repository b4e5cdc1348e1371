"""What the commands share: the application, the options they have in common, and who is told what happens."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import remote_train

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.listener import Listener
    from remote_train.show.display import Display
    from remote_train.transport.keyholder import Keyholder

HELP = {"help_option_names": ["-h", "--help"]}


@dataclass
class Settings:
    """What the whole process was asked for."""

    debug: bool = False
    json: bool = False
    hosts_file: Path | None = None
    """What --hosts-file names; a variable of the shell is there for the next command too."""


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


def _note_hosts_file(path: Path | None) -> Path | None:
    import os

    settings.hosts_file = path if str(path) != os.environ.get("REMOTE_TRAIN_HOSTS") else None
    return path


HostsFile = Annotated[
    Path | None,
    typer.Option(
        "--hosts-file",
        envvar="REMOTE_TRAIN_HOSTS",
        callback=_note_hosts_file,
        help="Use this hosts.toml.",
    ),
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
WithFailover = Annotated[
    bool,
    typer.Option(
        "--failover", help="Go on elsewhere from the newest checkpoint when the host is lost or silent."
    ),
]
FailoverAfter = Annotated[
    float | None,
    typer.Option(
        "--failover-after", metavar="SECONDS", min=0, help="How long silent is, for --failover. [default: 60]"
    ),
]
NoMeter = Annotated[
    bool, typer.Option("--no-meter", help="Do not time steps and count FLOPs inside the training.")
]
NoPull = Annotated[
    bool,
    typer.Option("--no-pull", help="Do not bring checkpoints home, neither as they appear nor at the end."),
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


def make_screen() -> Display:
    """Return the screen of this process."""
    import os

    from remote_train.cli.signals import restore_with
    from remote_train.show import live

    screen = live.make_screen(colour="NO_COLOR" not in os.environ)
    restore_with(screen.farewell)
    return screen


def say(text: str) -> None:
    """Write one message of ours to stderr."""
    with make_screen() as screen:
        screen.say(text)


def make_listener(screen: Display, *, prefix_ranks: bool = False) -> Listener:
    """Return who is told what happens: a person, or a program with --json."""
    from remote_train.show.jsonl import JsonListener
    from remote_train.show.live import LiveListener

    if settings.json:
        return JsonListener(sys.stdout.buffer)
    return LiveListener(screen, prefix_ranks=prefix_ranks)


def make_ask() -> Keyholder | None:
    """Return the person at the terminal, the same one for the whole command; None where nobody can answer."""
    return _make_keyholder() if sys.stdin.isatty() and sys.stderr.isatty() else None


@functools.cache
def _make_keyholder() -> Keyholder:
    from remote_train.cli.signals import give_back_with
    from remote_train.transport import foreground
    from remote_train.transport.keyholder import Keyholder

    give_back_with(foreground.leave)
    return Keyholder(_confirm, _ask_secret)


def _take_line() -> None:
    """Have a line for a question: ours that says what we wait for stands where it would begin."""
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


def _confirm(question: str) -> bool:
    _take_line()
    return typer.confirm(question, default=False, err=True)


def _ask_secret(prompt: str, echo: bool) -> str | None:
    """Ask for one line; what is not to be seen is read with the echo off before the prompt is seen."""
    from getpass import getpass

    _take_line()
    try:
        if not echo:
            return getpass(prompt, sys.stderr)
        typed: str = typer.prompt(
            prompt.rstrip(), default="", show_default=False, err=True, prompt_suffix=" "
        )
    except EOFError:
        return None
    return typed


def make_type_in() -> Callable[[str], str] | None:
    """Return a way to have the person at the terminal type a line; None where nobody can."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda words: str(typer.prompt(words, default="", show_default=False, err=True))


def name_hosts_file(text: str | None) -> str | None:
    """Complete the commands about hosts in a next step: typed as it stands, each is about the file in use."""
    if text is None or settings.hosts_file is None:
        return text
    import re
    import shlex

    option = f" --hosts-file {shlex.quote(str(settings.hosts_file))}"
    return re.sub(r"remote-train (?:hosts [a-z]+|doctor|run)\b", lambda command: command[0] + option, text)


def choose_give_up(given: float | None) -> float | None:
    """Return the patience: endless for a person, ten minutes for a program."""
    if given is not None:
        return given
    return None if sys.stdout.isatty() or sys.stderr.isatty() else 600.0
