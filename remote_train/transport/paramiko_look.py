"""Look at the key that a host offers, on the same way as a login and no further: nothing of ours is sent to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.errors import HostKeyRefused
from remote_train.transport import login
from remote_train.transport.paramiko_login import Login
from remote_train.transport.paramiko_ssh import ParamikoTransport
from remote_train.transport.paramiko_tuning import Ssh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.transport import Ask, SshTarget
    from remote_train.transport.dial import Dialled
    from remote_train.transport.paramiko_gate import Gate


class KeySeen(HostKeyRefused):
    """Ends a login where its authentication would begin; the host has proved that it holds this key."""

    def __init__(self, key_type: str, key: bytes) -> None:
        super().__init__("only looked at")
        self.key_type = key_type
        self.key = key


class _Look(Login):
    """A login that trusts nobody; `kinds` are the types of key to ask for before those that are known."""

    kinds: tuple[str, ...] = ()

    def make_ssh(self, sock: login.LoginSocket, **_: object) -> Ssh:
        """Return the transport for the connection (the library's transport_factory)."""
        self._ssh = Ssh(sock, (*self.kinds, *self._identity.key_types))
        return self._ssh

    def missing_host_key(self, _client: object, _hostname: str, key: Any) -> None:  # noqa: ANN401 - the library's
        """Stop here (the library's host key policy, asked before it authenticates)."""
        raise KeySeen(key.get_name(), key.asbytes())


class _Looking(ParamikoTransport):
    """The way to a host, jump hosts logged in to as ever, up to the host's key."""

    kinds: tuple[str, ...] = ()

    def look(self, gates: list[Gate]) -> None:
        """Raise the KeySeen; the jump hosts of `gates` have let us in before, and stay there with those behind them."""
        for hop in self._target.jumps[len(gates) :]:
            gates.append(self._pass(hop, gates, Login.enter))
        self._pass(self._target, gates, Login.enter)

    def _make_login(self, stop: SshTarget, dialled: Dialled) -> Login:
        if stop is not self._target:
            return super()._make_login(stop, dialled)
        look = _Look(login.read_identity(stop, None, None), dialled, None, None, set())
        look.kinds = self.kinds
        return look


def read_offered_key(
    target: SshTarget,
    dialled: Dialled | None,
    kinds: Sequence[str],
    gates: list[Gate],
    ask: Ask | None = None,
) -> KeySeen:
    """Return the key that a login would have to trust: of one of `kinds`, else of a type that known_hosts has for it.

    `target` has one address; `dialled` is a connection to it, None where the way leads through others, who may `ask`
    when they are not among `gates` yet; the caller closes those. Raises ConnectionLost and the errors that a login can meet before its authentication.
    """
    looking = _Looking(target, dialled, ask=ask)
    looking.kinds = tuple(kinds)
    try:
        looking.look(gates)
    except KeySeen as seen:
        return seen
    raise AssertionError("a look never logs in")
