"""SSH by fabric and paramiko: one connection, one command.

fabric opens the connection over the socket that `dial` brought. The host's key is checked by us before anything that
could matter is sent, no known_hosts and no ssh_config is read by the libraries, and login is by public key only. Every
error of theirs is translated.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import fabric
import paramiko  # type: ignore[import-untyped]

from remote_train.errors import ConnectionLost, HostKeyRefused, HostUnfit, Unreachable
from remote_train.transport import login
from remote_train.transport.dial import Dialled, Dialling, Endpoint, Refused
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.paramiko_keys import Keys
from remote_train.transport.paramiko_tuning import WIRE_FAULTS, Ssh, StreamBuffer, translate
from remote_train.transport.sink import Tail
from remote_train.transport.vigil import Vigil

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.transport import Ask, Notify, SshTarget

PIECE = 256 * 1024  # one send of 64 MB copies the rest for every packet
EVERYTHING = 2**31
STDERR_PIECES = 16
CLOSE_SECONDS = 0.5

logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class ParamikoTransport:
    """One host over SSH.

    `dialled` is the connection that a dialling has already brought, used for the first `open`; later ones dial anew.
    `ask` answers yes or no to a question about an unknown host key (None: refuse). `pin` is the fingerprint of
    hosts.toml. `notify` gets notices for the user. `open` raises Unreachable when no SSH server answers, HostKeyRefused,
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
        self._trusted: set[bytes] = set()
        self._early = True
        self._channel: ParamikoChannel | None = None

    def open(self, command: str) -> ParamikoChannel:
        """Connect, log in and run `command`; an address with a wrong key is dropped for the next one of this host."""
        self._close_channel()
        left = list(self._target.addresses)
        refusal: HostKeyRefused | None = None
        while left:
            dialled = self._dial(left, refusal)
            attempt = self._login(dialled)
            self.seen = attempt.seen
            try:
                self._channel = attempt.run(command, early=self._early)
            except HostKeyRefused as error:
                left.remove(dialled.address)
                if error.facts.get("declined") or not left:
                    raise
                refusal = error
                self._say(f"{error.message}; {dialled.address} is not used")
            except ConnectionLost:
                self._early = not attempt.lost_early
                raise
            else:
                return self._channel
        raise refusal or Unreachable(f"{self.name} has no address")

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

    def _dial(self, addresses: Sequence[str], refusal: HostKeyRefused | None) -> Dialled:
        if self._dialled:
            dialled, self._dialled = self._dialled, None
            return dialled
        outcome = Dialling(Endpoint(tuple(addresses), self._target.port)).wait()
        if isinstance(outcome, Refused):
            raise refusal or Unreachable(
                f"{self.name} is unreachable: {outcome.reason}", reason=outcome.reason
            )
        return outcome

    def _login(self, dialled: Dialled) -> _Login:
        identity = login.read_identity(self._target, self._pin, self._notify)
        return _Login(identity, dialled, self._ask, self._notify, self._trusted)


class _Login:
    """One login over one dialled connection; the libraries call it back as policy, factory and strategy."""

    def __init__(
        self,
        identity: login.HostIdentity,
        dialled: Dialled,
        ask: Ask | None,
        notify: Notify | None,
        trusted: set[bytes],
    ) -> None:
        self._identity = identity
        self._target = identity.target
        self._address = dialled.address
        self._socket = login.LoginSocket(dialled.socket)
        self.seen = {"address": dialled.address, "banner": dialled.banner}
        self._ask = ask
        self._notify = notify
        self._trusted = trusted
        self._ssh: Ssh | None = None
        self._attempts = login.Attempts()
        self._vigil = Vigil(self._socket, login.LOGIN_SECONDS, self._knock, self._hang_up)
        self._keys = Keys(identity.target, self._attempts, self._vigil.paused)

    def run(self, command: str, *, early: bool) -> ParamikoChannel:
        """Log in and start the command, within 30 s not counting questions to a person.

        `early` sends the command along with the login; `lost_early` then says that just this may have failed.
        """
        self._command = command
        self._early = early
        connection = self._make_connection()
        channel: ParamikoChannel | None = None
        self._vigil.start()
        try:
            connection.open()
            channel = self._start(connection)
        except WIRE_FAULTS as error:
            raise self._explain(error) from error
        finally:
            self._keys.close()
            if channel is None:
                self._vigil.end()
                self._hang_up()
        self._vigil.note_login()
        self._socket.eager = False
        return channel

    def _make_connection(self) -> Any:  # noqa: ANN401 - the library has no types
        """Return fabric's connection with everything given: it reads no configuration of its own."""
        config = fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True)
        hooks = {"sock": self._socket, "transport_factory": self.make_ssh, "auth_strategy": self}
        target = self._target
        made = fabric.Connection(
            self._address, user=target.user, port=target.port, config=config, connect_kwargs=hooks
        )
        made.client.set_missing_host_key_policy(self)
        return made

    def make_ssh(self, sock: login.LoginSocket, **_: object) -> Ssh:
        """Return the transport for the connection (paramiko's transport_factory)."""
        self._ssh = Ssh(sock, self._identity.key_types)
        return self._ssh

    def missing_host_key(self, _client: object, _hostname: str, key: Any) -> None:  # noqa: ANN401 - the library's
        """Check the host's key; the library knows none, so that this is always asked (its host key policy)."""
        key_type, blob = key.get_name(), key.asbytes()
        self.seen["host_key"] = f"{key_type} {make_fingerprint(blob)}"
        refusal = login.make_host_key_error(self._identity, self._address, key_type, blob)
        if refusal is None or blob in self._trusted:
            return
        with self._vigil.paused():
            accepted = self._ask is not None and login.ask_about_key(self._identity, refusal, self._ask)
        if not accepted:
            refusal.facts["declined"] = self._ask is not None and refusal.facts["verdict"] == "unknown"
            raise refusal
        self._trusted.add(blob)
        login.write_trusted_key(self._identity, key_type, blob, self._notify)

    def authenticate(self, transport: Ssh) -> None:
        """Offer our keys one after the other (paramiko's auth strategy)."""
        if self._early:
            transport.put_command_in_flight(self._command)
        for label, key in self._keys.offer():
            transport.sock.gather()
            try:
                further = transport.auth_publickey(self._target.user, key)
            except paramiko.AuthenticationException as error:
                self._attempts.tried.append(label)
                if not transport.is_active():
                    raise
                transport.drop_flight()
                if isinstance(error, paramiko.BadAuthenticationType):
                    break
            except WIRE_FAULTS as error:
                if transport.sock.broken or not transport.is_active():
                    raise
                self._attempts.skipped.append(f"{label} (it could not sign: {error})")
            else:
                self._attempts.tried.append(label)
                if not further:
                    self.seen["login"] = label
                    return
                self._attempts.said = "the key is right, and something more is asked for"
                break
        self._attempts.methods = transport.methods
        raise login.make_login_error(self._target, self._attempts)

    def _start(self, connection: Any) -> ParamikoChannel:  # noqa: ANN401 - the library has no types
        if connection.transport.early:
            channel = connection.transport.finish_flight()
            return ParamikoChannel(connection, channel, channel.in_buffer, self._vigil)
        channel = connection.transport.open_session()
        channel.in_buffer = buffer = StreamBuffer()
        channel.exec_command(self._command)
        return ParamikoChannel(connection, channel, buffer, self._vigil)

    @property
    def logged_in(self) -> bool:
        """Whether the host has let us in."""
        handler = self._ssh and self._ssh.auth_handler
        return handler is not None and handler.is_authenticated()

    @property
    def lost_early(self) -> bool:
        """Whether the connection was lost between the login and a command that was sent early."""
        return self.logged_in and self._ssh is not None and self._ssh.early is not None

    def _knock(self) -> None:
        """Ask for a sign of life; before the login there is no way to."""
        if self._ssh and self.logged_in:
            with contextlib.suppress(*WIRE_FAULTS):
                self._ssh.ask_for_life()

    def _hang_up(self) -> None:
        if self._ssh:
            self._ssh.close()
        self._socket.close()

    def _explain(self, error: Exception) -> Exception:
        """Say which of our errors this is, from what the library raised and how far the login had come."""
        name, ssh = self._target.name, self._ssh
        if self._vigil.verdict:
            return ConnectionLost(f"{name}: {self._vigil.verdict}", silence=self._vigil.silence)
        if ssh and ssh.farewell and not self.logged_in:
            self._attempts.methods, self._attempts.said = ssh.methods, ssh.farewell
            return login.make_login_error(self._target, self._attempts)
        if ssh and ssh.is_active() and self.logged_in and not isinstance(error, paramiko.ChannelException):
            return HostUnfit(
                f"{name} lets us in, but refuses to run a command", hint="check its ForceCommand and shell"
            )
        return translate(error, name)


class ParamikoChannel:
    """The stream of one command; it owns its connection."""

    def __init__(self, connection: Any, channel: Any, buffer: StreamBuffer, vigil: Vigil) -> None:  # noqa: ANN401 - untyped library
        self._connection = connection  # kept: the library closes what is no longer referred to
        self._ssh: Ssh = connection.transport
        self._channel = channel
        self._buffer = buffer
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

    def _end(self) -> None:
        with contextlib.suppress(*WIRE_FAULTS):
            self._channel.shutdown_write()
            self._buffer.wait_end(CLOSE_SECONDS)
