"""The login itself: keys, then what the host asks a person for, until it lets us in; each method is tried once.

A host may want several in turn (publickey, then keyboard-interactive). Nothing is asked without a person, a password
of the account only where the user wants that, and nothing that failed is tried again.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import paramiko  # type: ignore[import-untyped]

from remote_train.transport import login
from remote_train.transport.keyholder import clean, is_password_prompt
from remote_train.transport.paramiko_keys import LOCKED, Keys, Locked
from remote_train.transport.paramiko_tuning import WIRE_FAULTS, Ssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.transport import Notify, SshTarget
    from remote_train.transport.keyholder import Keyholder
    from remote_train.transport.vigil import Vigil

ORDER = ("publickey", "keyboard-interactive", "password")
MOST_STEPS = 8  # a host could ask for one more for ever
MOST_ROUNDS = 10
"""Of questions in one login; a code that has to be typed twice, and a new password, take six."""
PUSH_SECONDS = 60.0
"""How long a host may take after an answer: it may itself wait for a person's telephone."""


class Entry:
    """One login at one host; `person` is None where nobody can be asked."""

    def __init__(
        self,
        target: SshTarget,
        attempts: login.Attempts,
        person: Keyholder | None,
        vigil: Vigil,
        notify: Notify | None = None,
    ) -> None:
        self._target = target
        self._attempts = attempts
        self._person = person
        self._vigil = vigil
        self._notify = notify
        self._account = f"{target.user}@{target.name}"
        self._rounds = 0
        self._keys = Keys(target, attempts, vigil.paused, person)
        self._offers: Iterator[tuple[str, Any]] = self._keys.offer()
        self._ways: dict[str, Callable[[Ssh], bool]] = {
            "publickey": self._offer_keys,
            "keyboard-interactive": self._converse,
            "password": self._give_password,
        }

    def close(self) -> None:
        """Leave the agent."""
        self._keys.close()

    def log_in(self, ssh: Ssh) -> None:
        """Try what the host accepts and we have; raise LoginRefused naming all of it."""
        allowed = ["publickey"]
        left = list(ORDER)
        for _ in range(MOST_STEPS):
            method = next((m for m in left if m in allowed and self._may(m)), None)
            if method is None:
                break
            left.remove(method)
            passed = len(self._attempts.passed)
            if self._ways[method](ssh):
                return
            ssh.drop_flight()
            if not ssh.methods and self._ask_methods(ssh):
                return
            allowed = ssh.methods
            if len(self._attempts.passed) > passed and "publickey" not in left:
                left.insert(0, "publickey")  # with the keys that were not offered yet
        self._attempts.methods = ssh.methods
        raise login.make_login_error(self._target, self._attempts)

    def _may(self, method: str) -> bool:
        if method == "publickey":
            return True
        person = self._person
        if person is None or not (person.is_there or person.recall(self._account)):
            return False
        return method != "password" or self._target.password

    def _offer_keys(self, ssh: Ssh) -> bool:
        """Offer our keys one after the other; say whether one let us in."""
        for label, offered in self._offers:
            key = self._unlock(ssh, label, offered) if isinstance(offered, Locked) else offered
            if key is None:
                continue
            further = self._offer_key(ssh, label, key)
            if further is not None:
                return not further
        return False

    def _offer_key(self, ssh: Ssh, label: str, key: Any) -> list[str] | None:  # noqa: ANN401 - untyped library
        """Offer one key: None when the next may be tried, else the methods that are still to come."""
        ssh.sock.gather()
        try:
            further: list[str] = ssh.auth_publickey(self._target.user, key)
        except paramiko.AuthenticationException as error:
            self._attempts.tried.append(label)
            if not ssh.is_active():
                raise
            ssh.drop_flight()
            if not isinstance(error, paramiko.BadAuthenticationType):
                return None
            # It wants another method first: the key has its turn when that is done.
            self._offers = itertools.chain([(label, key)], self._offers)
            return ssh.methods
        except WIRE_FAULTS as error:
            if ssh.sock.broken or not ssh.is_active():
                raise
            self._attempts.skipped.append(f"{label} (it could not sign: {error})")
            return None
        self._attempts.tried.append(label)
        if further:
            self._attempts.passed.append(label)
            ssh.drop_flight()
        return None if "publickey" in further else further

    def _unlock(self, ssh: Ssh, label: str, locked: Locked) -> Any:  # noqa: ANN401 - untyped library
        """Ask for the passphrase of a key that the host would take; None without one."""
        person = self._person
        if person is None or not person.is_there:
            self._attempts.skipped.append(f"{label} ({LOCKED})")
            return None
        ssh.ensure_session()
        if locked.public and not ssh.would_accept(self._target.user, locked.public):
            self._attempts.tried.append(label)
            return None
        with self._vigil.paused():
            person.ask_once(str(locked.path), f"Passphrase of {label}: ", locked.accept)
        if locked.key is None:
            self._attempts.skipped.append(f"{label} (no passphrase that opens it was given)")
        return locked.key

    def _ask_methods(self, ssh: Ssh) -> bool:
        """Ask with an empty login which methods there are; say whether even that let us in."""
        try:
            ssh.auth_none(self._target.user)
        except paramiko.AuthenticationException:
            if not ssh.is_active():
                raise
            return False
        return True

    def _converse(self, ssh: Ssh) -> bool:
        """Let the host ask what it wants to."""
        return self._enter_by(
            ssh, "keyboard-interactive", lambda: ssh.converse(self._target.user, self._answer)
        )

    def _answer(self, title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        """Answer one round of the host's questions; it gets more time only for what a person has to do."""
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            self._attempts.skipped.append(f"the answers to more than {MOST_ROUNDS} rounds of questions")
            raise login.make_login_error(self._target, self._attempts)
        # Each line says whose words it has, and a prompt is one line: none can look like a question of ours.
        said = [line for text in (title, instructions) for line in clean(text).splitlines()]
        waits = not prompts and self._rounds == 1  # a telephone that is called at once
        if not prompts and self._notify:
            for text in said:
                self._notify(f"{self._target.name} says: {text}")
        answers = []
        for raw, echo in prompts:
            prompt = " ".join(clean(raw).split())
            asked = "\n".join(
                [
                    *(f"{self._target.name} says: {text}" for text in said),
                    f"{self._target.name} asks: {prompt} ",
                ]
            )
            said = []
            waits = waits or not self._is_held(prompt, echo=echo)
            answers.append(self._ask(asked, prompt, echo=echo))
        if waits:
            self._vigil.grant(PUSH_SECONDS)
        return answers

    def _is_held(self, prompt: str, *, echo: bool) -> bool:
        """Tell whether what is asked for was typed before."""
        held = self._person is not None and self._person.recall(self._account) is not None
        return held and is_password_prompt(prompt, echo=echo)

    def _give_password(self, ssh: Ssh) -> bool:
        """Send the account's password, which the user wants to be asked for."""
        who = f"{self._target.user} on {self._target.name}"
        password = self._ask(f"Password of {who}: ", "password", echo=False)
        return self._enter_by(
            ssh, "password", lambda: ssh.auth_password(self._target.user, password, fallback=False)
        )

    def _ask(self, asked: str, prompt: str, *, echo: bool) -> str:
        """Return a person's answer, the same one as before where it is a password; raise LoginRefused without one."""
        person, typed = self._person, None
        if person is not None:
            with self._vigil.paused():
                if is_password_prompt(prompt, echo=echo):
                    typed = person.ask_once(self._account, asked, bool)
                else:
                    typed = person.ask(asked, echo=echo)
        if typed is None:
            self._attempts.skipped.append(f'the answer to "{prompt.strip()}" (nobody gave it)')
            self._attempts.unanswered = True
            raise login.make_login_error(self._target, self._attempts)
        return typed

    def _enter_by(self, ssh: Ssh, method: str, act: Callable[[], list[str]]) -> bool:
        """Try a method that needs a person; say whether it let us in. What was refused is held no longer."""
        self._attempts.tried.append(method)
        try:
            further = act()
        except paramiko.AuthenticationException:
            if self._person is not None:
                self._person.forget(self._account)
            if not ssh.is_active():
                raise
            return False
        if further:
            self._attempts.passed.append(method)
        return not further
