"""paramiko's messages of the login as we run them: in flight with the command, and questions answered by our thread."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]
from paramiko.auth_handler import AuthOnlyHandler  # type: ignore[import-untyped]
from paramiko.common import cMSG_USERAUTH_INFO_RESPONSE  # type: ignore[import-untyped]

from remote_train.transport.dial import quote

if TYPE_CHECKING:
    import threading

MOST_PROMPTS = 16
POLL_SECONDS = 0.1
Answer = Callable[[str, str, list[tuple[str, bool]]], list[str]]
"""Title, instructions, and prompts with whether to echo; returns an answer for each."""


class Auth(AuthOnlyHandler):  # type: ignore[misc]  # the library has no types
    """Sends a login request in one write with what was held back, and remembers the methods the host accepts."""

    def __init__(self, transport: Any) -> None:  # noqa: ANN401 - the library's
        super().__init__(transport)
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answer: Answer | None = None
        self._querying = self._would_do = False

    def send_auth_request(self, username: str, method: str, finish_message: Any = None) -> Any:  # noqa: ANN401
        """Hold the request back until the library waits: an answer that is quicker than its event would be lost."""
        self.transport.sock.gather()
        return super().send_auth_request(username, method, finish_message)

    def auth_none(self, username: str) -> Any:  # noqa: ANN401
        """Ask with an empty login which methods there are (the library's own raises TypeError)."""
        return self.send_auth_request(username, "none", lambda _message: None)

    def query(self, user: str, public: bytes) -> bool:
        """Ask whether the host would take a key, without a signature (RFC 4252 §7)."""
        kind = paramiko.Message(public).get_text()
        self._querying, self._would_do = True, False

        def finish(message: Any) -> None:  # noqa: ANN401
            message.add_boolean(False)
            message.add_string(self._finalize_pubkey_algorithm(kind))
            message.add_string(public)

        try:
            self.send_auth_request(user, "publickey", finish)
        except paramiko.AuthenticationException:
            if not self.transport.is_active():
                raise
        finally:
            self._querying = False
        return self._would_do

    def converse(self, user: str, answer: Answer) -> list[str]:
        """Log in by keyboard-interactive; return the methods still to come, [] when we are in."""
        self._answer = answer
        further: list[str] = self.auth_interactive(user, answer)
        return further

    def wait_for_response(self, event: threading.Event) -> Any:  # noqa: ANN401 - the library's
        """Send the request (the library has set its event only now), answer what is asked, then wait as it does."""
        self.transport.send_flight(signed=self.auth_method == "publickey" and not self._querying)
        if self.auth_method == "keyboard-interactive":
            while not event.is_set() and self.transport.is_active():
                try:
                    question = self._questions.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                self._reply(question)
        return super().wait_for_response(event)

    def _reply(self, question: tuple[str, str, list[tuple[str, bool]]]) -> None:
        assert self._answer is not None, "set by converse"  # noqa: S101 - our own invariant
        answers = self._answer(*question)
        message = paramiko.Message().add_byte(cMSG_USERAUTH_INFO_RESPONSE).add_int(len(answers))
        for text in answers:
            message.add_string(text)
        self.transport._send_message(message)  # noqa: SLF001 - as the library does

    def _parse_userauth_info_request(self, m: Any) -> None:  # noqa: ANN401
        """Take a question of the host's, or its word that it would take a key: both have number 60."""
        if self._querying:
            self._would_do = True
            self.auth_event.set()
            return
        if self.auth_method != "keyboard-interactive":
            raise paramiko.SSHException("a question that nobody invited")
        title, instructions = _read_text(m), _read_text(m)
        m.get_string()
        count = m.get_int()
        if count > MOST_PROMPTS:
            raise paramiko.SSHException(f"{count} questions at once")
        self._questions.put((title, instructions, [(_read_text(m), m.get_boolean()) for _ in range(count)]))

    def _parse_userauth_failure(self, m: Any) -> None:  # noqa: ANN401
        self.transport.methods = [quote(name.encode()).strip('"') for name in m.get_list()]
        m.rewind()
        super()._parse_userauth_failure(m)


def _read_text(message: Any) -> str:  # noqa: ANN401
    text: bytes = message.get_string()
    return text.decode("utf-8", "replace")
