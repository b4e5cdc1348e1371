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
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost, LocalSpace, ProtocolError, PullIncomplete, VerificationFailed
from remote_train.host.durable import sync_folder
from remote_train.host.files import CHECKPOINTS, make_pattern
from remote_train.mirror import hash_file
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.records import read_json, write_json
from remote_train.refusals import NoSuchFile, SourceChanged
from remote_train.session import Data, End, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.listener import Listener
    from remote_train.reach import HostLink
    from remote_train.records import Run

TRIES = 3
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAX_FILES = 100_000
LARGEST = 2**63 - 1
PARTIAL = ".remote-train-partial"
STALL_SECONDS = 120.0
STALL_RATE = 50e6
"""A host hashes what it skips before it ends a file: at this many bytes a second at least."""

Row = dict[str, Any]


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
        self._ledger = read_json(self._ledger_path)

    def bring(self, wish: PullWish) -> Pulled:
        """Fetch what is wished for; raise PullIncomplete, VerificationFailed, LocalSpace, ConnectionGivenUp."""
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
                self._reconnect(str(error), wish)

    def _reconnect(self, why: str, wish: PullWish) -> None:
        self.session.close()
        patience = Patience(self.run.id, wish.give_up, self.listener, self._losses)
        self.session = reconnect(self.link, why, patience, lambda _session: None)

    def list_files(self, wish: PullWish) -> list[Row]:
        """Return the rows to bring, checked: the host does not choose where anything lands, nor what."""
        plan = self.run.read()["attempts"][self.attempt - 1]["plan"]
        globs = [] if wish.everything else list(wish.match or plan.get("checkpoints") or CHECKPOINTS)
        rows: list[Row] = []
        after: str | None = ""
        while after is not None:
            page = self.session.request(
                "files", run=self.run.id, attempt=self.attempt, globs=globs, after=after
            )
            rows += parse_page(page, after, globs)
            after = page["next"]
            if len(rows) > MAX_FILES:
                raise PullIncomplete(
                    f"more than {MAX_FILES:,} files to bring", hint="take fewer with --match"
                )
        rows = self._leave_repositories(rows)
        return choose_latest(rows) if wish.latest else rows

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

    def _may_replace(self, place: Path) -> bool:
        entry = self._ledger.get(str(place))
        if not os.path.lexists(place):
            return True
        return entry is not None and place.is_file() and hash_file(place) == entry["sha256"]

    def _bring_one(self, row: Row, place: Path, wish: PullWish) -> bool:
        """Return False when the file would not hold still."""
        if self._is_here(row, place):
            self.result.unchanged.append(place)
            return True
        if not self._may_replace(place):
            self.result.kept.append(str(place))
            return True
        for _ in range(TRIES):
            try:
                self._fetch(row, place, wish)
            except SourceChanged:
                continue
            except NoSuchFile:
                self.listener.tell(
                    "note", text=f"{row['path']} was removed on the host before it could be read"
                )
            return True
        return False

    def _fetch(self, row: Row, place: Path, wish: PullWish) -> None:
        partial = place.with_name(f".{place.name[:50]}{PARTIAL}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = self._receive(row, partial, wish)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(str(place.parent))
            self._note(place, source)
        except OSError as error:
            raise make_local_error(place, error) from error
        self.listener.tell("pulled", path=str(place), size=source["size"], sha256=source["sha256"])

    def _note(self, place: Path, source: Row) -> None:
        entry = {**source, "here_mtime_ns": place.stat().st_mtime_ns}
        self._ledger[str(place)] = entry
        write_json(self._ledger_path, self._ledger)
        self.result.files.append(place)
        self.result.bytes += source["size"]

    def _receive(self, row: Row, partial: Path, wish: PullWish) -> Row:
        """Write the file's bytes to `partial`, across lost connections, and return what was verified."""
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            source: Row | None = None
            summary: dict[str, Any] | None = None
            while summary is None:
                try:
                    stream, source = self._ask(row, file.tell(), source)
                    summary = self._take(_Due(stream, row["path"], source["size"]), file, digest)
                except ConnectionLost as error:
                    self._reconnect(str(error), wish)
            length = file.tell()
            file.flush()
            os.fsync(file.fileno())
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


def parse_page(page: dict[str, Any], after: str, globs: Sequence[str]) -> list[Row]:
    """Return a page's rows: in order behind `after`, each as wished for; raise ProtocolError for any other page."""
    rows = [parse_row(row) for row in page["files"]]
    patterns = [make_pattern(glob) for glob in globs]
    for row in rows:
        if row["path"] <= after:
            raise ProtocolError(f"a listing that is out of order at {row['path'][:200]!r}")
        if patterns and not any(pattern.match(row["path"]) for pattern in patterns):
            raise ProtocolError(f"a listing with {row['path'][:200]!r}, which was not asked for")
        after = row["path"]
    if page["next"] is not None and (not rows or page["next"] != after):
        raise ProtocolError("a listing that does not come to an end")
    return rows


def parse_row(row: object) -> Row:
    """Check one row of the host's listing; raise ProtocolError for a path that could leave the target folder."""
    if not isinstance(row, dict):
        raise ProtocolError("a listing with something else than files")
    path, size, mtime = row.get("path"), row.get("size"), row.get("mtime_ns")
    # A bool is an int too, and no size.
    if not isinstance(path, str) or type(size) is not int or type(mtime) is not int:
        raise ProtocolError("a listing with a malformed row")
    if not 0 <= size <= LARGEST or abs(mtime) > LARGEST:
        raise ProtocolError("a listing with a size or a time that no file has")
    if len(path) > 4096 or not all(map(_is_name, path.split("/"))):
        raise ProtocolError(f"a listing with the path {path[:200]!r}")
    return {"path": path, "size": size, "mtime_ns": mtime}


def _is_name(part: str) -> bool:
    try:
        named = part not in {"", ".", ".."} and "\0" not in part and not part.endswith(PARTIAL)
        return named and len(os.fsencode(part)) <= 255
    except UnicodeEncodeError:
        return False


def make_local_error(place: Path, error: OSError) -> LocalSpace | PullIncomplete:
    """Return what a user is told when this machine would not take a file."""
    if error.errno in SPACE:
        return LocalSpace(f"{place}: {error.strerror}", hint="free space and pull again")
    return PullIncomplete(f"{place}: {error.strerror}", hint="pull to another folder with --to")


def choose_latest(rows: Sequence[Row]) -> list[Row]:
    """Return the newest checkpoint: one file, or every file of the newest `checkpoint-N` folder."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row["path"]), []).append(row)
    if not groups:
        return []
    return max(groups.values(), key=lambda group: max(row["mtime_ns"] for row in group))


def _group(path: str) -> str:
    parents = [str(parent) for parent in PurePosixPath(path).parents if parent.name.startswith("checkpoint-")]
    return parents[0] if parents else path
