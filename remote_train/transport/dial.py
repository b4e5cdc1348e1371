"""Reachability: whether an SSH server answers at a host, and over which socket.

Every address of a host is tried, 250 ms apart (RFC 8305). Our identification line is sent as soon as a connection
stands and the server's is waited for without consuming it, so that the login later costs no further round trip here.
Threads do the waiting, because getaddrinfo cannot be cancelled. This file imports no paramiko: it runs while paramiko
is being imported.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IDENT = b"SSH-2.0-remote_train\r\n"
SECONDS = 5.0  # DESIGN §8: no banner within this time is "unreachable"
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
STAGGER = 0.25  # RFC 8305 §5, connection attempt delay
# Linux ends a connection after DEAD_PEER_MS without an answer, to data or to probes of an idle one; where there is no
# such option the probes alone do: 5 + 3 x 3 s.
DEAD_PEER_MS = 14_000
LONGEST_PRELUDE = 8192  # RFC 4253 §4.2 allows lines before the banner; this many bytes of them are enough
CLOSED = "closed the connection before its SSH banner, twice"
REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no route to its network",
    errno.ENETDOWN: "this machine's network is down",
    errno.EHOSTDOWN: "the host is down",
    errno.ETIMEDOUT: "no answer",
    errno.ECONNRESET: CLOSED,
    errno.EPIPE: CLOSED,
}
KEEPALIVE = (
    ("TCP_USER_TIMEOUT", DEAD_PEER_MS),
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPALIVE", 5),  # what macOS calls it
    ("TCP_KEEPINTVL", 3),
    ("TCP_KEEPCNT", 3),
)


class Target(Protocol):
    """What dialling needs of a host; an SshTarget is one."""

    @property
    def addresses(self) -> Sequence[str]:
        """Names or IP addresses, the preferred first."""

    @property
    def port(self) -> int:
        """TCP port."""

    @property
    def address_family(self) -> str:
        """Which addresses to dial: "any", "inet" or "inet6"."""

    @property
    def bind_address(self) -> str | None:
        """The address of this machine to dial from; None: the system's choice."""


@dataclass(frozen=True)
class Endpoint:
    """The smallest Target."""

    addresses: tuple[str, ...]
    port: int
    address_family: str = "any"
    bind_address: str | None = None


@dataclass(frozen=True)
class Dialled:
    """A connection on which our ident has been sent and the server's banner waits unread."""

    socket: socket.socket
    address: str
    banner: str
    ahead: bytes = b""
    """What has been read of it, banner and all: what goes through another host or a command cannot be peeked at."""
    leave: Callable[[], object] | None = None
    """Ends what carries the socket; to be called once it is closed."""


@dataclass(frozen=True)
class Refused:
    """No SSH server answered; `reason` is in plain words, address by address."""

    reason: str


def dial_all(targets: Sequence[Target], timeout: float = SECONDS) -> list[Dialled | Refused]:
    """Dial every target at once and return the outcomes in the order given, after `timeout` seconds at the latest."""
    return [dialling.wait() for dialling in [Dialling(target, timeout) for target in targets]]


def parse_banner(data: bytes) -> str | None:
    """Return the server's identification line once it is complete, without its line end; None until then."""
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"SSH-"):
            return line.rstrip(b"\r").decode("ascii", "replace")
    return None


class Dialling:
    """One host being dialled in the background; `wait` ends it."""

    def __init__(self, target: Target, timeout: float = SECONDS) -> None:
        self._port = target.port
        self._family = FAMILIES.get(target.address_family, socket.AF_UNSPEC)
        self._from = target.bind_address
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._changed = threading.Condition()
        self._running = len(target.addresses)
        self._started = 0
        self._failed = 0
        self._over = False
        self._winner: Dialled | None = None
        # What to say of each attempt if nothing more is heard from it.
        self._reasons: dict[tuple[str, str], str] = {}
        for address in target.addresses:
            self._reasons[address, ""] = f"name not resolved within {timeout:g} s"
            threading.Thread(target=self._resolve, args=(address,), daemon=True).start()

    def wait(self) -> Dialled | Refused:
        """Return the connection, or the reasons why there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._winner or not self._running, self._left())
            self._over = True
            self._changed.notify_all()
            return self._winner or Refused(self._explain())

    def close(self) -> None:
        """Give the attempt up, and close the connection that it may have brought."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            if self._winner:
                self._winner.socket.close()

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _explain(self) -> str:
        lines = (f"{address} port {self._port}: {why}" for (address, _), why in self._reasons.items())
        return "; ".join(dict.fromkeys(lines)) or "no address"

    def _resolve(self, address: str) -> None:
        try:
            found = socket.getaddrinfo(address, self._port, self._family, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label over 63 characters
            why = error.strerror if isinstance(error, socket.gaierror) else str(error)
            self._fail(address, "", f"name not resolved ({why})")
            return
        with self._changed:
            del self._reasons[address, ""]
            self._running += len(found) - 1
            for family, _, _, _, place in found:
                self._reasons[address, str(place[0])] = f"silent for {self._timeout:g} s"
                attempt = (address, family, place, self._started)
                self._started += 1
                threading.Thread(target=self._attempt, args=attempt, daemon=True).start()

    def _fail(self, address: str, peer: str, why: str) -> None:
        with self._changed:
            self._reasons[address, peer] = why
            self._failed += 1
            self._running -= 1
            self._changed.notify_all()

    def _attempt(self, address: str, family: int, place: Any, turn: int) -> None:  # noqa: ANN401 - differs by family
        """Wait for this attempt's turn, or for every earlier one to fail; then connect, at most twice."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._over or self._failed >= turn, min(turn * STAGGER, self._left())
            )
        why = ""
        for pause in (0.0, STAGGER):
            with self._changed:
                if self._changed.wait_for(lambda: self._over, min(pause, self._left())):
                    return
            connection, why = open_connection(family, place, self._deadline, self._from)
            if connection:
                self._offer(Dialled(connection, address, why))
                return
            if not why.startswith(CLOSED):
                break
        self._fail(address, str(place[0]), why)

    def _offer(self, dialled: Dialled) -> None:
        with self._changed:
            if self._over or self._winner:
                dialled.socket.close()
                return
            self._winner = dialled
            self._over = True
            self._changed.notify_all()


def open_connection(
    family: int,
    place: Any,  # noqa: ANN401 - an address tuple differs by family
    deadline: float,
    source: str | None = None,
) -> tuple[socket.socket | None, str]:
    """Connect (from the address `source`), send our ident and peek for the banner: the socket and the banner, or None and the reason."""
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return None, explain(error)
    try:
        set_options(connection)
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        if source is not None:
            connection.bind((source, 0))
        connection.connect(place)
        connection.sendall(IDENT)
        banner, problem = peek_banner(connection, deadline)
    except OSError as error:
        banner, problem = "", explain(error)
    if problem:
        connection.close()
        return None, problem
    return connection, banner


def set_options(connection: socket.socket) -> None:
    """No delay for small packets, and a dead peer is noticed by the kernel where it can."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def peek_banner(connection: socket.socket, deadline: float) -> tuple[str, str]:
    """Wait for the banner and leave it in the socket; return it, or the reason why it is none."""
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while (banner := parse_banner(seen)) is None:
            # Data that was peeked at stays readable: wake only for more of it, or for the end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(seen) + 1)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return "", _explain_silence(seen)
            before, seen = seen, connection.recv(LONGEST_PRELUDE, socket.MSG_PEEK)
            over = len(seen) == len(before) or len(seen) >= LONGEST_PRELUDE
            if over and parse_banner(seen) is None:  # a server may say a lot right behind its banner
                return "", _explain_text(seen)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return _check_version(banner)


def read_banner(connection: socket.socket, deadline: float) -> tuple[bytes, str, str]:
    """Read until the banner has come: what was read, the banner, or the reason why it is none."""
    seen = b""
    while (banner := parse_banner(seen)) is None:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            piece = connection.recv(LONGEST_PRELUDE)
        except TimeoutError:
            return seen, "", _explain_silence(seen)
        seen += piece
        if (not piece or len(seen) >= LONGEST_PRELUDE) and parse_banner(seen) is None:
            return seen, "", _explain_text(seen)
    return (seen, *_check_version(banner))


def _check_version(banner: str) -> tuple[str, str]:
    if not banner.startswith(("SSH-2.0-", "SSH-1.99-")):
        return "", f"its SSH server is too old ({quote(banner.encode())})"
    return banner, ""


def limit_seconds(connect_timeout: int | None) -> float:
    """Return how long to wait for a banner: ConnectTimeout where it is less than our own limit."""
    return min(SECONDS, connect_timeout or SECONDS)


def _explain_silence(seen: bytes) -> str:
    return f"is not an SSH server (it says {quote(seen)})" if seen else "silent after connecting"


def _explain_text(seen: bytes) -> str:
    """Explain a close: sshd under load writes one line (MaxStartups, PerSourcePenalties) and closes."""
    if not seen:
        return CLOSED
    if len(seen) < LONGEST_PRELUDE:
        return f"{CLOSED}, saying {quote(seen)}"
    return _explain_silence(seen)


def quote(text: bytes) -> str:
    """Return the first line of what a stranger sent, safe for a terminal and at most 60 characters."""
    line = text.split(b"\n")[0].strip().decode("ascii", "replace")[:60]
    return '"' + "".join(c if c.isprintable() else "?" for c in line) + '"'


def explain(error: OSError) -> str:
    """Put a failed connection into plain words."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no answer"
    return REASONS.get(error.errno or 0) or error.strerror or os.strerror(error.errno or 0)
