"""The one place that ends the process: errors to exit codes, signals to a detach."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from remote_train.cli import hosts, run, runs
from remote_train.cli.options import app, settings
from remote_train.cli.signals import Ended, end_on_signals
from remote_train.errors import EXIT_BUG, ConnectionGivenUp, ConnectionLost, RemoteTrainError

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = (run, runs, hosts)
"""Modules whose commands have registered themselves on `app`."""

CUT_OFF = 141

COMMAND_LINE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""The base of what typer raises for a wrong command line; typer has click or, from 0.26 on, its own copy of it."""


def main() -> NoReturn:
    """Run the command line and exit with the contract's code."""
    end_on_signals()
    code = _run()
    # Threads that wait for a silent host must not keep the prompt.
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or CUT_OFF
    os._exit(code)


def _run() -> int:
    from remote_train.show.screen import OutputClosed

    try:
        code = app(standalone_mode=False)
    except (RemoteTrainError, ConnectionLost, COMMAND_LINE_ERROR) as error:
        return _show_expected(error)
    except (KeyboardInterrupt, typer.Abort, Ended) as cut:
        return 128 + (cut.number if isinstance(cut, Ended) else signal.SIGINT)
    except (OutputClosed, BrokenPipeError):
        return CUT_OFF
    except Exception as error:  # noqa: BLE001  (the one place that turns our bugs into exit 70)
        return _show_bug(error)
    return code if isinstance(code, int) else 0


def _show_expected(error: Exception) -> int:
    if isinstance(error, RemoteTrainError):
        return _show(error)
    if isinstance(error, ConnectionLost):
        return _show(ConnectionGivenUp(str(error), hint="run the same command again"))
    show: Callable[[], None] = getattr(error, "show")  # noqa: B009  (what COMMAND_LINE_ERROR always has)
    show()
    return 2


def _show(error: RemoteTrainError) -> int:
    from remote_train.show.jsonl import write_event
    from remote_train.show.live import describe_error, make_screen

    if settings.debug:
        raise error
    if settings.json:
        write_event(sys.stdout.buffer, "error", describe_error(error) or {})
    with make_screen(colour="NO_COLOR" not in os.environ) as screen:
        screen.error(error.message, error.hint)
    return error.exit_code


def _show_bug(error: Exception) -> int:
    if settings.debug:
        raise error
    from remote_train.show.neutral import neutral_text

    said = neutral_text(str(error)[:2000])
    sys.stderr.write(
        f"remote-train: this is a bug of ours: {type(error).__name__}: {said}\n"
        "run it again as `remote-train --debug …` and report what it prints\n"
    )
    return EXIT_BUG
