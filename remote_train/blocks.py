"""Receive a file of the host by blocks, each verified as it comes, across any number of lost connections."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from typing import TYPE_CHECKING, Any, Protocol

from remote_train.errors import (
    ConnectionLost,
    LocalSpace,
    ProtocolError,
    PullIncomplete,
    RemoteTrainError,
    VerificationFailed,
)
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.refusals import SourceChanged
from remote_train.session import Data, End

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.listed import Row
    from remote_train.listener import Listener
    from remote_train.partial import Partial
    from remote_train.reach import HostLink
    from remote_train.session import Inbox, Session

BLOCK = 4 << 20
SMALLEST = 64 << 10
"""A line that breaks before a block is whole gets shorter ones, down to this."""
SUM_BYTES = 32
LOOK_SECONDS = 0.25
STALL_SECONDS = 120.0
STALL_RATE = 50e6
"""A host hashes what it skips before it ends a file: at this many bytes a second at least."""
PROGRESS_SECONDS = 0.5


class Line(Protocol):
    """A connection that may be lost and come back."""

    losses: Losses

    @property
    def session(self) -> Session:
        """The connection in use; may wait for one."""

    def renew(self, loss: ConnectionLost) -> None:
        """Bring up another session after a loss; raise what ends the trying."""


class OwnLine:
    """A connection that nobody else uses."""

    def __init__(self, run: str, link: HostLink, session: Session, listener: Listener) -> None:
        self.session = session
        self.losses = Losses()
        self.give_up: float | None = None
        self._run = run
        self._link = link
        self._listener = listener

    def renew(self, loss: ConnectionLost) -> None:
        """Connect again; raise ConnectionGivenUp after the patience is over."""
        self.session.close()
        patience = Patience(self._run, self.give_up, self._listener, self.losses)
        self.session = reconnect(self._link, loss, patience, lambda _session: None)


class Fetcher:
    """Bring files of one attempt, one after the other."""

    def __init__(self, run: str, attempt: int, line: Line, host: str) -> None:
        self.line = line
        self.limit: float | None = None
        """Bytes a second at most, which its host keeps to."""
        self.look: Callable[[], object] = int
        """Called several times a second; what it raises ends the fetching."""
        self.on_progress: Callable[[int, int], object] | None = None
        """Told at times how many bytes of how many are here."""
        self.facts: dict[str, Any] = {"run": run, "attempt": attempt}
        self.elsewhere: dict[str, dict[str, str]] = {}
        """By path what is asked for in its place: what lies beside the snapshot."""
        self._host = host
        self._block = BLOCK

    def fetch(self, path: str, partial: Partial, listed: Row | None = None) -> dict[str, Any]:
        """Bring all of a file and return what it is: size, mtime_ns, sha256.

        Where it was `listed` as whole, it is no other version: that may be half written and hold still for a moment.
        Raises SourceChanged, NoSuchFile, VerificationFailed, OSError of this disk, and what the line raises.
        """
        while True:
            before = partial.good
            try:
                summary = self._fetch_on(path, partial, listed)
            except ConnectionLost as loss:
                partial.rewind()
                self._adapt(partial.good - before)
                self.line.renew(loss)
            else:
                return self._conclude(path, partial, summary)

    def _adapt(self, brought: int) -> None:
        """Ask for shorter blocks where a connection was lost before one was whole, for longer ones where it held."""
        if brought == 0:
            self._block = max(SMALLEST, self._block // 4)
        elif brought >= 8 * self._block:
            self._block = min(BLOCK, self._block * 2)

    def _fetch_on(self, path: str, partial: Partial, listed: Row | None) -> dict[str, Any]:
        """Bring the rest of a file over one connection and return what its END says."""
        session = self.line.session
        stream = session.new_stream()
        inbox = session.open_inbox(stream)
        asked = False
        try:
            identity = self._ask(session, stream, path, partial)
            asked = True
            if listed is not None and any(identity[key] != listed[key] for key in ("size", "mtime_ns")):
                raise SourceChanged(path)
            summary = self._take(inbox, path, Blocks(partial, identity["size"], self._block))
            asked = False
            return summary
        finally:
            inbox.close()
            if asked:
                self._cancel(session, stream)

    def _ask(self, session: Session, stream: int, path: str, partial: Partial) -> dict[str, Any]:
        expected = {"expect": partial.identity} if partial.identity is not None else {}
        facts = {
            **self.facts,
            **expected,
            "path": path,
            "offset": partial.good,
            **self.elsewhere.get(path, {}),
            **({"limit": self.limit} if self.limit is not None else {}),
        }
        answer = session.wait(
            session.submit("get", stream=stream, block=self._block, **facts), look=self.look
        )
        identity = {key: answer[key] for key in ("size", "mtime_ns", "inode")}
        try:
            _check_room(path, partial, identity["size"])
            partial.identify(identity)
        except (SourceChanged, LocalSpace, OSError):
            self._cancel(session, stream)
            raise
        return identity

    @staticmethod
    def _cancel(session: Session, stream: int) -> None:
        """Have the host send no more of a file that is left; on a connection that others use it would be in their way."""
        with contextlib.suppress(ConnectionLost, RemoteTrainError):
            session.submit("cancel", stream=stream)

    def _take(self, inbox: Inbox, path: str, blocks: Blocks) -> dict[str, Any]:
        heard, patience = time.monotonic(), STALL_SECONDS + blocks.size / STALL_RATE
        told = heard
        while True:
            item = inbox.next_item(LOOK_SECONDS)
            self.look()
            now = time.monotonic()
            if isinstance(item, Data):
                heard = now
                self.line.losses.note_progress()
                try:
                    blocks.take(memoryview(item.payload))
                except Damaged as error:
                    raise self._damaged(path, error) from None
            elif isinstance(item, End):
                return {**item.summary, "whole": blocks.is_whole()}
            elif now - heard > patience:
                raise ProtocolError(f"{self._host} sends nothing more of {path}")
            if self.on_progress is not None and now - told > PROGRESS_SECONDS:
                told = now
                self.on_progress(blocks.come, blocks.size)

    def _damaged(self, path: str, error: Damaged) -> RemoteTrainError:
        if error.too_much:
            return ProtocolError(f"{self._host} sends more of {path} than it said that there is")
        return VerificationFailed(
            f"{path} arrived damaged: a block has another SHA-256 than {self._host} stated",
            hint="pull again; if it repeats, report it",
        )

    def _conclude(self, path: str, partial: Partial, summary: dict[str, Any]) -> dict[str, Any]:
        """Compare the whole with what the host says of it."""
        if summary.get("error"):
            raise PullIncomplete(
                f"{self._host} cannot read {path}: {summary['error']}", hint="pull again, or look at its disk"
            )
        if summary.get("changed"):
            raise SourceChanged(path)
        digest = partial.digest.hexdigest()
        if not summary["whole"] or (partial.good, digest) != (summary.get("length"), summary.get("sha256")):
            raise VerificationFailed(
                f"{path} arrived damaged; nothing was written", hint="pull again; if it repeats, report it"
            )
        identity = partial.identity or {}
        return {"size": identity["size"], "mtime_ns": identity["mtime_ns"], "sha256": digest}


def _check_room(path: str, partial: Partial, size: int) -> None:
    """Raise LocalSpace for a file that is longer by now than what this disk has free; OSError."""
    folder = partial.path.parent
    need, free = size - partial.good, shutil.disk_usage(folder).free
    if need > free:
        raise LocalSpace(
            f"{path} has {need:,} bytes to come by now, and {folder} has {free:,} free",
            hint="free space there, or pull elsewhere with --to",
            need=need,
            have=free,
        )


class Damaged(Exception):
    """What came of a file cannot be all right."""

    def __init__(self, *, too_much: bool) -> None:
        super().__init__()
        self.too_much = too_much


class Blocks:
    """The blocks of one file over one connection, taken apart as they come."""

    def __init__(self, partial: Partial, size: int, block: int) -> None:
        self.size = size
        self.come = partial.good
        self._partial = partial
        self._block = block
        self._sum = b""
        # From the beginning on, the hash of what this connection has carried is the hash of all there is.
        self._digest = partial.digest if not partial.good else hashlib.sha256()
        self._left = self._next_block()

    def _next_block(self) -> int:
        return min(self._block, self.size - self._partial.good)

    def is_whole(self) -> bool:
        """Tell whether every byte is here and verified."""
        return self._partial.good == self.size

    def take(self, data: memoryview) -> None:
        """Write what came, and verify each block that ends in it; raise Damaged, OSError."""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._partial.write(piece)
                if self._digest is not self._partial.digest:
                    self._digest.update(piece)
                self._left -= len(piece)
                self.come += len(piece)
            elif self.is_whole():
                raise Damaged(too_much=True)
            else:
                missing = SUM_BYTES - len(self._sum)
                self._sum += data[:missing]
                data = data[missing:]
                self._end_block()

    def _end_block(self) -> None:
        if len(self._sum) < SUM_BYTES:
            return
        if self._digest.digest() != self._sum:
            raise Damaged(too_much=False)
        self._partial.confirm()
        self._sum = b""
        self._left = self._next_block()
