"""Stay with a run until its end: its output, and its metrics beside it. What comes after the end is finish.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.gaps import Gap, GapReader, render_gap
from remote_train.watch import Watch, make_watch, read_pieces

if TYPE_CHECKING:
    from remote_train.follow import Following, Outcome
    from remote_train.listener import Listener


class Attached:
    """One attempt, followed with its metrics."""

    def __init__(self, following: Following, listener: Listener) -> None:
        self.following = following
        self.listener = listener
        self.wish = following.wish
        self.link = following.link
        self.watch: Watch | None = None
        self.gaps = GapReader()
        following.on_data = self._take

    def watch_from(self, record: dict[str, Any] | None, peak: dict[str, Any] | None) -> None:
        """Begin metrics from the host's record of the attempt, catching up with what is mirrored already."""
        mirror = self.wish.run.attempt(self.wish.attempt)
        self.watch = make_watch(self.wish.attempt, mirror)
        if self.watch is None and record is not None:
            self.watch = Watch(self.wish.attempt, record, peak)
        if self.watch is not None:
            for piece in read_pieces(mirror.output("0"), end=self.following.mirror.offsets["0"]):
                self.watch.feed("0", piece)

    def tell_gaps(self, gaps: list[Gap]) -> None:
        """Tell when the host's disk took nothing of the output."""
        for gap in gaps:
            self.listener.tell("warn", text=render_gap(self.link.host.name, gap))

    def _take(self, name: str, data: bytes) -> None:
        if name == "clock":
            self.tell_gaps(self.gaps.feed(data))
        if self.watch is None:
            return
        for record in self.watch.feed(name, data):
            self.listener.tell(
                "metric", record=record.as_json(), eta=self.watch.deriver.eta_seconds, watch=self.watch
            )

    def run(self) -> Outcome:
        """Follow to the end."""
        watching = _PeakListener(self)
        self.following.listener = watching
        outcome = self.following.run()
        if self.watch is not None:
            for record in self.watch.deriver.finish():
                self.listener.tell("metric", record=record.as_json(), eta=None, watch=self.watch)
        return outcome


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


def follow_again(following: Following, listener: Listener) -> Attached:
    """Return an attachment to a run that is on its host already, its outputs asked for from where we are."""
    attached = Attached(following, listener)
    following.attach()
    attached.watch_from(None, None)
    return attached
