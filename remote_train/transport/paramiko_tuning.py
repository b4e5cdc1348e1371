"""paramiko's parts as we run them: each difference from its defaults, with its reason.

Only the files of this folder that begin with paramiko import it.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import paramiko  # type: ignore[import-untyped]
from paramiko import ssh_exception
from paramiko.common import (  # type: ignore[import-untyped]
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_REQUEST,
    cMSG_GLOBAL_REQUEST,
    cMSG_SERVICE_REQUEST,
)
from paramiko.packet import Packetizer  # type: ignore[import-untyped]
from paramiko.transport import ServiceRequestingTransport  # type: ignore[import-untyped]

from remote_train.errors import (
    ConfigError,
    ConnectionLost,
    HostKeyRefused,
    HostUnfit,
    LoginRefused,
    ProtocolError,
    RemoteTrainError,
    Unreachable,
)
from remote_train.transport.dial import IDENT, quote
from remote_train.transport.login import LOGIN_SECONDS, LoginSocket
from remote_train.transport.paramiko_auth import Answer, Auth
from remote_train.transport.sink import Sink

WINDOW = 64 * 2**20  # 352 MB/s at 100 ms RTT; the library's 2 MiB give 18
# GCM runs three times as fast as the library's first choice; no CBC, no SHA-1 (Terrapin, CVE-2023-48795).
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
PACKET = 2**15
CAN_PIPELINE = paramiko.__version__.startswith("5.")  # it uses private names, looked at in 5.0 and 5.1
WIRE_FAULTS = (paramiko.SSHException, EOFError, OSError)


class Packets(Packetizer):  # type: ignore[misc]  # the library has no types
    """Leaves rekeying to the server: one that we begin can kill a channel that is closing (paramiko #822)."""

    REKEY_BYTES = 2**50
    REKEY_PACKETS = 2**50

    def start_handshake(self, timeout: float) -> None:
        """Start no timer: the deadline of the login covers it, and this thread would hold up the process's end."""


class Ssh(ServiceRequestingTransport):  # type: ignore[misc]
    """The library's transport with our choices."""

    def __init__(self, sock: LoginSocket, key_types: tuple[str, ...]) -> None:
        self.auth_handler: Auth | None
        super().__init__(sock, default_window_size=WINDOW, packetizer_class=Packets)
        self.local_version = IDENT.decode().strip()
        self.methods: list[str] = []
        self.farewell = ""
        self.early: Any = None
        self._early_command: str | None = None
        self.auth_timeout = None
        self.banner_timeout = LOGIN_SECONDS
        options = self.get_security_options()
        options.ciphers, options.digests = CIPHERS, MACS
        options.key_types = choose_key_types(key_types, options.key_types)

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """Host keys only, no host certificates: there is nothing here to check one with."""
        return tuple(self._filter_algorithm("keys"))

    def ensure_session(self) -> None:
        """Ask for the login service once, without waiting for its answer (the library sleeps 100 ms for it)."""
        if not self.active or not self.initial_kex_done:
            raise paramiko.SSHException("no session to log in on")
        if self.auth_handler is None:
            self.auth_handler = Auth(self)
            request = paramiko.Message().add_byte(cMSG_SERVICE_REQUEST).add_string("ssh-userauth")
            self._send_message(request)

    def would_accept(self, user: str, public: bytes) -> bool:
        """Ask whether a key would do, before its owner is asked for a passphrase."""
        assert self.auth_handler is not None, "after ensure_session"  # noqa: S101 - our own invariant
        return self.auth_handler.query(user, public)

    def converse(self, user: str, answer: Answer) -> list[str]:
        """Log in by keyboard-interactive; `answer` is called in this thread. Return the methods still to come."""
        self.ensure_session()
        assert self.auth_handler is not None, "after ensure_session"  # noqa: S101 - our own invariant
        return self.auth_handler.converse(user, answer)

    def get_exception(self) -> BaseException | None:
        """Return what ended the connection; a hostile server can make the library raise anything at all."""
        error = super().get_exception()
        if error is None or isinstance(error, WIRE_FAULTS):
            return cast("BaseException | None", error)
        return cast("BaseException", paramiko.SSHException(f"{type(error).__name__}: {error}"))

    def _parse_disconnect(self, m: Any) -> None:  # noqa: ANN401 - the library's
        m.get_int()
        self.farewell = quote(m.get_string()).strip('"')

    def ask_for_life(self) -> None:
        """Send a request that every server answers, whatever the command does; nobody waits for the answer itself."""
        request = paramiko.Message().add_byte(cMSG_GLOBAL_REQUEST).add_string("keepalive@openssh.com")
        self._send_user_message(request.add_boolean(True))

    # What follows joins the first login request, the opening of a channel and the command in one flight, which saves
    # three round trips of eight (measured over a TUN device; sshd's Nagle makes each separate answer wait). The
    # messages after the login are answered with UNIMPLEMENTED, and nothing is run, when the login fails.

    def put_command_in_flight(self, command: str) -> None:
        """Send `command` along with the first login request, where the server is one that this works with."""
        if CAN_PIPELINE and self.remote_version.startswith("SSH-2.0-OpenSSH_"):
            self._early_command = command

    def send_flight(self, *, signed: bool) -> None:
        """Send what was gathered, with the command if it is to go along: only a signed key may let us in at once."""
        command = None
        if signed:
            command, self._early_command = self._early_command, None
        if command is not None:
            self.early = self._begin(command)
        self.sock.release()

    def drop_flight(self) -> None:
        """Forget a command whose login was refused."""
        if self.early:
            self.early._unlink()  # noqa: SLF001 - see CAN_PIPELINE
            self.early = None

    def _begin(self, command: str) -> Any:  # noqa: ANN401 - the library has no types
        """Send what `open_session` and `exec_command` send, without waiting in between; OpenSSH's first channel is 0."""
        with self.lock:
            number = self._next_channel()
            channel = paramiko.Channel(number)
            channel.in_buffer = StreamBuffer()
            self._channels.put(number, channel)
            self.opened = self.channel_events[number] = threading.Event()
            self.channels_seen[number] = True
            channel._set_transport(self)  # noqa: SLF001 - see CAN_PIPELINE
            channel._set_window(WINDOW, PACKET)  # noqa: SLF001
        opening = paramiko.Message().add_byte(cMSG_CHANNEL_OPEN).add_string("session").add_int(number)
        self._send_user_message(opening.add_int(WINDOW).add_int(PACKET))
        request = paramiko.Message().add_byte(cMSG_CHANNEL_REQUEST).add_int(0).add_string("exec")
        channel._event_pending()  # noqa: SLF001
        self._send_user_message(request.add_boolean(True).add_string(command))
        return channel

    def finish_flight(self) -> Any:  # noqa: ANN401 - the library has no types
        """Wait for the answers to the command that was sent early; return its channel."""
        channel = self.early
        while self.active and not self.opened.wait(0.1):  # a connection that we close ourselves sets no event
            pass
        if not channel.active:
            raise self.get_exception() or paramiko.SSHException("the channel was not opened")
        channel._wait_for_event()  # noqa: SLF001 - see CAN_PIPELINE
        return channel


def choose_key_types(known: tuple[str, ...], supported: tuple[str, ...]) -> tuple[str, ...]:
    """Return the host key types to ask for: those we know of this host first, RSA keys with SHA-2 signatures only."""
    wanted = [name for kind in known for name in (RSA_SIGNATURES if kind == "ssh-rsa" else (kind,))]
    return tuple(dict.fromkeys([name for name in wanted if name in supported] + list(supported)))


class StreamBuffer(Sink):
    """Stands in for the library's buffer of a channel, which is three times slower at this window."""

    def read(self, _size: int, _timeout: float | None = None) -> bytes:
        """Return everything at once; our channel waits before it calls."""
        return self.take()


# Every class of paramiko.ssh_exception stands here (a test walks them). Those of ssh_config and of proxies cannot
# arise, since we give the library neither.
TRANSLATIONS: dict[type, tuple[type[RemoteTrainError | ConnectionLost], str]] = {
    paramiko.SSHException: (ConnectionLost, "broke off"),
    paramiko.AuthenticationException: (ConnectionLost, "closed the connection during the login"),
    paramiko.PasswordRequiredException: (LoginRefused, "wants a key that needs its passphrase"),
    paramiko.BadAuthenticationType: (LoginRefused, "does not accept keys"),
    ssh_exception.PartialAuthentication: (LoginRefused, "asks for more than a key"),
    ssh_exception.UnableToAuthenticate: (LoginRefused, "accepted none of our keys"),
    paramiko.ChannelException: (HostUnfit, "lets us in, but opens no channel for a command (MaxSessions?)"),
    paramiko.BadHostKeyException: (HostKeyRefused, "offers a wrong key"),
    ssh_exception.IncompatiblePeer: (HostUnfit, "has no algorithm in common with this transport"),
    ssh_exception.MessageOrderError: (ProtocolError, "broke the order of strict key exchange"),
    paramiko.ProxyCommandFailure: (Unreachable, "cannot be reached through its ProxyCommand"),
    ssh_exception.NoValidConnectionsError: (Unreachable, "is unreachable"),
    ssh_exception.CouldNotCanonicalize: (ConfigError, "has no canonical name"),
    paramiko.ConfigParseError: (ConfigError, "has a broken ssh_config"),
    EOFError: (ConnectionLost, "closed the connection"),
    OSError: (ConnectionLost, "lost the connection"),
}


def translate(error: Exception, name: str) -> RemoteTrainError | ConnectionLost:
    """Return our error for one of the library's, by the nearest class that is known."""
    nearest = next(kind for kind in type(error).__mro__ if kind in TRANSLATIONS)
    make, words = TRANSLATIONS[nearest]
    if make is ConnectionLost and "ignature verification" in str(error):
        return HostKeyRefused(
            f"{name} could not prove that it holds its key", hint="do not trust this connection"
        )
    message = f"{name} {words}" + (f" ({error})" if str(error) else "")
    if issubclass(make, HostUnfit):
        return make(message, hint=f"`ssh {name} true` has to work first")
    return ConfigError([message]) if issubclass(make, ConfigError) else make(message)
