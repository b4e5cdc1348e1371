"""The keys that a login offers, as paramiko's objects: files first, then what the user's ssh-agent holds."""

from __future__ import annotations

import copy
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH  # type: ignore[import-untyped]
from paramiko.pkey import UnknownKeyType  # type: ignore[import-untyped]

from remote_train.transport.certificates import parse_certified_key, read_certificate
from remote_train.transport.dial import quote
from remote_train.transport.key_files import choose_key_files, read_public_key, show_path
from remote_train.transport.login import LOGIN_SECONDS, Attempts
from remote_train.transport.paramiko_tuning import WIRE_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from remote_train.transport import SshTarget
    from remote_train.transport.keyholder import Keyholder

AGENT_SECONDS = 5.0
LOCKED = "needs its passphrase; ssh-add it to an agent"
"""Why a key file is not offered where nobody types its passphrase."""


@dataclass
class Locked:
    """A key file whose passphrase is not known yet."""

    path: Path
    public: bytes
    """b"" where it is not known either."""
    key: Any = None
    """The key, once `accept` has opened it."""

    def accept(self, passphrase: str) -> bool:
        """Open it; say whether the passphrase is right."""
        self.key = read_key(self.path, passphrase)[0]
        return self.key is not None


class Keys:
    """What one login may offer; the agent is asked only when a key of its own is needed."""

    def __init__(
        self,
        target: SshTarget,
        attempts: Attempts,
        asking: Callable[[], AbstractContextManager[None]],
        person: Keyholder | None = None,
    ) -> None:
        self._target = target
        self._attempts = attempts
        self._asking = asking
        self._person = person
        self._agent: Agent | None = None
        self._held: dict[bytes, Any] | None = None

    def offer(self) -> Iterator[tuple[str, Any]]:
        """Yield label and key: our key files, an encrypted one by way of the agent; then the agent's other keys.

        Each is preceded by the certificates for it. Last come files that need a passphrase, as Locked.
        """
        used: set[bytes] = set()
        locked = []
        for path in choose_key_files(self._target.identity_files):
            key, why = read_key(path, self._person.recall(str(path)) if self._person else None)
            public = read_public_key(path) if key is None else key.asbytes()
            if key is None and public:
                key = self._agent_keys().get(public)
            used |= {public} - {b""}
            if key is not None:
                yield from self._with_certificates(show_path(path), key, public, path)
            elif why == LOCKED and self._person is not None:
                locked.append(Locked(path, public))
            elif path.exists() or self._target.identity_files:
                self._attempts.skipped.append(f"{show_path(path)} ({why})")
        rest = {} if self._target.identities_only else self._agent_keys()
        for public, key in rest.items():
            if public not in used and parse_certified_key(public) not in used:
                yield from self._with_certificates(f"agent key {quote(key.comment.encode())}", key, public)
        for item in locked:
            yield show_path(item.path), item

    def close(self) -> None:
        """Leave the agent."""
        if self._agent:
            self._agent.close()

    def _with_certificates(
        self,
        label: str,
        key: Any,  # noqa: ANN401 - untyped library
        public: bytes,
        path: Path | None = None,
    ) -> Iterator[tuple[str, Any]]:
        beside = [path.with_name(path.name + "-cert.pub")] if path else []
        for place in [*self._target.certificate_files, *beside]:
            certificate = read_certificate(place.expanduser())
            if certificate and parse_certified_key(certificate) == public:
                yield f"{label} with {show_path(place.expanduser())}", certify(key, certificate)
        yield label, key

    def _agent_keys(self) -> dict[bytes, Any]:
        """Return the agent's keys by their public bytes; none when there is no agent or it does not answer."""
        if self._held is None:
            self._held = {}
            path = self._target.identity_agent or os.environ.get("SSH_AUTH_SOCK") or "none"
            try:
                if path != "none":
                    self._agent = Agent(path, self._asking)
                    self._held = {key.blob: key for key in self._agent.get_keys()}
            except WIRE_FAULTS as error:
                self._attempts.skipped.append(f"the keys of the agent at {path} ({error})")
        return self._held


def certify(key: Any, certificate: bytes) -> Any:  # noqa: ANN401 - untyped library
    """Return the key with its certificate, which is what the host will see."""
    made = copy.copy(key)
    made.load_certificate(paramiko.Message(certificate))
    return made


def read_key(path: Path, passphrase: str | None = None) -> tuple[Any, str]:
    """Return a private key, or None and why it cannot be used; no certificate comes with it."""
    try:
        key = paramiko.PKey.from_path(path, passphrase.encode() if passphrase else None)
    except OSError as error:
        return None, (error.strerror or str(error)).lower()
    except (TypeError, paramiko.PasswordRequiredException):
        return None, LOCKED
    except (ValueError, paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm):
        return None, "not a key that this transport can use"
    key.public_blob = None
    return key, ""


class Agent(AgentSSH):  # type: ignore[misc]
    """The user's ssh-agent, which may hang: every answer has a limit."""

    def __init__(self, path: str, asking: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._asking = asking
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(AGENT_SECONDS)
            connection.connect(str(Path(path).expanduser()))
            self._connect(connection)
        except BaseException:
            connection.close()
            raise
        connection.settimeout(LOGIN_SECONDS)  # signing may ask a person

    def _send_message(self, message: Any) -> tuple[int, Any]:  # noqa: ANN401 - the library's
        """Send a request and return the answer; the agent may ask a person before it signs."""
        with self._asking():
            answer: tuple[int, Any] = super()._send_message(message)
        return answer

    def close(self) -> None:
        """Leave the agent."""
        self._close()
