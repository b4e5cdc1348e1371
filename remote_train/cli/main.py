"""The one place that ends the process: errors and signals to exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from remote_train.cli import (
    benching,
    cleaning,
    comparing,
    doctor,
    explaining,
    host_changes,
    hosts,
    plotting,
    pulling,
    resume,
    run,
    runs,
)
from remote_train.cli.options import app, name_hosts_file, settings
from remote_train.cli.signals import Ended, end_on_signals, give_back, restore_terminal, settle
from remote_train.errors import (
    EXIT_BUG,
    ConnectionGivenUp,
    ConnectionLost,
    HostUnfit,
    LocalSpace,
    RemoteTrainError,
)
from remote_train.host.disk import FAILING

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = (
    run,
    runs,
    explaining,
    comparing,
    plotting,
    resume,
    pulling,
    benching,
    hosts,
    host_changes,
    doctor,
    cleaning,
)
"""Modules whose commands have registered themselves on `app`."""

CUT_OFF = 141

COMMAND_LINE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""The base of what typer raises for a wrong command line; typer has click or, from 0.26 on, its own copy of it."""


def main() -> NoReturn:
    """Run the command line and exit with the contract's code."""
    open_closed_streams()
    os.umask(os.umask(0o077) & 0o077)  # what we make is at least ours to read
    try:
        end_on_signals()
    except RuntimeError as error:  # no thread could be started
        os._exit(_show_unexpected(error))
    try:
        code = _run()
        settle()
    except Ended as cut:
        restore_terminal()
        code = 128 + cut.number
    give_back()
    # Threads that wait for a silent host must not keep the prompt.
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        code = code or (LocalSpace.exit_code if is_local_space(error) else CUT_OFF)
    os._exit(code)


def open_closed_streams() -> None:
    """Give the process the standard streams that it was started without, or its first socket would be its stdout."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    # Python has None for those, and stdin is only ever asked whether it is a terminal.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123  (until the end)


def _run() -> int:
    from remote_train.show.screen import OutputClosed

    try:
        code = app(standalone_mode=False)
    except (RemoteTrainError, ConnectionLost, COMMAND_LINE_ERROR) as error:
        return _show_expected(error)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except SystemExit as over:  # typer's answer to a broken pipe, and its end after --show-completion
        return CUT_OFF if over.code else 0
    except (OutputClosed, BrokenPipeError):
        return CUT_OFF
    except Exception as error:  # noqa: BLE001  (the one place that turns our bugs into exit 70)
        return _show_unexpected(error)
    return code if isinstance(code, int) else 0


def is_local_space(error: OSError) -> bool:
    """Tell whether this machine's disk or a limit of it is in the way, whatever was being written."""
    return error.errno in (*FAILING, errno.EFBIG, errno.EMFILE, errno.ENFILE)


def _show_expected(error: Exception) -> int:
    if isinstance(error, RemoteTrainError):
        return _show(error)
    if isinstance(error, ConnectionLost):
        return _show(ConnectionGivenUp(str(error), hint="run the same command again"))
    show: Callable[[], None] = getattr(error, "show")  # noqa: B009  (what COMMAND_LINE_ERROR always has)
    show()
    return 2


def _show(error: RemoteTrainError) -> int:
    from remote_train.show.jsonl import describe_error, write_event
    from remote_train.show.live import make_screen
    from remote_train.show.screen import OutputClosed

    if settings.debug:
        raise error
    error.hint = name_hosts_file(error.hint)
    if settings.json:
        with contextlib.suppress(OutputClosed, LocalSpace):  # which may be what the error is about
            write_event(sys.stdout.buffer, "error", describe_error(error) or {})
    with make_screen(colour="NO_COLOR" not in os.environ) as screen:
        screen.error(error.message, error.hint)
    return error.exit_code


def _show_unexpected(error: Exception) -> int:
    """Show a disk, or a limit, that was in the way where nobody expected it as what it is; anything else is a bug."""
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        hint = "raise the limit on processes (`ulimit -u`), or end some"
        return _show(HostUnfit("this machine lets us start no more threads", hint=hint))
    if not isinstance(error, OSError) or not is_local_space(error):
        return _show_bug(error)
    from remote_train.records import make_local_space

    place = Path(str(error.filename)) if error.filename else Path("a file of this machine")
    return _show(make_local_space(place, error))


def _show_bug(error: Exception) -> int:
    if settings.debug:
        raise error
    from remote_train.show.live import make_screen

    with make_screen(colour=False) as screen:
        screen.say(
            f"this is a bug of ours: {type(error).__name__}: {str(error)[:2000]}\n"
            "run it again as `remote-train --debug …` and report what it prints"
        )
    return EXIT_BUG
