"""Come back to a host after a lost connection: full-jitter pauses, no retry of a refused login or host key."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.errors import ConnectionGivenUp, ConnectionLost, HostUnfit, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.session import Session

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
TELL_AFTER = 2.0
BAD_LUCK = 2
"""Connections in a row that may bring nothing before there are pauses between them."""
UNFIT_TRIES = 5
"""A connection that breaks while our agent comes up looks like a host without one: believed when it repeats."""


class Losses:
    """Connections lost one after the other: those that brought nothing count as one long loss."""

    def __init__(self) -> None:
        self._barren = 0
        self._since = self._back = 0.0

    def note_progress(self) -> None:
        """Something came: the next loss is a new one."""
        self._barren = 0

    def note_back(self) -> None:
        """A connection is there again."""
        self._back = time.monotonic()

    def begin(self) -> tuple[int, float]:
        """Note a loss; return how many barren connections were lost before it, and since when there was none else."""
        now = time.monotonic()
        if not self._barren or now - self._back > LONGEST_PAUSE:
            self._barren, self._since = 0, now
        self._barren += 1
        return self._barren - 1, self._since


@dataclass(frozen=True)
class Patience:
    """How long to go on trying, and whom to tell."""

    run: str
    give_up: float | None
    """Seconds without a connection after which to give up; None: never."""
    listener: Listener
    losses: Losses = field(default_factory=Losses)
    """The losses before this one, of the same story."""


def choose_pause(failures: int, chance: float) -> float:
    """Return seconds to wait before the next try: full jitter over a doubling ceiling, 1 s to 60 s.

    `chance` is in 0..1.
    """
    return max(FIRST_PAUSE, chance * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 10)))


def reconnect(link: HostLink, why: str, patience: Patience, begin: Callable[[Session], None]) -> Session:
    """Return a new session on which `begin` went through.

    Raises ConnectionGivenUp after the patience is over; a refused host key or login ends it at once.
    """
    failures, lost = patience.losses.begin()
    told = False
    unfit = 0
    if failures >= BAD_LUCK:  # a connection that comes at once and brings nothing is not asked for at once
        gone = time.monotonic() - lost
        if patience.give_up is not None and gone > patience.give_up:
            raise _give_up(link.host.name, gone, why, patience.run)
        time.sleep(choose_pause(failures - BAD_LUCK, random.random()))  # noqa: S311  (jitter, not a secret)
    while True:
        try:
            session = link.connect()
            begin(session)
        except (ConnectionLost, Unreachable, HostUnfit) as error:
            unfit = unfit + 1 if isinstance(error, HostUnfit) else 0
            if unfit >= UNFIT_TRIES:
                raise
            why = str(error)
        else:
            patience.losses.note_back()
            if told:
                patience.listener.tell("back", host=link.host.name, seconds=time.monotonic() - lost)
            return session
        gone = time.monotonic() - lost
        if patience.give_up is not None and gone > patience.give_up:
            raise _give_up(link.host.name, gone, why, patience.run)
        pause = choose_pause(failures, random.random())  # noqa: S311  (jitter, not a secret)
        if not told and gone + pause > TELL_AFTER:
            told = True
            patience.listener.tell("silent", host=link.host.name, reason=why)
        time.sleep(pause)
        failures += 1


def _give_up(host: str, gone: float, why: str, run: str) -> ConnectionGivenUp:
    return ConnectionGivenUp(
        f"no connection to {host} for {gone:.0f} s ({why}); the run goes on",
        hint=f"attach again with `remote-train logs -f {run}`",
        run=run,
    )
