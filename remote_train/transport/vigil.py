"""Whether the other end of an SSH connection still lives: bytes that come prove it, and where none come we ask.

The kernel notices a network that is gone (`dial.KEEPALIVE`), but neither a box on the way that keeps the connection
and passes nothing on, nor that this machine slept. A thread watches for both, from the login to the end, because
whoever waits for the host or is stuck in sending to it can be woken only by ending the connection.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Protocol

from remote_train.errors import ConnectionLost
from remote_train.host.wire import SILENCE_SECONDS
from remote_train.transport import suspend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK = 0.5
KNOCK_AFTER = 5.0
"""Seconds of silence after which the host is asked for a sign of life."""


class Heard(Protocol):
    """What says when a byte came last, by time.monotonic()."""

    heard: float


class Vigil:
    """Calls `hang_up` once when the host is dead or its login takes too long; `verdict` then says why.

    `knock` asks the host for a sign of life, where one can be asked for; it may block.
    """

    def __init__(
        self, heard: Heard, login_seconds: float, knock: Callable[[], object], hang_up: Callable[[], None]
    ) -> None:
        self.verdict = ""
        self.silence = 0.0
        self._heard = heard
        self._login_seconds = self._left = login_seconds
        self._knock = knock
        self._hang_up = hang_up
        self._changed = threading.Condition()
        self._logged_in = self._over = False
        self._pauses = 0
        self._counted = self._resumed = self._knocked = time.monotonic()
        self._suspended = suspend.read_suspended()
        self._knocker: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._counted = self._resumed = time.monotonic()
        threading.Thread(target=self._watch, name="vigil", daemon=True).start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time: a person is being asked."""
        with self._changed:
            self._count()
            self._pauses += 1
        try:
            yield
        finally:
            with self._changed:
                self._count()
                self._pauses -= 1
                self._resumed = time.monotonic()

    def grant(self, seconds: float) -> None:
        """Give the login so long from now on, where less is left."""
        with self._changed:
            self._count()
            self._left = max(self._left, seconds)

    def note_login(self) -> None:
        """Let go of the limit on the login; silence goes on to count."""
        with self._changed:
            self._logged_in = True

    def end(self) -> None:
        """Watch no longer."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def make_error(self, otherwise: str) -> ConnectionLost:
        """Return what whoever uses the connection is told: the verdict, or something else when there is none."""
        return ConnectionLost(self.verdict or otherwise, silence=self.silence)

    def _count(self) -> None:
        """Take the time that has passed off the limit, unless it was a person's."""
        now = time.monotonic()
        if not self._pauses:
            self._left -= now - self._counted
        self._counted = now

    def _watch(self) -> None:
        while True:
            with self._changed:
                tick = TICK if self._logged_in else max(0.01, min(TICK, self._left))
                if self._changed.wait_for(lambda: self._over, tick):
                    return
                self._count()
                self.verdict = self._judge()
            if self.verdict:
                self._hang_up()
                return
            self._ask()

    def _judge(self) -> str:
        """Return why the connection is given up, "" while it is not."""
        slept = suspend.read_suspended() - self._suspended
        if slept > SILENCE_SECONDS:  # the other end has missed us for longer than it waits
            return f"this machine slept for {slept:.0f} s"
        quiet = self._quiet()
        # Before the login there is nothing to ask it with, and it may itself wait for a person's telephone.
        if self._logged_in and not self._pauses and quiet > SILENCE_SECONDS:
            self.silence = quiet
            return f"not a word for {quiet:.0f} s"
        if not self._logged_in and self._left <= 0:
            return f"did not finish the login within {self._login_seconds:g} s"
        return ""

    def _quiet(self) -> float:
        return time.monotonic() - max(self._heard.heard, self._resumed)

    def _ask(self) -> None:
        """Ask for a sign of life, in a thread: a sender that is stuck holds what this needs."""
        now = time.monotonic()
        stuck = self._knocker is not None and self._knocker.is_alive()
        if stuck or self._pauses or self._quiet() < KNOCK_AFTER or now - self._knocked < KNOCK_AFTER - TICK:
            return
        self._knocked = now
        self._knocker = threading.Thread(target=self._knock, name="knock", daemon=True)
        self._knocker.start()
