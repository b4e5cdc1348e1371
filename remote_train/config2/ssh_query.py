"""Run `ssh -G`, several at once, and say in our words when ssh refuses its own configuration.

The only place that starts ssh. It never connects: -G prints what ssh would do and ends.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_SECONDS = 10  # normally 4 ms; a Match exec of the user's may take longer
_NOISE = ("Pseudo-terminal will not", "Warning: Identity file")


def run_ssh_queries(commands: Sequence[list[str]], environ: Mapping[str, str]) -> list[str]:
    """Run the commands side by side and return what each printed. Raises ConfigError."""
    with ExitStack() as stack:
        # Each prints some 6 KB, which fits a pipe: reading one after the other cannot block another.
        running = [stack.enter_context(_start(command, environ)) for command in commands]
        try:
            return [_finish(process) for process in running]
        finally:
            for process in running:
                process.kill()


def _start(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise ConfigError([f"{command[0]}: cannot be started: {error.strerror}"]) from None


def _finish(process: subprocess.Popen[str]) -> str:
    host = str(process.args[-1]) if isinstance(process.args, list) else ""
    try:
        output, complaint = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            [f"ssh_config: host {host}: `ssh -G` did not answer within {TIMEOUT_SECONDS} s"],
            hint="look for a slow Match exec in ~/.ssh/config",
        ) from None
    if process.returncode != 0:
        lines = [line for line in complaint.splitlines() if line and not line.startswith(_NOISE)]
        raise ConfigError([f"ssh_config: host {host}: {line}" for line in lines or ["`ssh -G` failed"]])
    return output
