"""ProxyCommand: a command of the user's own whose stdin and stdout carry the connection, run as ssh runs it.

It is started by the user's shell with `exec`, in a session of its own: a Ctrl-C at the terminal must not cut the
connection. It ends with the connection.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from remote_train.errors import HostKeyRefused, HostUnfit, LoginRefused
from remote_train.transport.dial import CLOSED, IDENT, Dialled, Refused, explain, quote, read_banner
from remote_train.transport.sink import Tail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BANNER_SECONDS = 30.0
"""How long its banner may take: the command may have to log in elsewhere first."""
GRACE_SECONDS = 0.15
BAD_KEY = re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|REVOKED HOST KEY")
NO_WAY_IN = re.compile(r"Permission denied \([^)]*\)|Too many authentication failures")
FORBIDDEN = re.compile(r"open failed: administratively prohibited")
"""What OpenSSH's ssh says, which is what ProxyCommands mostly are."""


class ProxyCommand:
    """One running command; `end` ends it and all that it started."""

    def __init__(self, command: str, environ: Mapping[str, str] = os.environ) -> None:
        """Start it; raise OSError."""
        ours, theirs = socket.socketpair()
        shell = environ.get("SHELL") or "/bin/sh"
        try:
            self._child = subprocess.Popen(
                [shell, "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.socket = ours
        self._stderr = Tail()
        self._draining = threading.Thread(target=self._drain, name="proxy stderr", daemon=True)
        self._draining.start()

    def end(self) -> None:
        """Tell it to end, kill what does not soon, and collect it. Close the socket before."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE_SECONDS)
                break
        self._draining.join(GRACE_SECONDS)

    def words(self) -> str:
        """Return the end of what it wrote to stderr."""
        return self._stderr.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        """Return the last line that it wrote to stderr, quoted; "" when it wrote none."""
        lines = [line for line in self._stderr.read().splitlines() if line.strip()]
        return quote(lines[-1]) if lines else ""

    def _drain(self) -> None:
        pipe = self._child.stderr
        assert pipe is not None, "stderr is a pipe"  # noqa: S101 - our own invariant
        with pipe:
            while data := os.read(pipe.fileno(), 65536):
                self._stderr.feed(data)


def refuse_by_words(words: str, address: str) -> None:
    """Raise HostKeyRefused, LoginRefused or HostUnfit where an ssh says of a host on the way that it was that: no silence, no fallback."""
    for pattern, kind, what in (
        (BAD_KEY, HostKeyRefused, "did not accept the key of a host on the way"),
        (NO_WAY_IN, LoginRefused, "was not let in by a host on the way"),
        (FORBIDDEN, HostUnfit, "was let in by a host on the way, but not through"),
    ):
        said = next((line for line in words.splitlines() if pattern.search(line)), None)
        if said is not None:
            hint = "run that command by hand; it gets no terminal from us, so it cannot ask for anything"
            raise kind(f"the ProxyCommand to {address} {what}: {quote(said.encode())}", hint=hint)


def dial_by_commands(commands: Mapping[str, str], addresses: Sequence[str]) -> Dialled | Refused:
    """Return the connection to the first of `addresses` that its command brings to an SSH server."""
    reasons = []
    for address in addresses:
        outcome = dial_by_command(commands[address], address)
        if isinstance(outcome, Dialled):
            return outcome
        reasons.append(outcome.reason)
    return Refused("; ".join(reasons))


def dial_by_command(command: str, address: str) -> Dialled | Refused:
    """Start the command and wait for the banner of the SSH server that it leads to."""
    try:
        proxy = ProxyCommand(command)
    except OSError as error:
        return Refused(f"its ProxyCommand cannot be started: {error.strerror}")
    seen, banner = b"", ""
    try:
        with contextlib.suppress(OSError):  # it may have ended: what it wrote before says more
            proxy.socket.sendall(IDENT)
        seen, banner, problem = read_banner(proxy.socket, time.monotonic() + BANNER_SECONDS)
    except OSError as error:  # it has ended
        problem = explain(error)
    except BaseException:
        proxy.socket.close()
        proxy.end()
        raise
    if problem:
        proxy.socket.close()
        proxy.end()
        words = proxy.last_words()
        refuse_by_words(proxy.words(), address)
        if problem.startswith(CLOSED):
            problem = "ended without an SSH banner" + problem.removeprefix(CLOSED)
        return Refused(f"its ProxyCommand: {problem}" + (f"; it said {words}" if words else ""))
    return Dialled(proxy.socket, address, banner, seen, proxy.end)
