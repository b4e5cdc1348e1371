"""The person at the terminal: asked yes or no, or for a secret; what was typed is held in memory for this command.

A passphrase or password is asked for once, however many connections need it. A code that is good for one login is not
held.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remote_train.transport import foreground

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.transport import Ask, AskSecret

_PASSWORD = re.compile(r"\bpass(word|wort|phrase)\b", re.IGNORECASE)
LONGEST_WORDS = (10, 200)
_ONE_TIME = re.compile(r"one.?time|\botp\b|code|token|verif|duo|new|retype|again", re.IGNORECASE)


def is_password_prompt(prompt: str, *, echo: bool) -> bool:
    """Say whether a host's prompt asks for what is the same at the next login, as far as its words tell."""
    return not echo and _PASSWORD.search(prompt) is not None and _ONE_TIME.search(prompt) is None


def clean(text: str) -> str:
    """Return what a host wants a person to read: printable, at most ten lines of 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][: LONGEST_WORDS[0]]
    return "\n".join(
        "".join(c if c.isprintable() else "?" for c in line[: LONGEST_WORDS[1]]) for line in lines
    )


class Keyholder:
    """An Ask that can also be asked for secrets. One question at a time, from whichever thread, ours or ssh's."""

    def __init__(self, confirm: Ask, secret: AskSecret | None) -> None:
        self._confirm = confirm
        self._secret = secret
        self._held: dict[str, str] = {}

    def __call__(self, question: str) -> bool:
        """Ask yes or no."""
        with foreground.taken():
            return self._confirm(question)

    @property
    def is_there(self) -> bool:
        """Whether somebody can be asked for what is not held."""
        return self._secret is not None

    def ask(self, prompt: str, *, echo: bool = False) -> str | None:
        """Ask for something that is not to be held; None when nobody answers."""
        with foreground.taken():
            return None if self._secret is None else self._secret(prompt, echo)

    def hidden(self, question: str) -> str:
        """Return what is typed without an echo, "" for nothing (transport.Person)."""
        return self.ask(f"{question}: ") or ""

    def recall(self, name: str) -> str | None:
        """Return what is held under a name."""
        return self._held.get(name)

    def forget(self, name: str) -> None:
        """Hold it no longer: it was refused."""
        self._held.pop(name, None)

    def ask_once(self, name: str, prompt: str, accept: Callable[[str], bool]) -> str | None:
        """Return what is held under `name`, else ask, at most three times, until `accept` takes it; then hold it.

        An empty answer gives up, as it does with ssh.
        """
        if self._secret is None or name in self._held:  # who asks nobody does not wait for the terminal
            return self._held.get(name)
        with foreground.taken():
            held = self._held.get(name)
            if held is not None:
                return held
            for _ in range(3):
                typed = self.ask(prompt)
                if not typed:
                    return None
                if accept(typed):
                    self._held[name] = typed
                    return typed
        return None

    def unasked(self) -> Keyholder:
        """Return one who knows what this one has typed so far and later, and is never asked."""
        other = Keyholder(lambda _question: False, None)
        other._held = self._held
        return other


def is_asked(ask: Ask | None) -> bool:
    """Tell whether there is somebody to ask."""
    return ask.is_there if isinstance(ask, Keyholder) else ask is not None


def leave_alone(ask: Ask | None) -> Ask | None:
    """Return an Ask for what goes on behind a person's back: it knows what was typed and asks nothing."""
    return ask.unasked() if isinstance(ask, Keyholder) else None
