"""Before a run goes on elsewhere: what its last attempt said, and its newest checkpoint, come home while its host is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.attempts import item_of
from remote_train.errors import ConnectionLost, RemoteTrainError, RunLost
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish, read_end
from remote_train.listener import Silent
from remote_train.pull import Pull, PullWish

if TYPE_CHECKING:
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session

MOST_OUTPUT = 50_000_000
"""Bytes of output for which a run that goes on is kept waiting."""
MUCH_OUTPUT = 5_000_000
"""Bytes after which it is said why nothing happens."""
PULL_GIVE_UP = 60.0


class _Enough(Exception):
    """There is too much output to wait for."""


@dataclass
class Leaving:
    """An attempt whose run goes on in another; its host is reached."""

    run: Run
    attempt: int
    link: HostLink
    listener: Listener
    _brought: int = 0

    def bring_output(self, session: Session) -> Session | None:
        """Complete the mirror of what it printed, if it is not too much; return the session, None when that was lost.

        Where another process of this laptop writes the mirror, that completes it.
        """
        if read_end(self.run.attempt(self.attempt)) is not None:
            return session
        with self.run.writing() as writing:
            return self._bring_output(session) if writing else session

    def _bring_output(self, session: Session) -> Session | None:
        self.run.attempt(self.attempt).prepare()
        ranks = range(int(item_of(self.run.read(), self.attempt)["plan"]["processes"]))
        outputs = [*map(str, ranks), *OUTPUTS_ALWAYS]
        wish = Wish(self.run, self.attempt, outputs, set(), until_end=False, give_up=0.0)
        following = Following(wish, self.link, Silent(), writing=True)
        following.on_data = self._take
        try:
            following.attach(session)
            following.run()
        except RunLost:  # there is nothing of it there
            return None
        except _Enough:
            self._say_incomplete("it is large")
            following.close()
            return None
        except (RemoteTrainError, ConnectionLost) as error:
            self._say_incomplete(str(error))
            following.close()
            return None
        return following.session

    def _take(self, _name: str, data: bytes) -> None:
        before, self._brought = self._brought, self._brought + len(data)
        if self._brought > MOST_OUTPUT:
            raise _Enough
        if before <= MUCH_OUTPUT < self._brought:
            self.listener.tell("note", text=f"bringing the rest of the log of attempt {self.attempt}")

    def _say_incomplete(self, why: str) -> None:
        self.listener.tell(
            "warn",
            text=f"the log of attempt {self.attempt} is not complete here: {why}",
            hint=f"`remote-train logs --attempt {self.attempt} {self.run.id}` brings it",
        )

    def bring_newest(self, session: Session) -> Session:
        """Bring the newest checkpoint, or else go on from what is here already; return the session in use by then."""
        pull = Pull(self.run, self.attempt, self.link, session, self.listener)
        try:
            pull.bring(PullWish(latest=True, give_up=PULL_GIVE_UP))
        except RemoteTrainError as error:
            self.listener.tell("warn", text=f"the newest checkpoint did not come: {error}", hint=error.hint)
        except BaseException:
            pull.session.close()
            raise
        return pull.session
