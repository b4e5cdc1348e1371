"""A training's process tree to be killed: run as a script by sweeping_supervisor.py. Standard library, Python 3.8.

Arguments: the descriptor to announce on, the descriptor that ends when parents may leave, then the members wanted.
Every process holds the first descriptor for as long as it lives: its end is the proof that all are gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


LONGEST = 300  # seconds; what a failed test leaves behind ends by itself


def announce(name: str) -> None:
    os.write(READY, f"{name} {os.getpid()}\n".encode())


def rest() -> None:
    signal.alarm(LONGEST)
    while True:
        signal.pause()


def spawn(name: str, life: Callable[[], None] = rest) -> int:
    pid = os.fork()
    if pid == 0:
        announce(name)
        life()
        os._exit(0)
    return pid


def ranks() -> None:
    """Two ranks in sessions of their own, with two DataLoader workers each, all deaf to what can be ignored."""

    def rank() -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for _ in range(2):
            spawn("worker")
        rest()

    for _ in range(2):
        spawn("rank", rank)


def assistant() -> None:
    """A process in the launcher's own group."""
    spawn("assistant")


def leave_orphan(name: str, life: Callable[[], None]) -> None:
    """Fork twice into a new session; the middle process leaves when it may."""
    if os.fork() == 0:
        os.setsid()
        spawn(name, life)
        os.read(GO, 1)
        os._exit(0)


def daemon() -> None:
    leave_orphan("daemon", rest)


def bare_daemon() -> None:
    """The same, with an empty environment."""
    command = [sys.executable, "-S", __file__, str(READY), str(GO), "rest"]
    leave_orphan("bare", lambda: os.execve(sys.executable, command, {}))


def chain() -> None:
    """A process that forks and ends, for ever: no pid of it lives longer than a moment."""

    def run() -> None:
        end = time.monotonic() + LONGEST
        while os.fork() == 0 and time.monotonic() < end:
            pass

    spawn("chain", run)


def reviver() -> None:
    """A process that replaces its child as soon as that dies."""

    def run() -> None:
        while True:
            pid = os.fork()
            if pid == 0:
                rest()
            os.waitpid(pid, 0)

    spawn("reviver", run)


def ghost() -> None:
    """A process whose first thread has ended: the system shows a zombie that runs on. Linux system call numbers."""

    def run() -> None:
        import ctypes
        import threading

        threading.Thread(target=rest_in_thread).start()
        ctypes.CDLL(None).syscall(93 if os.uname().machine == "aarch64" else 60, 0)

    spawn("ghost-to-be", run)


def rest_in_thread() -> None:
    while Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
        time.sleep(0.001)
    announce("ghost")
    time.sleep(LONGEST)
    os._exit(0)


MEMBERS = {
    "ranks": ranks,
    "assistant": assistant,
    "daemon": daemon,
    "bare": bare_daemon,
    "chain": chain,
    "reviver": reviver,
    "ghost": ghost,
    "rest": rest,
}

READY, GO = int(sys.argv[1]), int(sys.argv[2])

if __name__ == "__main__":
    announce("launcher")
    for wanted in sys.argv[3:]:
        MEMBERS[wanted]()
    rest()
