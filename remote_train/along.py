"""`pull`: what there is of a run now, and with `--follow` what comes until it has ended."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from remote_train.attempts import newest_of
from remote_train.courier import Courier
from remote_train.errors import ConnectionLost
from remote_train.follow import Following, Wish, name_checkpoints
from remote_train.pruned import is_away, recall_pulled, was_pruned
from remote_train.pull import Pull, Pulled, PullWish
from remote_train.retention import drop_leftovers

if TYPE_CHECKING:
    from remote_train.errors import RemoteTrainError
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run
    from remote_train.session import Session


class Alone(Courier):
    """There is nothing else to stay for: what stops it ends the following."""

    def tell_trouble(self, error: RemoteTrainError | ConnectionLost) -> None:
        """Leave that to whoever is told of the end."""

    def is_waiting(self) -> bool:
        """Tell whether there is something to tell, or an end."""
        return self.trouble is not None or super().is_waiting()

    def work(self) -> None:
        """Tell it, or raise it."""
        super().work()
        if self.trouble is not None:
            raise self.trouble


def choose_checkpoints(run: Run, attempt: int) -> tuple[str, ...]:
    """Return the globs that name the checkpoints of an attempt."""
    return name_checkpoints(run.read()["attempts"][attempt - 1]["plan"].get("checkpoints") or ())


def pull_now(run: Run, attempt: int, link: HostLink, wish: PullWish, listener: Listener) -> Pulled:
    """Bring what there is; of a run that has left its host, tell what is here."""
    drop_leftovers(run.folder)
    if attempt == newest_of(run.read()) and is_away(run, link):
        return recall_pulled(run, wish, listener)
    return _bring(Pull(run, attempt, link, link.connect(), listener), wish)


def _bring(pull: Pull, wish: PullWish) -> Pulled:
    """Bring what there is over the pull's connection, and close it."""
    try:
        if pull.attempt == newest_of(pull.run.read()) and was_pruned(pull.run, pull.session):
            return recall_pulled(pull.run, wish, pull.listener)
        return pull.bring(wish)
    finally:
        pull.session.close()


def pull_along(run: Run, attempt: int, link: HostLink, wish: PullWish, listener: Listener) -> Pulled:
    """Bring checkpoints home as they are committed until the run has ended, then all that is wished for."""
    if is_away(run, link):
        return pull_now(run, attempt, link, wish, listener)
    globs = wish.match or choose_checkpoints(run, attempt)
    follow = Wish(run, attempt, [], set(), give_up=wish.give_up, checkpoints=globs)
    session = _stay(Following(follow, link, listener, writing=False), wish)
    try:
        # Over the same connection: for another one a person may have to be asked again.
        with closing(session or link.connect()) as last:
            drop_leftovers(run.folder)
            return _bring(Pull(run, attempt, link, last, listener), wish)
    except ConnectionLost:
        return pull_now(run, attempt, link, wish, listener)


def _stay(following: Following, wish: PullWish) -> Session | None:
    """Bring checkpoints until the run's end, and return the connection they came over; raise what ends that before."""
    courier = following.aside = Alone(following, wish)
    try:
        following.attach()
        following.run()
    except BaseException as error:
        courier.stop(wait=isinstance(error, Exception))
        raise
    courier.stop(wait=True)
    try:
        courier.work()
    except BaseException:
        following.close()
        raise
    return following.session
