"""The two ways to get a script to its first line on the laptop: ours, and by hand. Timed from process start.

By hand is what a person types without remote-train: `rsync -az` of the project, `ssh` that starts the script in a session of
its own, `ssh tail -F` of its log, one after the other from one sh; without ControlMaster unless said otherwise.
Each side's first line must be the one that the version just written prints, else the run counts as failed.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.delay_proxy import OPEN
from bench.line import count_round_trips
from bench.machines import HOST, PATIENCE, SHARED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.delay_proxy import Event
    from bench.machines import Machines, Project

COMMAND = str(Path(sys.executable).with_name("remote-train"))
LINE_SECONDS = 120.0


class SideFailed(Exception):
    """A side did not do its job; the message holds what it said."""


@dataclass(frozen=True)
class Sample:
    """One timed run."""

    seconds: float
    """From process start to the script's first line; for rsync alone, to its end."""
    round_trips: float
    """As the proxy counted them, TCP's own included; an upper bound, of use only where the round-trip time is not 0."""
    connections: int


@dataclass
class Timed:
    """A process being timed: what it writes to stdout through a pipe."""

    argv: Sequence[str]
    process: subprocess.Popen[bytes]
    began: float
    stderr: Path
    held: bytes = b""
    """What came together with the first line, after it."""

    def read_line(self) -> tuple[bytes, float]:
        """Return the first line and when it was whole."""
        assert self.process.stdout is not None
        held = b""
        while b"\n" not in held:
            readable, _, _ = select.select([self.process.stdout], [], [], LINE_SECONDS)
            piece = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            if not piece:
                raise SideFailed(
                    f"{shlex.join(self.argv)}\nprinted {held!r} and no line\n{self.read_errors()}"
                )
            held += piece
        when = time.monotonic()
        line, _, self.held = held.partition(b"\n")
        return line + b"\n", when

    def finish(self) -> bytes:
        """Wait for its end; return its output after the first line. Raise SideFailed unless it ended well."""
        rest, _ = self.process.communicate(timeout=LINE_SECONDS)
        if self.process.returncode:
            raise SideFailed(f"{shlex.join(self.argv)}\nexit {self.process.returncode}\n{self.read_errors()}")
        return self.held + rest

    def end(self) -> None:
        """End it and what it started here."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE)

    def read_errors(self) -> str:
        """Return what it wrote to stderr so far."""
        return self.stderr.read_text(errors="replace")


def start(machines: Machines, argv: Sequence[str], cwd: Path) -> Timed:
    """Start a process on the laptop, in a group of its own."""
    stderr = machines.folder / "stderr"
    with stderr.open("wb") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=machines.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    return Timed(argv, process, began, stderr)


def make_sample(events: Sequence[Event], began: float, ended: float) -> Sample:
    """Return a sample from the times and what the proxy saw."""
    trips = sum(count_round_trips(events, ended).values())
    connections = sum(event.kind == OPEN and event.at <= ended for event in events)
    return Sample(ended - began, trips, connections)


def check_line(line: bytes, project: Project, timed: Timed) -> None:
    """Raise SideFailed unless the line is the one of the project as it is now."""
    if line != project.first_line:
        raise SideFailed(f"{shlex.join(timed.argv)}\nprinted {line!r}, not {project.first_line!r}")


def our_argv(
    *options: str, host: str = HOST, launcher: str = "python", script: Sequence[str] = ("hello.py",)
) -> list[str]:
    """Return the command that is timed."""
    chosen = ["--host", host, "--no-fallback", "--no-pull", "--launcher", launcher, *options]
    return [COMMAND, "run", *chosen, *script]


def run_ours(machines: Machines, project: Project, host: str = HOST, launcher: str = "python") -> Sample:
    """Time `remote-train run` once; the run is then left to end."""
    machines.proxy.take_events()
    timed = start(machines, our_argv(host=host, launcher=launcher), project.ours)
    try:
        line, when = timed.read_line()
        check_line(line, project, timed)
        timed.finish()
    except BaseException:
        timed.end()
        raise
    machines.settle()
    return make_sample(machines.proxy.take_events(), timed.began, when)


def make_rsync(machines: Machines, project: Project, host: str) -> list[str]:
    """Return the command that brings the project up to date by hand."""
    remote = f"{host}:{machines.host}/{project.name}/"
    return ["rsync", "-az", "-e", f"ssh -F {machines.ssh_config}", f"{project.by_hand}/", remote]


def make_by_hand(machines: Machines, project: Project, host: str) -> str:
    """Return what is typed by hand, as one line of sh."""
    return f"{shlex.join(make_rsync(machines, project, host))} && {make_watch(machines, project, 'hello.py', host)}"


def make_watch(machines: Machines, project: Project, script: str, host: str = HOST) -> str:
    """Return what starts a script by hand and follows its log, which has a new name each time."""
    folder = machines.host / project.name
    log = f"{folder}/log.{time.monotonic_ns()}"
    ssh = ["ssh", "-F", str(machines.ssh_config), host]
    python = f"setsid nohup {sys.executable} -u {script} > {log} 2>&1 < /dev/null &"
    begin = shlex.join([*ssh, f"cd {folder} && {{ {python} }}"])
    return f"{begin} && exec {shlex.join([*ssh, f'tail -n +1 -F {log}'])}"


def run_by_hand(machines: Machines, project: Project, host: str = HOST) -> Sample:
    """Time the job by hand once, then end its `tail`; a connection that is shared is closed too."""
    machines.proxy.take_events()
    argv = ["sh", "-c", make_by_hand(machines, project, host)]
    timed = start(machines, argv, project.by_hand)
    try:
        line, when = timed.read_line()
        check_line(line, project, timed)
    finally:
        timed.end()
        if host == SHARED:
            close_shared(machines)
        machines.end_leftovers()
    events = machines.proxy.take_events()
    machines.settle()
    return make_sample(events, timed.began, when)


def close_shared(machines: Machines) -> None:
    """End ssh's master; it overwrites its own environment and so carries no mark."""
    argv = ["ssh", "-F", str(machines.ssh_config), "-O", "exit", SHARED]
    subprocess.run(argv, env=machines.environment, check=False, capture_output=True)


def open_shared(machines: Machines) -> None:
    """Open the connection that ssh's ControlMaster then shares."""
    argv = ["ssh", "-F", str(machines.ssh_config), SHARED, "true"]
    start(machines, argv, machines.laptop).finish()


def run_rsync(machines: Machines, project: Project) -> Sample:
    """Time rsync alone, to its end."""
    machines.proxy.take_events()
    timed = start(machines, make_rsync(machines, project, HOST), project.by_hand)
    timed.finish()
    return make_sample(machines.proxy.take_events(), timed.began, time.monotonic())
