"""Kill a command, or fail it, at its n-th system call of a kind: strace's injection, with the real programs.

What can be hit is found by a run that is only watched: each kind of call that a process made, as often as the busiest
of its processes made it. strace counts for every process by itself.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from remote_train.transport.local import LocalTransport

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from remote_train.transport.local import LocalChannel

CHANGING = (
    *("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "rename", "renameat", "renameat2"),
    *("mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "clone", "clone3", "fork"),
    "vfork",
)
"""Calls that change what others see; `?` before each of them lets an architecture lack it."""
OPENING = ("openat",)
_CALL = re.compile(r"(\d+) +(\w+)\(")
DISK = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EINTR")


@dataclass(frozen=True)
class Hit:
    """Where to hit: the n-th call of a name in any process, and with what."""

    call: str
    number: int
    how: str
    """`signal=SIGKILL` or `error=ENOSPC`."""

    def arguments(self) -> list[str]:
        """Return strace's arguments."""
        return ["-e", f"trace={self.call}", "-e", f"inject={self.call}:{self.how}:when={self.number}"]


def make_argv(log: Path, hit: Hit | None, calls: Sequence[str] = (*CHANGING, *OPENING)) -> list[str]:
    """Return what to put before a command: strace that hits it, or only notes its calls."""
    watch = ["-e", "trace=" + ",".join(f"?{call}" for call in calls), "-s", "0"]
    # Never with --seccomp-bpf: on some kernels nothing is injected then.
    return ["strace", "-f", "-qq", "-o", str(log), *(hit.arguments() if hit else watch)]


def count_calls(log: Path) -> dict[str, int]:
    """Return how often the busiest process made each call, from the notes of a run that was only watched."""
    seen = collections.Counter(_CALL.findall(log.read_text(errors="replace")))
    most: dict[str, int] = {}
    for (_, call), number in seen.items():
        most[call] = max(most.get(call, 0), number)
    return most


def was_felt(log: Path, seconds: float = 3.0) -> bool:
    """Tell whether the hit came to pass, once strace has noted it; a process that makes fewer calls this time is spared."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        notes = log.read_text(errors="replace")
        if "(INJECTED)" in notes or "killed by SIGKILL" in notes:
            return True
        time.sleep(0.02)
    return False


def list_kills(counts: dict[str, int]) -> list[Hit]:
    """Return every call to be killed at."""
    names = [name for name in sorted(counts) if name in CHANGING]
    return [Hit(name, number, "signal=SIGKILL") for name in names for number in range(1, counts[name] + 1)]


def list_failures(counts: dict[str, int]) -> list[Hit]:
    """Return every call with every error that it may give."""
    hits = []
    for name in sorted(counts):
        for number in range(1, counts[name] + 1):
            hits += [Hit(name, number, f"error={error}") for error in _errors_of(name)]
    return hits


def _errors_of(call: str) -> tuple[str, ...]:
    if call in OPENING:
        return ("EMFILE", "ENFILE", "EIO", "ENOSPC")
    if call in ("clone", "clone3", "fork", "vfork"):
        return ("EAGAIN", "ENOMEM")
    return DISK


def choose(hits: list[Hit], count: int, chance: random.Random) -> list[Hit]:
    """Return as many of them, of every call some, or all in a random order."""
    rows: dict[str, list[Hit]] = {}
    for hit in chance.sample(hits, len(hits)):
        rows.setdefault(hit.call, []).append(hit)
    chosen: list[Hit] = []
    while len(chosen) < min(count, len(hits)):
        chosen += [row.pop() for row in rows.values() if row]
    return chosen[:count]


@functools.cache
def why_not() -> str | None:
    """Return why nothing can be traced here, None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?getppid", sys.executable, "-S", "-c", ""]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return f"strace may not trace here: {done.stderr.strip()}" if done.returncode else None


def need_strace() -> None:
    """Skip the test where nothing can be traced."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@contextlib.contextmanager
def attached(pid: int, log: Path, hit: Hit | None) -> Iterator[None]:
    """Trace a process that runs already, and what it forks from now on."""
    argv = [word for word in make_argv(log, hit) if word != "-qq"]
    with subprocess.Popen([*argv, "-p", str(pid)], stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        told = tracer.stderr.readline()
        assert b"attached" in told, told
        try:
            yield
        finally:
            tracer.terminate()


class TracedTransport(LocalTransport):
    """This machine as a host whose every process, training included, runs under strace."""

    def __init__(self, log: Path, hit: Hit | None) -> None:
        super().__init__()
        self.argv = make_argv(log, hit)

    def open(self, command: str) -> LocalChannel:
        """Start the command below strace."""
        return super().open("exec " + shlex.join([*self.argv, "/bin/sh", "-c", command]))
