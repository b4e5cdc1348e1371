"""Bring contents to a host's blob store: small ones in batches, large ones by blocks that are not sent twice.

A large content goes on at the last block that the host has verified, over a new connection or from a new process too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.errors import HostSpace, PackageError, ProtocolError, VerificationFailed
from remote_train.host.arrivals import BLOCK, MOST_ASKED
from remote_train.host.manifest_format import make_delta
from remote_train.others import Others, Say, ignore
from remote_train.refusals import hint_of
from remote_train.session import REQUEST_SECONDS, compress_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from remote_train.session import Session

    Progress = Callable[[int, int], None]

BATCH_ITEMS = 2000
BATCH_BYTES = 32 << 20
LARGE = 1 << 20
"""Bytes from which on a file travels as it is, uncompressed."""
SAMPLE = 16 << 10
WORTH_PACKING = 0.95
BATCHES_AHEAD = 2
BLOCKS_AHEAD = 8
"""Blocks sent between two looks at whether the host keeps what it gets."""
BUSY_SECONDS = 0.3
MOST_DAMAGED = 3
"""Contents that may arrive damaged, though the files here are what was hashed."""
PLACING_SECONDS = 3600.0
"""A host reads all of what it got in parts, and syncs it: hundreds of gigabytes on a slow disk."""
AGAIN = "start the run again"


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes: named by their hash, and where they lie here."""

    sha256: str
    size: int
    path: Path
    name: str = ""
    """What the file is called when something is wrong with it."""

    @property
    def label(self) -> str:
        """Return what the user knows the file by."""
        return self.name or str(self.path)


@dataclass(slots=True)
class Sent:
    """What travelled."""

    files: int = 0
    bytes: int = 0


def send_contents(
    session: Session, contents: Iterable[Content], progress: Progress, say: Say = ignore
) -> Sent:
    """Bring to the host what its blob store lacks of these contents; tell `progress` (bytes there, in total) and `say`.

    Raises PackageError for a file that is not what was hashed any more, HostSpace before the first byte when there is
    no room, and ConnectionLost: connect and call it again, and it goes on.
    """
    distinct = {content.sha256: content for content in contents}
    missing, held = ask_missing(session, list(distinct.values()))
    total = sum(content.size for content in missing)
    upload = Upload(session, lambda done: progress(done, total), say)
    upload.skip(sum(held.values()))
    upload.send(missing)
    upload.settle()
    return upload.sent


def send_manifest(session: Session, package: str, base: dict[str, Any], rows: list[Any]) -> int:
    """Send a manifest as what changes `base` (its `package` and `rows`, {} for none) into it; return the request's number.

    The answer's `stored` is false when the base is not there.
    """
    delta = make_delta(base.get("rows", []), rows)
    stream = session.new_stream()
    number = session.submit("manifest", stream=stream, package=package, base=base.get("package"))
    session.upload(stream, compress_pieces([json.dumps(delta).encode("ascii")]))
    return number


def ask_missing(session: Session, contents: Sequence[Content]) -> tuple[list[Content], dict[str, int]]:
    """Return what the host lacks of these contents, and how much it has of some of it; raise HostSpace."""
    pages = [contents[begin : begin + MOST_ASKED] for begin in range(0, len(contents), MOST_ASKED)]
    numbers = [session.submit("lack", contents=[[item.sha256, item.size] for item in page]) for page in pages]
    missing: list[Content] = []
    held: dict[str, int] = {}
    answer: dict[str, Any] = {"free": 0, "path": ""}
    for page, number in zip(pages, numbers, strict=True):
        answer = session.wait(number)
        lacked = set(answer["missing"])
        found = [item for item in page if item.sha256 in lacked]
        missing += found
        held |= {item.sha256: min(item.size, answer["held"].get(item.sha256, 0)) for item in found}
    need = sum(item.size for item in missing) - sum(held.values())
    if need > answer["free"]:
        raise HostSpace(
            f"{session.host}: {answer['path']}: {need:,} bytes are to come, and {answer['free']:,} are free",
            hint=hint_of(HostSpace.kind),
            host=session.host,
            path=answer["path"],
            need=need,
            have=answer["free"],
        )
    return missing, held


class Upload:
    """Contents on their way to one host, over one connection."""

    def __init__(self, session: Session, progress: Callable[[int], None], say: Say = ignore) -> None:
        self.sent = Sent()
        self._others = Others(session, say)
        self._session = session
        self._progress = progress
        self._done = self._damaged = 0
        self._batches: deque[int] = deque()

    def send(self, contents: Iterable[Content], *, ahead: int = BATCHES_AHEAD) -> None:
        """Send them, small ones first; what became of the last `ahead` batches is learnt by `settle`."""
        found = list({item.sha256: item for item in contents}.values())
        for batch, small in make_batches([item for item in found if item.size < BLOCK]):
            self._send_batch(batch, packed=small and is_compressible(batch))
            while len(self._batches) > ahead:
                self._settle_one()
        self._send_large([item for item in found if item.size >= BLOCK])

    def skip(self, size: int) -> None:
        """Note bytes that are there already."""
        self._done += size
        self._progress(self._done)

    def settle(self) -> None:
        """Wait until every batch is in its place; raise what went wrong."""
        while self._batches:
            self._settle_one()

    def _settle_one(self) -> None:
        try:
            self._session.wait(self._batches.popleft(), REQUEST_SECONDS)
        except VerificationFailed as error:
            raise PackageError(error.message, hint=AGAIN) from error

    def _send_batch(self, batch: Sequence[Content], *, packed: bool) -> None:
        stream = self._session.new_stream()
        items = [[item.sha256, item.size] for item in batch]
        self._batches.append(self._session.submit("blobs", stream=stream, items=items, zlib=packed))
        pieces = self._read_batch(batch)
        self._session.upload(stream, compress_pieces(pieces) if packed else pieces)
        self.sent.files += len(batch)

    def _read_batch(self, batch: Sequence[Content]) -> Iterator[bytes]:
        """Yield the files' bytes; raise PackageError for one that is not what was hashed any more."""
        for content in batch:
            digest = hashlib.sha256()
            for data in _read_pieces(content, 0, LARGE):
                digest.update(data)
                self._count(len(data))
                yield data
            if digest.hexdigest() != content.sha256:
                raise make_changed(content)

    def _count(self, size: int) -> None:
        """Note what was sent; tell it at every megabyte."""
        before = self._done // LARGE
        self.sent.bytes += size
        self._done += size
        if self._done // LARGE > before:
            self._progress(self._done)

    def _send_large(self, contents: Iterable[Content]) -> None:
        """Send each by itself, while the host is already asked about the next; one that another brings is asked for later."""
        waiting = deque(contents)
        asked: _Asked | None = None
        while waiting or asked:
            current = asked or self._ask(waiting.popleft())
            asked = self._ask(waiting.popleft()) if waiting else None
            if not self._send_one(current):
                waiting.append(current.content)
                time.sleep(BUSY_SECONDS)

    def _ask(self, content: Content) -> _Asked:
        stream = self._session.new_stream()
        number = self._session.submit("put", stream=stream, sha256=content.sha256, size=content.size)
        return _Asked(content, stream, number)

    def _send_one(self, asked: _Asked) -> bool:
        """Return False when another connection is bringing these contents."""
        answer = self._session.wait(asked.number)
        content, offset = asked.content, int(answer.get("offset", 0))
        if answer.get("busy"):
            self._others.note(content.sha256, content.size, content.label)
        if answer.get("stored") or answer.get("busy"):
            return not answer.get("busy")
        if offset > content.size or (offset < content.size and offset % BLOCK):
            raise ProtocolError(f"{self._session.host} would go on at byte {offset} of {content.label}")
        reading = _Reading(content)
        try:
            self._session.upload(asked.stream, self._read_blocks(asked.stream, reading, offset))
            self._session.wait(self._session.submit("stored", stream=asked.stream), PLACING_SECONDS)
        except VerificationFailed as error:
            reading.check()
            if hash_path(content.path) != content.sha256:
                raise make_changed(content) from error
            self._damaged += 1
            if self._damaged > MOST_DAMAGED:
                raise
            return False  # the part that was there may have been of another version: it is gone now
        self.sent.files += 1
        return True

    def _read_blocks(self, stream: int, reading: _Reading, offset: int) -> Iterator[bytes]:
        """Yield blocks, each with the proof of all bytes so far; now and then see that the host keeps them.

        What is wrong with the file ends it early: the host then drops what it has of it, and says so.
        """
        digest = hashlib.sha256()
        looks: deque[int] = deque()
        for number, block in enumerate(reading.read(offset), 1):
            digest.update(block)
            yield block
            yield digest.digest()
            self._count(len(block))
            if number % BLOCKS_AHEAD == 0:
                looks.append(self._session.submit("stored", stream=stream))
            if len(looks) > 1:
                self._session.wait(looks.popleft())
        while looks:
            self._session.wait(looks.popleft())


@dataclass(frozen=True, slots=True)
class _Asked:
    """A content that the host was asked about."""

    content: Content
    stream: int
    number: int


class _Reading:
    """A large content as it is read; what goes wrong is kept for when the host has heard of the end."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._trouble: PackageError | None = None

    def read(self, offset: int) -> Iterator[bytes]:
        """Yield its blocks from an offset on."""
        try:
            yield from _read_pieces(self._content, offset, BLOCK)
        except PackageError as error:
            self._trouble = error

    def check(self) -> None:
        """Raise what went wrong."""
        if self._trouble is not None:
            raise self._trouble


def _read_pieces(content: Content, offset: int, longest: int) -> Iterator[bytes]:
    """Yield a file's bytes from an offset on; raise PackageError when it cannot be read, or has become shorter."""
    left = content.size - offset
    try:
        with content.path.open("rb", buffering=0) as file:
            file.seek(offset)
            while left > 0:
                data = _read_whole(file, min(left, longest))
                if not data:
                    raise make_changed(content)
                left -= len(data)
                yield data
    except OSError as error:
        raise PackageError(f"{content.label}: {error.strerror}", hint=AGAIN) from error


def _read_whole(file: Any, size: int) -> bytes:  # noqa: ANN401  (a raw file)
    """Return so many bytes, fewer only at the file's end."""
    data: bytes = file.read(size)
    while data and len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data


def hash_path(path: Path) -> str | None:
    """Return the hash of a file as it is now, None when it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def make_changed(content: Content) -> PackageError:
    """Return what a user is told of a file that is not what was hashed any more."""
    return PackageError(f"{content.label} changed while it was sent", hint=AGAIN)


def is_compressible(batch: Sequence[Content]) -> bool:
    """Tell by the beginning of its largest file whether a batch is worth compressing: pictures are not."""
    largest = max(batch, key=lambda content: content.size)
    if largest.size < SAMPLE:
        return True
    with contextlib.suppress(OSError), largest.path.open("rb", buffering=0) as file:
        sample = file.read(SAMPLE)
        return len(zlib.compress(sample, 1)) < WORTH_PACKING * len(sample)
    return True  # who reads it says what is wrong with it


def make_batches(contents: Iterable[Content]) -> Iterator[tuple[list[Content], bool]]:
    """Yield batches of distinct contents and whether to compress: large files go alone and as they are."""
    batch: list[Content] = []
    size = 0
    seen: set[str] = set()
    for content in contents:
        if content.sha256 in seen:
            continue
        seen.add(content.sha256)
        if content.size >= LARGE:
            yield [content], False
            continue
        if len(batch) >= BATCH_ITEMS or size + content.size > BATCH_BYTES:
            yield batch, True
            batch, size = [], 0
        batch.append(content)
        size += content.size
    if batch:
        yield batch, True
