"""SSH by fabric and paramiko: one connection, one command.

The connection goes straight to the host, through a ProxyCommand, or through jump hosts, each of which is logged in to
as the host itself is: its key is checked first, against its own known_hosts files.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from remote_train.errors import ConnectionLost, HostKeyRefused, Unreachable
from remote_train.transport import login
from remote_train.transport.dial import Dialled, Dialling, Endpoint, Refused, limit_seconds
from remote_train.transport.paramiko_login import Login
from remote_train.transport.paramiko_tuning import WIRE_FAULTS, Ssh, StreamBuffer
from remote_train.transport.proxy import dial_by_commands
from remote_train.transport.sink import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remote_train.transport import Ask, Notify, SshTarget
    from remote_train.transport.paramiko_gate import Gate
    from remote_train.transport.vigil import Vigil

T = TypeVar("T")

PIECE = 256 * 1024  # one send of 64 MB copies the rest for every packet
EVERYTHING = 2**31
STDERR_PIECES = 16
CLOSE_SECONDS = 0.5


class ParamikoTransport:
    """One host over SSH.

    `dialled` is the connection that a dialling has already brought to it, or to its nearest jump host, used for the
    first `open`; later ones dial anew. `ask` answers yes or no to a question about an unknown host key (None: refuse);
    a Person also gives passphrases and answers the host's own questions. `pin` is the fingerprint of hosts.toml.
    `notify` gets notices for the user. `open` raises Unreachable when no SSH server answers, HostKeyRefused,
    LoginRefused, HostUnfit or ProtocolError when it does, and ConnectionLost when it falls silent.
    """

    def __init__(
        self,
        target: SshTarget,
        dialled: Dialled | None = None,
        *,
        ask: Ask | None = None,
        pin: str | None = None,
        notify: Notify | None = None,
    ) -> None:
        self.name = target.name
        self._target = target
        self._dialled = dialled
        self._ask = ask
        self._pin = pin
        self._notify = notify
        self.seen: dict[str, str] = {}
        """Of the connection opened last, as far as it came: `address`, `banner`, `host_key`, `login`."""
        self._trusted: set[tuple[object, ...]] = set()
        self._early = True
        self._channel: ParamikoChannel | None = None

    def open(self, command: str) -> ParamikoChannel:
        """Connect, log in and run `command`; an address with a wrong key is dropped for the next one of its host."""
        self._close_channel()
        gates: list[Gate] = []
        try:
            for hop in self._target.jumps:
                gates.append(self._pass(hop, gates, Login.enter))
            started = self._start(command, gates)
        except BaseException:
            close_gates(gates)
            raise
        self._channel = ParamikoChannel(*started, gates)
        return self._channel

    def _start(self, command: str, gates: Sequence[Gate]) -> tuple[Any, Any, Vigil]:
        """Run `command`, once more and step by step where the connection broke over one that was sent early."""
        early = self._early
        try:
            return self._pass(self._target, gates, lambda entry: entry.run(command, early=early))
        except ConnectionLost as loss:
            if self._early == early:
                raise
            try:
                return self._pass(self._target, gates, lambda entry: entry.run(command, early=False))
            except Unreachable:  # it has answered a moment ago
                raise loss from None

    def _pass(self, stop: SshTarget, gates: Sequence[Gate], act: Callable[[Login], T]) -> T:
        """Log in to a jump host or to the host itself, behind the last of `gates`, and `act` there."""
        left = list(stop.addresses)
        refusal: HostKeyRefused | None = None
        while left:
            dialled = self._dial(stop, gates, left)
            if isinstance(dialled, Refused):
                raise refusal or self._make_unreachable(stop, dialled.reason)
            entry = self._make_login(stop, dialled)
            self.seen = entry.seen
            try:
                return act(entry)
            except HostKeyRefused as error:
                left.remove(dialled.address)
                if error.facts.get("declined") or not left:
                    raise
                refusal = error
                self._say(f"{error.message}; {dialled.address} is not used")
            except ConnectionLost:
                self._early = self._early and not entry.lost_early
                raise
        raise refusal or Unreachable(f"{stop.name} has no address")

    def _make_unreachable(self, stop: SshTarget, reason: str) -> Unreachable:
        reason = reason if stop is self._target else f"{stop.name}: {reason}"
        return Unreachable(f"{self.name} is unreachable: {reason}", reason=reason)

    def close(self) -> None:
        """Close the channel that is open, and a connection that was never used."""
        self._close_channel()
        if self._dialled:
            self._dialled.socket.close()
            self._dialled = None

    def _close_channel(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def _say(self, notice: str) -> None:
        if self._notify:
            self._notify(notice)

    def _dial(self, stop: SshTarget, gates: Sequence[Gate], left: Sequence[str]) -> Dialled | Refused:
        seconds = limit_seconds(stop.connect_timeout)
        if gates:
            return gates[-1].dial(left, stop.port, seconds)
        if self._dialled:
            dialled, self._dialled = self._dialled, None
            return dialled
        if stop.proxy_commands:
            return dial_by_commands(stop.proxy_commands, left)
        where = Endpoint(tuple(left), stop.port, stop.address_family, stop.bind_address)
        return Dialling(where, seconds).wait()

    def _make_login(self, stop: SshTarget, dialled: Dialled) -> Login:
        pin = self._pin if stop is self._target else None
        identity = login.read_identity(stop, pin or stop.pin, self._notify)
        return Login(identity, dialled, self._ask, self._notify, self._trusted)


def close_gates(gates: Sequence[Gate]) -> None:
    """Leave jump hosts, the last one first."""
    for gate in reversed(gates):
        gate.close()


class ParamikoChannel:
    """The stream of one command; it owns its connection, and those to jump hosts that carry it."""

    def __init__(self, connection: Any, channel: Any, vigil: Vigil, gates: Sequence[Gate]) -> None:  # noqa: ANN401 - untyped library
        self._connection = connection  # kept: the library closes what is no longer referred to
        self._gates = gates
        self._ssh: Ssh = connection.transport
        self._channel = channel
        self._buffer: StreamBuffer = channel.in_buffer
        self._vigil = vigil
        self._stderr = Tail()
        self._closing = threading.Lock()

    def send(self, data: bytes) -> None:
        """Send all of `data`; raise ConnectionLost when the stream has ended or ends meanwhile."""
        view = memoryview(data)
        try:
            while view:
                sent = self._channel.send(view[:PIECE])
                if not sent or not self._ssh.is_active():
                    raise self._vigil.make_error("the stream has ended")
                view = view[sent:]
        except WIRE_FAULTS as error:
            raise self._vigil.make_error(str(error) or "the connection has ended") from error

    def receive(self, timeout: float) -> bytes | None:
        """Return what has come, b"" when the command has ended, None after `timeout` seconds of nothing."""
        arrived = self._buffer.wait(timeout)
        try:
            self._drain_stderr()
            data: bytes | None = self._channel.recv(EVERYTHING) if arrived else None
        except WIRE_FAULTS:  # the window could not be given back: the connection is gone
            data = b""
        if data == b"" and self._is_broken():
            raise self._vigil.make_error("the connection broke off")
        return data

    def _is_broken(self) -> bool:
        """Tell a connection that was lost from a command that has ended, and from our own closing."""
        ended = self._channel.eof_received or self._channel.exit_status >= 0
        return not (ended or self._ssh.is_active() or self._closing.locked())

    def stderr_tail(self) -> bytes:
        """Return the last 8 KiB or less of the command's stderr."""
        with contextlib.suppress(*WIRE_FAULTS):
            self._drain_stderr()
        return self._stderr.read()

    def _drain_stderr(self) -> None:
        # Not until it is empty: a host that floods it would keep us here.
        for _ in range(STDERR_PIECES):
            if not self._channel.recv_stderr_ready():
                return
            self._stderr.feed(self._channel.recv_stderr(PIECE))

    def close(self) -> None:
        """Tell the command that its input has ended, give it half a second to end too, and close the connection."""
        if not self._closing.acquire(blocking=False):
            return
        self._vigil.end()
        if self._ssh.is_active():
            # In a thread: a sender that hangs on a dead network holds the lock that this needs.
            ending = threading.Thread(target=self._end, daemon=True)
            ending.start()
            ending.join(CLOSE_SECONDS)
        self._ssh.close()
        close_gates(self._gates)

    def _end(self) -> None:
        with contextlib.suppress(*WIRE_FAULTS):
            self._channel.shutdown_write()
            self._buffer.wait_end(CLOSE_SECONDS)
