"""Bring checkpoints home while a run is followed: in a thread of its own, on the follower's connection, the newest first.

The output never waits for it: it takes its bytes from an inbox of its own, and its disk and its fsync are its own affair.
What it has to tell is put down, and told by the thread that follows, which alone speaks to the listener. After a lost
connection it waits for the follower's next one and goes on at the block where it stood.
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import counts_no_more
from remote_train.bringing import make_local_error
from remote_train.errors import (
    ConnectionLost,
    LocalSpace,
    PullIncomplete,
    RemoteTrainError,
    VerificationFailed,
)
from remote_train.partial import PullInterrupted
from remote_train.pull import Pull, PullWish
from remote_train.reconnect import Losses

if TYPE_CHECKING:
    from remote_train.follow import Following
    from remote_train.listener import Listener
    from remote_train.records import Run
    from remote_train.session import Session


LOOK_SECONDS = 1.0
TURN_SECONDS = 0.3
"""Between two checkpoints, for another pull that waits for its turn: it looks every 0.1 s."""
STOP_SECONDS = 10.0
"""Whatever holds it up longer, a disk that does not answer, is not waited for: it holds the lock of pulls until it is done."""


class SharedLine:
    """The follower's connection; whoever loses it waits until the follower has another."""

    def __init__(self, run: Run, attempt: int) -> None:
        self.losses = Losses()
        self._of = run, attempt
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._used: Session | None = None
        self._over = False

    @property
    def session(self) -> Session:
        """The newest connection; waits for one."""
        with self._changed:
            while self._session is None and not self._over:
                self._changed.wait(LOOK_SECONDS)
                if counts_no_more(*self._of):  # the newest attempt's checkpoints wait for this one to let go
                    raise PullInterrupted
            if self._session is None or self._over:
                raise PullInterrupted
            self._used = self._session
            return self._session

    def offer(self, session: Session | None) -> None:
        """Take a connection that is followed on."""
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def renew(self, _loss: ConnectionLost) -> None:
        """Let go of the connection that was lost, unless there is another already; the next `session` waits."""
        with self._changed:
            if self._session is self._used:
                self._session = None

    def end(self) -> None:
        """Wake whoever waits: there will be no other."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Let so much time go by, unless it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over, seconds)
        self.check()

    def check(self) -> None:
        """Raise PullInterrupted once it is over."""
        if self._over:
            raise PullInterrupted


class Words:
    """What a thread has to tell, until the one that may tells it."""

    def __init__(self) -> None:
        self._held: deque[tuple[str, dict[str, Any]]] = deque()

    def output(self, rank: int, data: bytes) -> None:
        """Take nothing: no output comes this way."""

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        """Put it down."""
        self._held.append((kind, facts))

    def is_waiting(self) -> bool:
        """Tell whether there is anything."""
        return bool(self._held)

    def deliver(self, listener: Listener) -> None:
        """Tell all of it."""
        while self._held:
            kind, facts = self._held.popleft()
            listener.tell(kind, **facts)


class Courier:
    """Brings the checkpoints of an attempt that is followed, until it is stopped or this disk is full."""

    def __init__(self, following: Following, wish: PullWish) -> None:
        self.trouble: RemoteTrainError | ConnectionLost | None = None
        """Why it has stopped by itself."""
        self._damaged: VerificationFailed | None = None
        self.words = Words()
        self._following = following
        self._wish = wish
        self._line = SharedLine(following.wish.run, following.wish.attempt)
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        following.on_checkpoint = self.wake
        following.on_session = self._line.offer
        self._line.offer(following.session)

    def wake(self) -> None:
        """Look what has been committed; called by the thread that follows."""
        if self._thread is None:
            run = self._following.wish.run.id
            self._thread = threading.Thread(target=self._work, name=f"checkpoints of {run}", daemon=True)
            self._thread.start()
        self._due.set()

    def stop(self, *, wait: bool) -> None:
        """Leave off; what has come of a file is gone on with by the next pull."""
        self._line.end()
        self._due.set()
        if wait and self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def is_waiting(self) -> bool:
        """Tell whether it has something to tell."""
        return self.words.is_waiting()

    def work(self) -> None:
        """Tell it."""
        self.words.deliver(self._following.listener)

    def _work(self) -> None:
        try:
            self._bring_all(self._begin())
        except PullInterrupted:
            return
        except (RemoteTrainError, ConnectionLost) as error:
            self._stop_for(error)
        except OSError as error:
            self._stop_for(make_local_error(Path(error.filename or self._following.wish.run.folder), error))
        except BaseException as error:  # a mistake of ours: nobody is to think that they still come
            hint = "`remote-train pull` brings them; please report this"
            self._stop_for(PullIncomplete(f"{type(error).__name__}: {error}", hint=hint))
            raise

    def _begin(self) -> Pull:
        wish = self._following.wish
        pull = Pull(wish.run, wish.attempt, self._following.link, self._line.session, self.words)
        pull.use(self._line)
        pull.fetcher.look = pull.lister.look = self._line.check
        return pull

    def _stop_for(self, error: RemoteTrainError | ConnectionLost) -> None:
        self.trouble = error
        self.tell_trouble(error)

    def tell_trouble(self, error: RemoteTrainError | ConnectionLost) -> None:
        """Tell why it stops; the stream goes on."""
        text = f"checkpoints come home no more while this runs: {error}"
        self.words.tell("warn", text=text, hint=getattr(error, "hint", None))

    def serious_trouble(self) -> RemoteTrainError | None:
        """Return what a command ends with even if the newest checkpoint came after all: others did not."""
        return self.trouble if isinstance(self.trouble, (LocalSpace, VerificationFailed)) else self._damaged

    def _bring_next(self, pull: Pull, tried: set[tuple[str, int]]) -> bool:
        """Bring the newest that is not here; one that does not come is told of, and the others do."""
        before = len(tried)
        try:
            return pull.bring_next(self._wish, tried)
        except (PullIncomplete, VerificationFailed) as error:
            if len(tried) == before or counts_no_more(pull.run, pull.attempt):  # it is not about that one
                raise
            if isinstance(error, VerificationFailed):
                self._damaged = error
            text = f"a checkpoint did not come, the next ones will: {error}"
            self.words.tell("warn", text=text, hint=error.hint)
        return True

    def _bring_all(self, pull: Pull) -> None:
        """Bring one after the other, looking again after each: what is newest now comes next."""
        tried: set[tuple[str, int]] = set()
        told = 0
        while True:
            self._due.wait()
            self._due.clear()
            self._line.check()
            while self._bring_next(pull, tried):
                self._line.pause(TURN_SECONDS)
                for place in pull.result.kept[told:]:
                    self.words.tell("warn", text=f"{place}: already here with other contents, left as it is")
                told = len(pull.result.kept)
