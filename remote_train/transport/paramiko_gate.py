"""A jump host that has let us in: connections through it to the next host (direct-tcpip), as sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]

from remote_train.errors import HostUnfit
from remote_train.transport.dial import CLOSED, IDENT, Dialled, Refused, explain, quote, read_banner
from remote_train.transport.paramiko_tuning import WIRE_FAULTS

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE = 256 * 1024
NOBODY = ("127.0.0.1", 0)  # where the connection would have come from; RFC 4254 §7.2 asks for something
PROHIBITED = 1  # RFC 4254 §5.1, SSH_OPEN_ADMINISTRATIVELY_PROHIBITED


class Gate:
    """One connection to a jump host; closing it ends what goes through it."""

    def __init__(self, connection: Any, name: str) -> None:  # noqa: ANN401 - untyped library
        self._connection = connection  # kept: the library closes what is no longer referred to
        self._ssh = connection.transport
        self.name = name

    def dial(self, addresses: Sequence[str], port: int, seconds: float) -> Dialled | Refused:
        """Connect to the first of `addresses` behind it whose SSH server answers; the jump host resolves names.

        Each has `seconds`. Raise HostUnfit when the jump host forbids it.
        """
        reasons = []
        for address in addresses:
            for last in (False, True):
                outcome = self._dial(address, port, time.monotonic() + seconds)
                if isinstance(outcome, Dialled):
                    return outcome
                if last or not outcome.startswith(CLOSED):
                    reasons.append(f"{address} port {port} behind {self.name}: {outcome}")
                    break
        return Refused("; ".join(reasons) or "no address")

    def close(self) -> None:
        """Leave the jump host."""
        self._ssh.close()

    def _dial(self, address: str, port: int, deadline: float) -> Dialled | str:
        """Return the connection, or why there is none."""
        try:
            channel = self._open(address, port, deadline)
        except paramiko.ChannelException as error:
            if error.code == PROHIBITED:
                raise HostUnfit(
                    f"{self.name} lets us in, but not through to {address} port {port}",
                    hint=f"its sshd forbids it (AllowTcpForwarding, PermitOpen); ask whoever runs {self.name}",
                ) from error
            return quote(str(error.text).encode()).strip('"').lower()
        except WIRE_FAULTS as error:
            return "no answer" if self._ssh.is_active() else f"the jump host is gone ({error})"
        ours = join(channel)
        try:
            ours.sendall(IDENT)
            seen, banner, problem = read_banner(ours, deadline)
        except OSError as error:
            seen, banner, problem = b"", "", explain(error)
        if problem:
            ours.close()
            return problem
        return Dialled(ours, address, banner, seen)

    def _open(self, address: str, port: int, deadline: float) -> Any:  # noqa: ANN401 - untyped library
        left = max(0.1, deadline - time.monotonic())
        return self._ssh.open_channel("direct-tcpip", (address, port), NOBODY, timeout=left)


def join(channel: Any) -> socket.socket:  # noqa: ANN401 - untyped library
    """Return a socket whose other end two threads join with the channel, until either ends."""
    ours, theirs = socket.socketpair()
    for way in (_bring, _take):
        threading.Thread(target=way, args=(channel, theirs), name="gate", daemon=True).start()
    return ours


def _bring(channel: Any, theirs: socket.socket) -> None:  # noqa: ANN401
    """From the channel to us."""
    with contextlib.suppress(*WIRE_FAULTS):
        while data := channel.recv(PIECE):
            theirs.sendall(data)
    _end(channel, theirs)


def _take(channel: Any, theirs: socket.socket) -> None:  # noqa: ANN401
    """From us to the channel."""
    with contextlib.suppress(*WIRE_FAULTS):
        while data := theirs.recv(PIECE):
            view = memoryview(data)
            while view and (sent := channel.send(view)):
                view = view[sent:]
    _end(channel, theirs)


def _end(channel: Any, theirs: socket.socket) -> None:  # noqa: ANN401
    with contextlib.suppress(OSError):
        theirs.shutdown(socket.SHUT_RDWR)  # wakes the other thread, which closes too
    with contextlib.suppress(*WIRE_FAULTS):
        channel.close()
    theirs.close()
