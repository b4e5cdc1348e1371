"""Come back to a host after a lost connection: full-jitter pauses, no retry of a refused login or host key."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.errors import (
    AgentEnded,
    ConnectionGivenUp,
    ConnectionLost,
    HostUnfit,
    LoginRefused,
    Unreachable,
)
from remote_train.transport import suspend

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
AGENT_TRIES = 5
NAP = 1.0


class Losses:
    """Connections lost one after the other: those that brought nothing count as one long loss."""

    def __init__(self) -> None:
        self._barren = self._ended = 0
        self._since = self._back = 0.0

    def note_progress(self) -> None:
        """Something came: the next loss is a new one."""
        self._barren = self._ended = 0

    def note_back(self) -> None:
        """A connection is there again."""
        self._back = time.monotonic()

    def begin(self, loss: ConnectionLost) -> tuple[int, float]:
        """Note a loss; return how many barren connections were lost before it, and since when there was none else.

        Raises ConnectionGivenUp when it was our agent that ended, again and again: waiting does not mend that.
        """
        now = time.monotonic()
        if not self._barren or now - self._back > LONGEST_PAUSE:
            self._barren, self._ended, self._since = 0, 0, now - loss.silence
        self._barren += 1
        self.note_end(loss)
        return self._barren - 1, self._since

    def note_end(self, error: Exception) -> None:
        """Count how often in a row our agent has ended without a word; raise ConnectionGivenUp when it is no accident."""
        self._ended = self._ended + 1 if isinstance(error, AgentEnded) else 0
        if self._ended >= AGENT_TRIES:
            raise ConnectionGivenUp(
                f"our program on the host ends again and again without a word ({error})",
                hint="is something there killing it, or is memory short? the run goes on",
            )


@dataclass(frozen=True)
class Patience:
    """How long to go on trying, and whom to tell."""

    run: str
    give_up: float | None
    """Seconds without a connection after which to give up; None: never."""
    listener: Listener
    losses: Losses = field(default_factory=Losses)
    """The losses before this one, of the same story."""
    meanwhile: str = "the run goes on"
    """What is true of the run while nobody hears of it."""


def choose_pause(failures: int, chance: float) -> float:
    """Return seconds to wait before the next try: full jitter over a doubling ceiling, 1 s to 60 s.

    `chance` is in 0..1.
    """
    return max(FIRST_PAUSE, chance * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 10)))


def pause(seconds: float) -> None:
    """Sleep, but not on after this machine has slept: the network has just come back."""
    until, asleep = time.monotonic() + seconds, suspend.read_suspended()
    while (left := until - time.monotonic()) > 0 and suspend.read_suspended() - asleep < NAP:
        time.sleep(min(left, NAP))


def reconnect(
    link: HostLink, loss: ConnectionLost, patience: Patience, begin: Callable[[Session], None]
) -> Session:
    """Return a new session on which `begin` went through.

    Raises ConnectionGivenUp after the patience is over; a refused host key or login ends it at once. Nobody is asked
    anything: an answer that does not come would hold up whatever is to be done after the patience.
    """
    failures, since = patience.losses.begin(loss)
    absence = _Absence(link.host.name, patience, since)
    absence.tell(loss, 0.0)
    if failures >= BAD_LUCK:  # a connection that comes at once and brings nothing is not asked for at once
        absence.check(loss)
        pause(choose_pause(failures - BAD_LUCK, random.random()))  # noqa: S311  (jitter, not a secret)
    while True:
        try:
            session = _begin(link, begin)
        except LoginRefused as error:
            error.hint = f"{patience.meanwhile}; who comes back is not asked anything: `remote-train logs -f {patience.run}` on a terminal is"
            raise
        except (ConnectionLost, Unreachable, HostUnfit) as error:
            absence.add(error)
            seconds = absence.limit(choose_pause(failures, random.random()))  # noqa: S311  (as above)
            absence.tell(error, seconds)
        else:
            absence.end()
            return session
        pause(seconds)
        failures += 1


def _begin(link: HostLink, begin: Callable[[Session], None]) -> Session:
    session = link.connect()
    try:
        begin(session)
    except BaseException:
        session.close()
        raise
    return session


class _Absence:
    """The time without a connection: who is told of it, and when it is given up."""

    def __init__(self, host: str, patience: Patience, since: float) -> None:
        self._host = host
        self._patience = patience
        self._since = since
        self._told = False
        self._unfit = 0

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._since

    def add(self, error: Exception) -> None:
        """Take notice of a try that failed; raise what ends the trying."""
        self._patience.losses.note_end(error)
        self._unfit = self._unfit + 1 if isinstance(error, HostUnfit) else 0
        if self._unfit >= UNFIT_TRIES:
            raise error
        self.check(error)

    def check(self, why: Exception) -> None:
        """Raise ConnectionGivenUp when the patience is over."""
        give_up = self._patience.give_up
        if give_up is not None and self._seconds > give_up:
            raise ConnectionGivenUp(
                f"no connection to {self._host} for {self._seconds:.0f} s ({why}); the run goes on",
                hint=f"attach again with `remote-train logs -f {self._patience.run}`",
                run=self._patience.run,
                silence=self._seconds,
            )

    def limit(self, pause: float) -> float:
        """Return how long to wait: no longer than the patience lasts, at its end there is one more try."""
        give_up = self._patience.give_up
        return pause if give_up is None else min(pause, max(0.0, give_up - self._seconds) + FIRST_PAUSE)

    def tell(self, why: Exception, pause: float) -> None:
        """Tell of it once, when it is long or will be."""
        if not self._told and self._seconds + pause > TELL_AFTER:
            self._told = True
            self._patience.listener.tell(
                "silent", host=self._host, reason=str(why), meanwhile=self._patience.meanwhile
            )

    def end(self) -> None:
        """Note that it is over, and tell so if it was told of."""
        self._patience.losses.note_back()
        if self._told:
            self._patience.listener.tell("back", host=self._host, seconds=self._seconds)
