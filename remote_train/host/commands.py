"""Run several short commands at once, with a time limit and bounded output; modules of ours in other Pythons too."""

import contextlib
import errno
import json
import os
import selectors
import signal
import subprocess
import time
from typing import Any, Dict, List, NamedTuple, Optional

from remote_train.host.durable import write_all

_KEPT_BYTES = 65536
KILL_SECONDS = 1.0
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOEXEC)
"""What keeps a program from starting for good: it is not there, or is none; all else may be better the next time."""
ABOVE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder in which another Python finds our package."""
_UNABLE = (126, 127, 128 + signal.SIGKILL)
"""Exit codes of a loader or a shell that could not run a program now: no address space, no descriptor, killed below a wrapper."""
_SCRIPT = (
    "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); "
    "from remote_train.host.%s import main; main()"
)


class Command(NamedTuple):
    """A command that runs, with the last bytes it wrote."""

    process: "Optional[subprocess.Popen[bytes]]"
    output: bytearray
    errors: bytearray
    unborn: bool = False
    """It did not start, which may be otherwise the next time."""


class Outcome(NamedTuple):
    """How a command ended: `problem` is None for exit code 0, else plain words."""

    output: str
    problem: Optional[str]
    passing: bool = False
    """There was no answer now: too slow, ended by a signal, or the machine lacks something. The next time there may be one."""


def start_command(argv: List[str], env: Optional[Dict[str, str]] = None) -> Command:
    """Start a command in its own session, without input, in the root folder; what stops it from starting is kept."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a null byte in a path
        words = error.strerror if isinstance(error, OSError) else None
        unborn = isinstance(error, OSError) and error.errno not in _LASTING
        return Command(None, bytearray(), bytearray((words or str(error)).encode()), unborn)
    return Command(process, bytearray(), bytearray())


def start_script(
    module: str,
    job: Dict[str, Any],
    python: str,
    env: Optional[Dict[str, str]] = None,
    errors: int = subprocess.PIPE,
) -> "subprocess.Popen[bytes]":
    """Have a Python run `main` of a module of ours, its job a line on stdin; raise OSError or ValueError where it cannot be started.

    Its stdin stays open: the end of it is how it hears that we are gone, whatever we die of.
    """
    process = subprocess.Popen(
        [python, "-c", _SCRIPT % module, ABOVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd="/",
        env=env,
        start_new_session=True,
    )
    with contextlib.suppress(BrokenPipeError):  # it has ended already: its last words say why
        write_all(process.stdin.fileno(), json.dumps(job).encode("ascii") + b"\n")  # type: ignore[union-attr]  # it has a pipe
    return process


def run_script(module: str, job: Dict[str, Any], python: str, env: Dict[str, str], seconds: float) -> Outcome:
    """Do the same, and wait so long for its end."""
    try:
        process = start_script(module, job, python, env)
    except (OSError, ValueError) as error:
        return Outcome("", str(error))
    with process.stdin:  # type: ignore[union-attr]  # it has a pipe
        return finish_commands([Command(process, bytearray(), bytearray())], seconds)[0]


def finish_commands(commands: List[Command], seconds: float) -> List[Outcome]:
    """Wait for all; one that has not ended in time is killed with everything in its session's group."""
    deadline = time.monotonic() + seconds
    hear_commands(commands, seconds)
    return [_finish(command, max(deadline - time.monotonic(), 0.0), seconds) for command in commands]


def hear_commands(commands: List[Command], seconds: float) -> bool:
    """Keep what they say for so long; tell whether all have said everything. May be called again."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for command in commands:
            _register(selector, command)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(deadline - time.monotonic(), 0.0)):
                _keep(selector, key)
        return not selector.get_map()


def _register(selector: selectors.BaseSelector, command: Command) -> None:
    process = command.process
    if process is not None and process.stdout is not None and process.stderr is not None:
        selector.register(process.stdout, selectors.EVENT_READ, command.output)
        selector.register(process.stderr, selectors.EVENT_READ, command.errors)


def _keep(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Read what is there and keep the end of it: a program that prints without end must not fill our memory."""
    piece = os.read(key.fd, _KEPT_BYTES)
    if piece:
        key.data.extend(piece)
        del key.data[:-_KEPT_BYTES]
    else:
        selector.unregister(key.fileobj)


def _finish(command: Command, left: float, limit: float) -> Outcome:
    output = command.output.decode("utf-8", "replace")
    errors = command.errors.decode("utf-8", "replace")
    process = command.process
    if process is None:
        return Outcome("", errors, command.unborn)
    try:
        code = process.wait(left)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return Outcome(output, "no end within %g s" % limit, True)
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    problem = None if code == 0 else choose_line(errors) or "ended with code %d" % code
    return Outcome(output, problem, code < 0 or code in _UNABLE)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill it without waiting for long: a process that hangs in a driver does not die."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILL_SECONDS)
    except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        # Python warns of a Popen that is dropped while it runs; this one is given up on purpose.
        process.returncode = process.returncode if process.returncode is not None else -signal.SIGKILL


def choose_line(errors: str) -> str:
    """Return the line of an error output that says most: the last, but for programs that put the reason first."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("pyenv:", "Fatal Python error")):
            return line
    return lines[-1] if lines else ""


def find_marked(output: str, marker: str) -> Optional[str]:
    """Return what follows the marker in the last line that begins with it; everything else is noise."""
    for line in reversed(output.splitlines()):
        if line.startswith(marker):
            return line[len(marker) :]
    return None
