"""Bring files of a run home: whole, verified by hash, under a temporary name until then; nothing of yours is lost.

A file here is only ever replaced when its hash is the one an earlier pull of the same run put there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from remote_train.errors import ConnectionLost, LocalSpace, ProtocolError, PullIncomplete, VerificationFailed
from remote_train.host.disk import FAILING
from remote_train.host.durable import sync_folder
from remote_train.host.files import CHECKPOINTS
from remote_train.listed import choose_latest, make_patterns, parse_page
from remote_train.mirror import hash_file
from remote_train.partial import Partials, pulling_alone
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.records import choose_hint, read_json, write_json
from remote_train.refusals import NoSuchFile, SourceChanged
from remote_train.session import Data, End, Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remote_train.listed import Row
    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run

TRIES = 3
MAX_FILES = 100_000
STALL_SECONDS = 120.0
LISTING_SECONDS = 600.0
"""A host may have to read all that it was sent, to tell what was written over."""
STALL_RATE = 50e6
"""A host hashes what it skips before it ends a file: at this many bytes a second at least."""


@dataclass(frozen=True)
class PullWish:
    """Which files, and where to."""

    to: Path | None = None
    match: tuple[str, ...] = ()
    latest: bool = False
    everything: bool = False
    give_up: float | None = None


@dataclass
class Pulled:
    """What a pull brought."""

    files: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    bytes: int = 0
    kept: list[str] = field(default_factory=list)
    """Files here that are not what an earlier pull brought: left as they are."""


@dataclass(frozen=True)
class _Due:
    """Bytes of a file that were asked for."""

    stream: int
    path: str
    size: int


class Pull:
    """One `pull` of one attempt."""

    def __init__(self, run: Run, attempt: int, link: HostLink, session: Session, listener: Listener) -> None:
        self.run = run
        self.attempt = attempt
        self.link = link
        self.session = session
        self.listener = listener
        self.result = Pulled()
        self._losses = Losses()
        self._ledger_path = run.folder / "pulled.json"
        self._ledger: Row = {}
        self._partials = Partials(None)

    def bring(self, wish: PullWish) -> Pulled:
        """Fetch what is wished for; raise PullIncomplete, VerificationFailed, LocalSpace, ConnectionGivenUp."""
        with pulling_alone(self.run, self._say_wait) as self._partials:
            self._ledger = read_json(self._ledger_path)  # with what the one before us brought
            return self._bring(wish)

    def _say_wait(self) -> None:
        self.listener.tell(
            "note", text=f"another pull of {self.run.id} is under way here; waiting for its end"
        )

    def _bring(self, wish: PullWish) -> Pulled:
        rows = self._list_again(wish)
        target = wish.to or self.run.files
        self._check_space(target, rows)
        missing = [row["path"] for row in rows if not self._bring_one(row, target / row["path"], wish)]
        if self.result.kept:
            raise PullIncomplete(
                f"{', '.join(self.result.kept[:5])}: already here with other contents, left as they are",
                hint="pull to another folder with --to, or move them away",
            )
        if missing:
            raise PullIncomplete(
                f"{', '.join(missing[:5])} changed all the time while being read",
                hint="run the same command again in a moment",
            )
        return self.result

    def _list_again(self, wish: PullWish) -> list[Row]:
        """List across lost connections."""
        while True:
            try:
                return self.list_files(wish)
            except ConnectionLost as error:
                self._reconnect(error, wish)

    def _reconnect(self, loss: ConnectionLost, wish: PullWish) -> None:
        self.session.close()
        patience = Patience(self.run.id, wish.give_up, self.listener, self._losses)
        self.session = reconnect(self.link, loss, patience, lambda _session: None)

    def list_files(self, wish: PullWish) -> list[Row]:
        """Return the rows to bring, checked: the host does not choose where anything lands, nor what."""
        plan = self.run.read()["attempts"][self.attempt - 1]["plan"]
        globs = [] if wish.everything else list(wish.match or plan.get("checkpoints") or CHECKPOINTS)
        make_patterns(globs)
        rows: list[Row] = []
        after: str | None = ""
        while after is not None:
            page = self._ask_page(globs, after)
            rows += parse_page(page, after, globs)
            after = page["next"]
            if len(rows) > MAX_FILES:
                raise PullIncomplete(
                    f"more than {MAX_FILES:,} files to bring", hint="take fewer with --match"
                )
        rows = self._leave_repositories(rows)
        return choose_latest(rows) if wish.latest else rows

    def _ask_page(self, globs: list[str], after: str) -> dict[str, Any]:
        try:
            facts = {"run": self.run.id, "attempt": self.attempt}
            number = self.session.submit("files", globs=globs, after=after, **facts)
            return self.session.wait(number, LISTING_SECONDS)
        except NoSuchFile as error:
            raise PullIncomplete(
                f"{error}: the folder it ran in was removed",
                hint=f"`remote-train logs {self.run.id}` still shows its output",
            ) from None

    def _leave_repositories(self, rows: list[Row]) -> list[Row]:
        """Leave out what git would obey once it lies here."""
        inside = [row for row in rows if ".git" in row["path"].lower().split("/")]
        if inside:
            self.listener.tell("note", text=f"{len(inside)} files below a .git folder are not brought")
        return [row for row in rows if row not in inside] if inside else rows

    def _check_space(self, target: Path, rows: Sequence[Row]) -> None:
        need = sum(row["size"] for row in rows if not self._is_here(row, target / row["path"]))
        try:
            target.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target).free
        except OSError as error:
            raise make_local_error(target, error) from error
        if need > free:
            raise LocalSpace(
                f"{need:,} bytes are to come, and {target} has {free:,} free",
                hint="free space there, or pull elsewhere with --to, or less with --latest",
            )

    def _is_here(self, row: Row, place: Path) -> bool:
        entry = self._ledger.get(str(place))
        if not entry or not place.is_file():
            return False
        status = place.stat()
        here = (status.st_size, status.st_mtime_ns) == (entry["size"], entry["here_mtime_ns"])
        return here and (row["size"], row["mtime_ns"]) == (entry["size"], entry["mtime_ns"])

    def _may_replace(self, place: Path, held: str | None) -> bool:
        """Tell whether nothing is there, or what a pull put there: the last, or the one it did not come to replace."""
        entry = self._ledger.get(str(place))
        if held is None:
            return not os.path.lexists(place)
        return entry is not None and held in (entry["sha256"], entry.get("before"))

    def _bring_one(self, row: Row, place: Path, wish: PullWish) -> bool:
        """Return False when the file would not hold still; raise what a user is told when this machine does not take it."""
        try:
            return self._try_one(row, place, wish)
        except OSError as error:
            raise make_local_error(place, error) from error

    def _try_one(self, row: Row, place: Path, wish: PullWish) -> bool:
        if self._is_here(row, place):
            self.result.unchanged.append(place)
            return True
        held = hash_file(place) if place.exists() else None
        if not self._may_replace(place, held):
            self.result.kept.append(str(place))
            return True
        for _ in range(TRIES):
            try:
                self._fetch(row, place, wish, held)
            except SourceChanged:
                continue
            except NoSuchFile:
                self.listener.tell(
                    "note", text=f"{row['path']} was removed on the host before it could be read"
                )
            return True
        return False

    def _fetch(self, row: Row, place: Path, wish: PullWish, held: str | None) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._partials.writing(place) as (partial, file):
            source = self._receive(row, file, wish)
            here = {"here_mtime_ns": os.fstat(file.fileno()).st_mtime_ns, "before": held}
            there = {"path": row["path"], "attempt": self.attempt}  # which `retention.py` wants to know
            self._note(place, {**source, **here, **there})
            partial.replace(place)
        sync_folder(str(place.parent))
        self.result.files.append(place)
        self.result.bytes += source["size"]
        self.listener.tell("pulled", path=str(place), size=source["size"], sha256=source["sha256"])

    def _note(self, place: Path, entry: Row) -> None:
        """Say in the ledger what will stand there, and what stood there: killed on either side of the rename, both are ours.

        Written after the rename instead, a death between the two left a file that no later pull would touch.
        """
        self._ledger[str(place)] = entry
        write_json(self._ledger_path, self._ledger, sync=True)

    def _receive(self, row: Row, file: BinaryIO, wish: PullWish) -> Row:
        """Write the file's bytes to this machine's disk, across lost connections, and return what was verified."""
        digest = hashlib.sha256()
        source: Row | None = None
        summary: dict[str, Any] | None = None
        while summary is None:
            try:
                stream, source = self._ask(row, file.tell(), source)
                summary = self._take(_Due(stream, row["path"], source["size"]), file, digest)
            except ConnectionLost as error:
                self._reconnect(error, wish)
        file.flush()
        os.fsync(file.fileno())
        length = os.fstat(file.fileno()).st_size
        if summary.get("changed"):
            raise SourceChanged(row["path"])
        if (length, digest.hexdigest()) != (summary.get("length"), summary.get("sha256")):
            raise VerificationFailed(
                f"{row['path']} arrived damaged; nothing was written",
                hint="pull again; if it repeats, report it",
            )
        return {**(source or {}), "sha256": digest.hexdigest()}

    def _ask(self, row: Row, offset: int, before: Row | None) -> tuple[int, Row]:
        stream = self.session.new_stream()
        facts = {"run": self.run.id, "attempt": self.attempt, "path": row["path"]}
        answer = self.session.request("get", stream=stream, offset=offset, **facts)
        source = {"size": answer["size"], "mtime_ns": answer["mtime_ns"]}
        if before is not None and source != before:
            raise SourceChanged(row["path"])
        return stream, source

    def _take(self, due: _Due, file: Any, digest: Any) -> dict[str, Any]:  # noqa: ANN401  (a file and a hash)
        host = self.link.host.name
        heard, patience = time.monotonic(), STALL_SECONDS + file.tell() / STALL_RATE
        while True:
            item = self.session.next_item(1.0)
            if isinstance(item, Data) and item.stream == due.stream:
                if file.tell() + len(item.payload) > due.size:
                    raise ProtocolError(f"{host} sends more of {due.path} than the {due.size:,} bytes it has")
                heard = time.monotonic()
                self._losses.note_progress()
                file.write(item.payload)
                digest.update(item.payload)
            elif isinstance(item, End) and item.stream == due.stream:
                return item.summary
            elif time.monotonic() - heard > patience:
                raise ProtocolError(f"{host} sends nothing more of {due.path}")


def make_local_error(place: Path, error: OSError) -> LocalSpace | PullIncomplete:
    """Return what a user is told when this machine would not take a file."""
    words = f"{place}: {error.strerror or error}"
    if error.errno in (*FAILING, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        return LocalSpace(words, hint=choose_hint(error), path=str(place))
    return PullIncomplete(words, hint="pull to another folder with --to")
