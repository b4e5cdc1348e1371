"""Stay with a run until its end: its output, and its metrics beside it. What comes after the end is finish.py."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost
from remote_train.gaps import Gap, GapReader, render_gap
from remote_train.host.durable import read_record
from remote_train.metrics.curve import place_record
from remote_train.watch import Watch, make_watch, read_pieces

if TYPE_CHECKING:
    from remote_train.courier import Courier
    from remote_train.follow import Following, Outcome
    from remote_train.kept_package import Keeping
    from remote_train.listener import Listener
    from remote_train.metrics.record import MetricRecord
    from remote_train.session import Session

UNREAD_BYTES = 1 << 20
UNREAD_SECONDS = 0.25
LONGEST_LAG = 2 << 30
"""Bytes that the metrics of a flood may be behind it."""


class Attached:
    """One attempt, followed with its metrics."""

    def __init__(self, following: Following, listener: Listener) -> None:
        self.following = following
        self.listener = listener
        self.wish = following.wish
        self.link = following.link
        self.watch: Watch | None = None
        self._unread = Unread(following)
        self._began = (read_record(str(self.wish.run.folder / "run.json")) or {}).get("created")
        self.gaps = GapReader()
        self.courier: Courier | None = None
        self.keeping: Keeping | None = None
        """What copies the package behind the launch."""
        following.on_data = self._take
        following.on_record = self._take_record
        following.aside = self

    @property
    def last(self) -> MetricRecord | None:
        """The newest figures; the mirror may be behind them, where another process writes it or nobody can."""
        return self.watch.blend() if self.watch is not None else None

    def watch_from(self, record: dict[str, Any] | None, peak: dict[str, Any] | None) -> None:
        """Begin metrics from the host's record of the attempt, catching up with what is mirrored already."""
        mirror = self.wish.run.attempt(self.wish.attempt)
        self.watch = make_watch(self.wish.attempt, mirror)
        if self.watch is None and record is not None:
            self.watch = Watch(self.wish.attempt, record, peak)
        if self.watch is not None:
            offsets = self.following.mirror.offsets
            position = offsets.get("0", 0)
            held = min(mirror.offset("0"), position)
            self.watch.feed_ends(mirror.output("0"), held, position)
            self.watch.feed_beside(mirror, offsets)

    def tell_gaps(self, gaps: list[Gap]) -> None:
        """Tell when the host's disk took nothing of the output."""
        for gap in gaps:
            self.listener.tell("warn", text=render_gap(self.link.host.name, gap))

    def _take_record(self, record: dict[str, Any]) -> None:
        """Begin metrics anew once it is known which GPUs an attempt that waited was given; it has written nothing yet."""
        if self.watch is not None and self.watch.waits and record.get("gpus"):
            self.watch_from(record, self.watch.measured)

    def _take(self, name: str, data: bytes) -> None:
        if name == "clock":
            self.tell_gaps(self.gaps.feed(data))
        if self.courier is not None and self.courier.is_waiting():
            self.courier.work()
        if self.watch is None:
            return
        if name != "0":
            self._tell_metrics(self.watch.feed(name, data))
            return
        self._unread.put(data)
        while self._unread.is_due():
            self.work()

    def is_waiting(self) -> bool:
        """Tell whether some output was not looked at for metrics yet, or there is news of checkpoints."""
        news = self.courier is not None and self.courier.is_waiting()
        news = news or (self.keeping is not None and bool(self.keeping.lost))
        return news or (self.watch is not None and self._unread.is_waiting())

    def work(self) -> None:
        """Derive metrics from a piece of output that was passed on already; tell what there is to tell."""
        if self.courier is not None:
            self.courier.work()
        if self.keeping is not None:
            self.keeping.tell_lost(self.listener)
        if self.watch is None:
            return
        self._tell_metrics(self.watch.feed("0", self._unread.take()))

    def _tell_metrics(self, records: list[MetricRecord], *, over: bool = False) -> None:
        eta = self.watch.deriver.eta_seconds if self.watch is not None and not over else None
        for record in records:
            placed = place_record(record, self.link.host.name, self._began)
            self.listener.tell("metric", record=placed.as_json(), eta=eta, watch=self.watch)

    def run(self) -> Outcome:
        """Follow to the end."""
        watching = _PeakListener(self)
        self.following.listener = watching
        outcome = self._follow()
        if self.keeping is not None:
            self.keeping.wait()  # a run may be over before its package is kept
        while self.is_waiting():
            self.work()
        if self.watch is not None:
            self._tell_metrics(self.watch.finish(), over=True)
        return outcome

    def bring_checkpoints(self) -> None:
        """Bring checkpoints home as they are committed, on the same connection."""
        from remote_train.courier import Courier  # noqa: PLC0415  (not on the launch's path)
        from remote_train.pull import PullWish  # noqa: PLC0415  (as above)

        self.courier = Courier(self.following, PullWish(give_up=self.wish.give_up))

    def _follow(self) -> Outcome:
        """Follow; whatever ends it, checkpoints are brought no more then."""
        try:
            outcome = self.following.outcome or self.following.run()
        except BaseException as error:
            if self.courier is not None:
                self.courier.stop(wait=isinstance(error, Exception))  # a signal has no time
            raise
        if self.courier is not None:
            self.courier.stop(wait=True)
        return outcome


class Unread:
    """Output that was mirrored and shown, and not looked at for metrics yet.

    To look takes longer than to pass on, so in a flood it is left until nothing new comes; what is then too much to
    hold is read from the mirror again. A trickle is looked at soon.
    """

    def __init__(self, following: Following) -> None:
        self._mirror = following.mirror
        self._held: deque[bytes] = deque()
        self._size = 0
        self._since = 0.0
        self._from: int | None = None  # in the mirror, where it begins that is not held

    def put(self, data: bytes) -> None:
        """Take note of output, the newest of the mirror."""
        if self._from is not None:
            return
        if not self._held:
            self._since = time.monotonic()
        self._held.append(data)
        self._size += len(data)
        if self._size > UNREAD_BYTES and self._mirror.holds("0"):
            self._from = self._mirror.offsets["0"] - self._size
            self._held.clear()
            self._size = 0

    def is_waiting(self) -> bool:
        """Tell whether there is any."""
        return self._size > 0 or self._from is not None

    def is_due(self) -> bool:
        """Tell whether it is to be looked at now, whatever else comes."""
        if self._from is not None:
            return self._mirror.offsets["0"] - self._from > LONGEST_LAG
        return self._size > UNREAD_BYTES or (
            self._size > 0 and time.monotonic() - self._since > UNREAD_SECONDS
        )

    def take(self) -> bytes:
        """Return the oldest piece, b"" when there is none."""
        if self._from is None:
            data = self._held.popleft() if self._held else b""
            self._size -= len(data)
            return data
        end = min(self._mirror.offsets["0"], self._from + UNREAD_BYTES)
        data = b"".join(read_pieces(self._mirror.attempt.output("0"), self._from, end))
        self._from = None if not data or end == self._mirror.offsets["0"] else self._from + len(data)
        return data


class _PeakListener:
    """Pass everything on; a measured peak also changes what MFU is divided by."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def output(self, rank: int, data: bytes) -> None:
        self._attached.listener.output(rank, data)

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        if kind == "peak" and self._attached.watch is not None:
            self._attached.watch.measured = facts["peak"]
        self._attached.listener.tell(kind, **facts)


def follow_again(following: Following, listener: Listener, session: Session | None) -> Attached:
    """Return an attachment to a run that is on its host already, its outputs asked for from where we are."""
    attached = Attached(following, listener)
    following.attach(session)
    attached.watch_from(None, None)
    return attached


def wait_again(following: Following, listener: Listener) -> Attached:
    """Return an attachment to a run whose host was silent a moment ago: it is waited for, as long as the wish says."""
    attached = Attached(following, listener)
    following.reconnect(ConnectionLost(f"{following.link.host.name} was not heard"))
    attached.watch_from(None, None)
    return attached


def attach_to_end(following: Following, listener: Listener, outcome: Outcome) -> Attached:
    """Return an attachment to a run that is over and all here: its host need not even be on."""
    attached = Attached(following, listener)
    following.outcome = outcome
    attached.watch_from(None, None)
    return attached
