"""One login over one connection, to a host or to a jump host, by fabric and paramiko.

fabric opens the connection over the socket that `dial` brought. The host's key is checked by us before anything that
could matter is sent, and no known_hosts and no ssh_config is read by the libraries. Every error of theirs is translated.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import fabric
import paramiko  # type: ignore[import-untyped]

from remote_train.errors import ConnectionLost, HostUnfit
from remote_train.transport import login
from remote_train.transport.keyholder import Keyholder, is_asked
from remote_train.transport.known_hosts import make_fingerprint
from remote_train.transport.paramiko_entry import Entry
from remote_train.transport.paramiko_gate import Gate
from remote_train.transport.paramiko_tuning import WIRE_FAULTS, Ssh, StreamBuffer, translate
from remote_train.transport.vigil import Vigil

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.transport import Ask, Notify
    from remote_train.transport.dial import Dialled

logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class Login:
    """One login over one dialled connection; the libraries call it back as policy, factory and strategy."""

    def __init__(
        self,
        identity: login.HostIdentity,
        dialled: Dialled,
        ask: Ask | None,
        notify: Notify | None,
        trusted: set[tuple[object, ...]],
    ) -> None:
        self._identity = identity
        self._target = identity.target
        self._address = dialled.address
        self._socket = login.LoginSocket(dialled.socket, dialled.ahead, dialled.leave)
        self.seen = {"address": dialled.address, "banner": dialled.banner}
        self._person = ask if isinstance(ask, Keyholder) else None
        self._ask = choose_ask(ask, identity.target.strict_host_key_checking)
        self._notify = notify
        self._trusted = trusted
        self._ssh: Ssh | None = None
        self._attempts = login.Attempts(address=dialled.address)
        self._vigil = Vigil(self._socket, login.LOGIN_SECONDS, self._knock, self._hang_up)
        self._entry = Entry(identity.target, self._attempts, self._person, self._vigil, notify)
        self._command: str | None = None

    def run(self, command: str, *, early: bool) -> tuple[Any, Any, Vigil]:
        """Log in and start the command, within 30 s not counting questions to a person.

        Returns fabric's connection, the command's channel, and the vigil over them. `early` sends the command along
        with the login; `lost_early` then says that just this may have failed.
        """
        self._command = command if early else None
        connection, channel = self._act(lambda connection: self._start(connection, command))
        self._vigil.note_login()
        return connection, channel, self._vigil

    def enter(self) -> Gate:
        """Log in to a jump host within the same time, and run nothing there."""
        connection, _ = self._act(lambda _connection: True)
        self._vigil.end()  # what goes through it is watched itself
        return Gate(connection, self._target.name)

    def _act(self, after: Callable[[Any], Any]) -> tuple[Any, Any]:
        connection = self._make_connection()
        outcome = None
        self._vigil.start()
        try:
            connection.open()
            outcome = after(connection)
        except WIRE_FAULTS as error:
            raise self._explain(error) from error
        finally:
            self._entry.close()
            if outcome is None:
                self._vigil.end()
                self._hang_up()
        self._socket.eager = False
        return connection, outcome

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
        accepted_before = (
            self._identity.names,
            blob,
        ) in self._trusted  # of this very host: a jump host's key is not its own
        if refusal is None or (accepted_before and refusal.facts["verdict"] == "unknown"):
            return
        with self._vigil.paused():
            accepted = self._ask is not None and login.ask_about_key(self._identity, refusal, self._ask)
        if not accepted:
            refusal.facts["declined"] = self._ask is not None and refusal.facts["verdict"] == "unknown"
            raise refusal
        self._trusted.add((self._identity.names, blob))
        login.write_trusted_key(self._identity, key_type, blob, self._notify)

    def authenticate(self, transport: Ssh) -> None:
        """Log in (paramiko's auth strategy)."""
        if self._command is not None:
            transport.put_command_in_flight(self._command)
        self._entry.log_in(transport)
        self.seen["login"] = self._attempts.tried[-1] if self._attempts.tried else "nothing"

    def _start(self, connection: Any, command: str) -> Any:  # noqa: ANN401 - the library has no types
        if connection.transport.early:
            return connection.transport.finish_flight()
        channel = connection.transport.open_session()
        channel.in_buffer = StreamBuffer()
        channel.exec_command(command)
        return channel

    @property
    def logged_in(self) -> bool:
        """Whether the host has let us in."""
        handler = self._ssh and self._ssh.auth_handler
        return handler is not None and handler.is_authenticated()

    @property
    def lost_early(self) -> bool:
        """Whether the connection broke off between the login and a command that was sent early."""
        sent = self.logged_in and self._ssh is not None and self._ssh.early is not None
        return sent and not self._vigil.verdict

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


def choose_ask(ask: Ask | None, strict: str) -> Ask | None:
    """Return who decides about an unknown key: as ssh_config says, accept-new only ever adds; None refuses it."""
    if strict == "accept-new":
        return lambda _question: True
    return None if strict == "yes" or not is_asked(ask) else ask
