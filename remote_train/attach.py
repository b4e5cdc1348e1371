"""Stay with a run until its end: output, metrics, the newest checkpoint at the end, and the verdict."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost, LocalSpace, PullIncomplete, RemoteTrainError, TrainingFailed
from remote_train.host.files import tail_offset
from remote_train.outcome import make_verdict
from remote_train.pull import Pull, PullWish
from remote_train.session import Data, Event
from remote_train.watch import Watch, make_watch, read_pieces

if TYPE_CHECKING:
    from remote_train.follow import Following, Outcome, Wish
    from remote_train.listener import Listener
    from remote_train.session import Session

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
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
        following.on_data = self._take
        following.aside = self

    def watch_from(self, record: dict[str, Any] | None, peak: dict[str, Any] | None) -> None:
        """Begin metrics from the host's record of the attempt, catching up with what is mirrored already."""
        mirror = self.wish.run.attempt(self.wish.attempt)
        self.watch = make_watch(self.wish.attempt, mirror)
        if self.watch is None and record is not None:
            self.watch = Watch(self.wish.attempt, record, peak)
        if self.watch is not None:
            position = self.following.mirror.offsets.get("0", 0)
            held = min(mirror.offset("0"), position)
            self.watch.feed_ends(mirror.output("0"), held, position)

    def _take(self, name: str, data: bytes) -> None:
        if self.watch is None:
            return
        if name != "0":
            self.watch.feed(name, data)
            return
        self._unread.put(data)
        while self._unread.is_due():
            self.work()

    def is_waiting(self) -> bool:
        """Tell whether some output was not looked at for metrics yet."""
        return self.watch is not None and self._unread.is_waiting()

    def work(self) -> None:
        """Derive metrics from a piece of output that was passed on already."""
        if self.watch is None:
            return
        for record in self.watch.feed("0", self._unread.take()):
            eta = self.watch.deriver.eta_seconds
            self.listener.tell("metric", record=record.as_json(), eta=eta, watch=self.watch)

    def run(self) -> Outcome:
        """Follow to the end."""
        watching = _PeakListener(self)
        self.following.listener = watching
        outcome = self.following.outcome or self.following.run()
        while self.is_waiting():
            self.work()
        if self.watch is not None:
            for record in self.watch.deriver.finish():
                self.listener.tell("metric", record=record.as_json(), eta=None, watch=self.watch)
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


def finish_run(attached: Attached, outcome: Outcome, *, pull: bool) -> None:
    """Record the end, bring the newest checkpoint, and raise the error the end amounts to, if it is one.

    The training's own failure outranks a pull that went wrong.
    """
    run, link, listener = attached.wish.run, attached.link, attached.listener
    verdict = make_verdict(run.id, link.host.name, outcome)
    run.update(state=outcome.state, exit=outcome.exit)
    trouble = attached.following.mirror.failure
    session = attached.following.session
    try:
        if isinstance(verdict, TrainingFailed):
            _show_failure(attached, outcome)
        pulled = _pull_newest(attached) if pull and session is not None else None
    except (RemoteTrainError, ConnectionLost) as error:
        listener.tell("warn", text=str(error), hint=getattr(error, "hint", None))
        pulled = None
        verdict = verdict or as_verdict(error, run.id)
    finally:
        if session is not None:
            session.close()
    listener.tell("ended", run=run.id, outcome=outcome, verdict=verdict, pulled=pulled, watch=attached.watch)
    if verdict is not None:
        raise verdict
    if trouble is not None:
        raise LocalSpace(
            f"the mirror in {run.folder} is incomplete: {trouble.strerror}",
            hint=f"free space, then `remote-train logs {run.id}` completes it",
        )


def as_verdict(error: RemoteTrainError | ConnectionLost, run: str) -> RemoteTrainError:
    """Return what a run ends with whose training was fine and whose checkpoint did not come."""
    if isinstance(error, RemoteTrainError):
        return error
    return PullIncomplete(
        f"the newest checkpoint did not come: {error}", hint=f"`remote-train pull {run}` brings it"
    )


def _pull_newest(attached: Attached) -> list[str]:
    wish, session = attached.wish, attached.following.session
    if session is None:
        return []
    pull = Pull(wish.run, wish.attempt, attached.link, session, attached.listener)
    pulled = pull.bring(PullWish(latest=True, give_up=wish.give_up))
    return [str(path) for path in (*pulled.files, *pulled.unchanged)]


def _show_failure(attached: Attached, outcome: Outcome) -> None:
    """Tell the last lines of the rank that failed first, or of torchrun when no rank said anything."""
    ended = outcome.exit or {}
    first = ended.get("first_failure") or {"rank": 0}
    rank = int(first["rank"])
    outputs = ended.get("outputs", {})
    name = str(rank) if outputs.get(str(rank)) else "launcher"
    if name == "0" and attached.wish.shown:
        return  # it has just gone by
    path = attached.wish.run.attempt(attached.wish.attempt).output(name)
    session = attached.following.session
    if path.exists() and (session is None or attached.following.mirror.writing):
        begin = max(tail_offset(str(path), TAIL_LINES), path.stat().st_size - TAIL_BYTES)
        text = b"".join(read_pieces(path, begin))
    elif session is not None:
        text = read_tail(session, attached.wish, name, TAIL_LINES)
    else:
        return
    attached.listener.tell("failure", rank=rank, name=name, tail=text.rstrip(b"\n"))


def read_tail(session: Session, wish: Wish, name: str, lines: int) -> bytes:
    """Return the last lines of one output of an attempt that has ended."""
    facts = {"run": wish.run.id, "attempt": wish.attempt}
    offset = 0
    if name.isdigit():
        offset = session.request("tail", rank=int(name), lines=lines, **facts)["offset"]
    stream = session.new_stream()
    outputs = [{"stream": stream, "name": name, "offset": offset}]
    session.request("follow", outputs=outputs, wait=False, **facts)
    held = b""
    while True:
        item = session.next_item(10.0)
        if item is None or isinstance(item, Event):
            break
        if isinstance(item, Data) and item.stream == stream:
            held = (held + item.payload)[-(256 * 1024) :]
    return b"\n".join(held.rstrip(b"\n").split(b"\n")[-lines:])


def follow_again(following: Following, listener: Listener, session: Session) -> Attached:
    """Return an attachment to a run that is on its host already, its outputs asked for from where we are."""
    attached = Attached(following, listener)
    following.begin(session)
    attached.watch_from(None, None)
    return attached


def attach_to_end(following: Following, listener: Listener, outcome: Outcome) -> Attached:
    """Return an attachment to a run that is over and all here: its host need not even be on."""
    attached = Attached(following, listener)
    following.outcome = outcome
    attached.watch_from(None, None)
    return attached
