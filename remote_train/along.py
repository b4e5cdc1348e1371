"""`pull --follow`: stay with a run for its checkpoints alone, until it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.courier import Courier
from remote_train.follow import Following

if TYPE_CHECKING:
    from remote_train.errors import ConnectionLost, RemoteTrainError
    from remote_train.follow import Wish
    from remote_train.listener import Listener
    from remote_train.pull import PullWish
    from remote_train.reach import HostLink


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


def pull_along(follow: Wish, link: HostLink, wish: PullWish, listener: Listener) -> None:
    """Bring checkpoints home as they are committed, until the run's end; raise what ends that before."""
    following = Following(follow, link, listener, writing=False)
    courier = following.aside = Alone(following, wish)
    try:
        following.attach()
        following.run()
    except BaseException as error:
        courier.stop(wait=isinstance(error, Exception))
        raise
    courier.stop(wait=True)
    courier.work()
    following.close()
