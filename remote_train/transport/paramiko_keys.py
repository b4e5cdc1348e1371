"""The keys that a login offers, as paramiko's objects: files first, then what the user's ssh-agent holds."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH  # type: ignore[import-untyped]
from paramiko.pkey import UnknownKeyType  # type: ignore[import-untyped]

from remote_train.transport.dial import quote
from remote_train.transport.login import LOGIN_SECONDS, Attempts, choose_key_files, read_public_key, show_path
from remote_train.transport.paramiko_tuning import WIRE_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from remote_train.transport import SshTarget

AGENT_SECONDS = 5.0


class Keys:
    """What one login may offer; the agent is asked only when a key of its own is needed."""

    def __init__(
        self, target: SshTarget, attempts: Attempts, asking: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._target = target
        self._attempts = attempts
        self._asking = asking
        self._agent: Agent | None = None
        self._held: dict[bytes, Any] | None = None

    def offer(self) -> Iterator[tuple[str, Any]]:
        """Yield label and key: our key files, an encrypted one by way of the agent; then the agent's other keys."""
        used = set()
        for path in choose_key_files(self._target.identity_files):
            key, why = read_key(path)
            public = read_public_key(path) if key is None else key.asbytes()
            if key is None and public:
                key = self._agent_keys().get(public)
            used.add(public)
            if key is not None:
                yield show_path(path), key
            elif path.exists() or self._target.identity_files:
                self._attempts.skipped.append(f"{show_path(path)} ({why})")
        rest = {} if self._target.identities_only else self._agent_keys()
        for public, key in rest.items():
            if public not in used:
                yield f"agent key {quote(key.comment.encode())}", key

    def close(self) -> None:
        """Leave the agent."""
        if self._agent:
            self._agent.close()

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


def read_key(path: Path) -> tuple[Any, str]:
    """Return a private key, or None and why it cannot be used."""
    try:
        return paramiko.PKey.from_path(path), ""
    except OSError as error:
        return None, (error.strerror or str(error)).lower()
    except (TypeError, paramiko.PasswordRequiredException):
        return None, "needs its passphrase; ssh-add it to an agent"
    except (ValueError, paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm):
        return None, "not a key that this transport can use"


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
