"""Contents that another connection brings to a host: they are waited for, not in silence and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from remote_train.errors import HostUnfit

if TYPE_CHECKING:
    from remote_train.session import Session

Say = Callable[[str], None]

SAY_SECONDS = 2.0
STUCK_SECONDS = 3600.0
"""How long nothing more of it may come: a host reads and syncs all of it at the end."""


def ignore(_text: str) -> None:
    """Say nothing."""


class Others:
    """What is known of contents that others bring to one host."""

    def __init__(self, session: Session, say: Say) -> None:
        self._session = session
        self._say = say
        self._began: dict[str, float] = {}
        self._grew: dict[str, tuple[int, float]] = {}
        self._told = False

    def note(self, sha256: str, size: int, label: str) -> None:
        """Note that another is bringing these contents still; say so after a while, and raise HostUnfit after an hour without a byte."""
        now = time.monotonic()
        began = self._began.setdefault(sha256, now)
        if now - began < SAY_SECONDS:
            return
        held = self._session.request("lack", contents=[[sha256, size]])["held"].get(sha256, 0)
        before, since = self._grew.get(sha256, (-1, began))
        self._grew[sha256] = held, (now if held != before else since)
        host = self._session.host
        if not self._told:
            self._told = True
            self._say(f"another command is sending {label} to {host}: waiting for it")
        if now - self._grew[sha256][1] > STUCK_SECONDS:
            raise HostUnfit(
                f"{host}: another command has begun to send {label} there, and nothing of it comes any more",
                hint="end that command, then start the run again",
                host=host,
            )
