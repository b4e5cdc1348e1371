"""Large contents on their way in, block by block; whoever brings them next goes on where the last one was cut off.

`blobs/incoming/SHA256` grows by verified blocks only, so any prefix of it is good, whoever was killed in writing it.
One connection writes it at a time, by a lock on the file itself. Whole, verified and synced it is renamed to its place.
"""

from __future__ import annotations

import errno
import hashlib
import os

from remote_train.host import layout, locks
from remote_train.host.disk import SPACE, drop, free_bytes, name_place
from remote_train.host.durable import sync_folder, write_all
from remote_train.host.store import StoreError, has_blob

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple, Union

    from remote_train.host.operations import Operations

BLOCK = 4 << 20
PROOF = hashlib.sha256().digest_size
"""Bytes behind each block: the SHA-256 of all bytes of the contents that this connection has sent so far."""
MOST_ASKED = 5000
"""Contents of one `lack`."""
MOST_PUTS = 8
"""Contents that one connection may have begun at a time."""
MAX_BYTES = 1 << 62
TRIES = 10


def lack(operations: Operations, request: Dict[str, Any]) -> Dict[str, Any]:
    """Say which contents are not here, of which of them a part is, and what space there is."""
    asked = request["contents"]
    if not isinstance(asked, list) or len(asked) > MOST_ASKED:
        raise ValueError("contents are asked for by lists of at most %d" % MOST_ASKED)
    root = operations.root
    contents = [parse_content(*item) for item in asked]
    missing = [item for item in contents if not has_blob(root, *item)]
    held = {sha256: held_bytes(root, sha256, size) for sha256, size in missing if size >= BLOCK}
    blobs = os.path.join(root, layout.BLOBS)
    return {
        "missing": [sha256 for sha256, _ in missing],
        "held": {sha256: size for sha256, size in held.items() if size},
        "free": free_bytes(blobs),
        "path": blobs,
    }


def put(operations: Operations, request: Dict[str, Any]) -> Dict[str, Any]:
    """Say from which byte on the contents are to come, that they are here, or that somebody else brings them."""
    sha256, size = parse_content(request["sha256"], request["size"])
    stream = request["stream"]
    if type(stream) is not int or stream in operations.uploads:
        raise ValueError("not a new stream")
    if sum(isinstance(upload, Put) for upload in operations.uploads.values()) >= MOST_PUTS:
        raise ValueError("more than %d contents at once" % MOST_PUTS)
    if has_blob(operations.root, sha256, size):
        return {"stored": True, "offset": size}
    fd = open_incoming(operations.root, sha256)
    if fd is None:
        here = has_blob(operations.root, sha256, size)
        return {"stored": here, "busy": not here, "offset": size if here else 0}
    try:
        upload = Put(operations, (sha256, size), fd)
    except OSError:
        os.close(fd)
        raise
    operations.uploads[stream] = upload
    return {"offset": upload.offset}


def stored(operations: Operations, request: Dict[str, Any]) -> None:
    """Say how far contents that are being put have come; after their END, once they are in their place."""
    stream = request["stream"]
    upload = operations.uploads.get(stream)
    if not isinstance(upload, Put):
        raise KeyError(stream)
    upload.ask(stream, request["id"])


def parse_content(sha256: object, size: object) -> Tuple[str, int]:
    """Return a hash and a size, checked; raise ValueError."""
    if not layout.is_hash(sha256) or type(size) is not int or not 0 <= size <= MAX_BYTES:
        raise ValueError("contents are named by their SHA-256 and size")
    return str(sha256), size


def held_bytes(root: str, sha256: str, size: int) -> int:
    """Return how many bytes are here of contents that have not arrived whole."""
    try:
        here = os.stat(layout.incoming_path(root, sha256)).st_size
    except OSError:
        return 0
    return _align(here, size)


def _align(here: int, size: int) -> int:
    """Return where to go on in contents of which so many bytes are here; longer ones are not them."""
    if here > size:
        return 0
    return here if here == size else here - here % BLOCK


def open_incoming(root: str, sha256: str) -> Optional[int]:
    """Return the descriptor, locked, of contents that arrive; None when another connection brings them."""
    path = layout.incoming_path(root, sha256)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    for _ in range(TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not locks.try_lock(fd):
            os.close(fd)
            return None
        if locks.is_at(fd, path):
            return fd
        os.close(fd)  # whoever had it has just renamed or dropped it
    return None


def drop_incoming(root: str, sha256: str) -> bool:
    """Remove what arrived of contents, unless somebody is bringing the rest."""
    fd = open_incoming(root, sha256)
    if fd is None:
        return False
    os.unlink(layout.incoming_path(root, sha256))
    os.close(fd)
    return True


class Put:
    """One large content that arrives on a stream, and what went wrong with it, told when `stored` asks."""

    def __init__(self, operations: Operations, content: Tuple[str, int], fd: int) -> None:
        self.sha256, self.size = content
        self.id: Optional[int] = None
        self._operations = operations
        self._path = layout.incoming_path(operations.root, self.sha256)
        self._place = layout.blob_path(operations.root, self.sha256)
        self._fd = fd
        self.offset = self.began = _align(os.fstat(fd).st_size, self.size)
        self._check_space()
        os.ftruncate(fd, self.offset)
        os.lseek(fd, self.offset, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self._block = bytearray()
        self._failure: Optional[Union[StoreError, OSError]] = None
        self._ended = self._done = False
        self._askers: List[Tuple[int, object]] = []

    def _check_space(self) -> None:
        need = self.size - self.offset
        blobs = os.path.join(self._operations.root, layout.BLOBS)
        if free_bytes(blobs) < need:
            if not self.offset:
                drop(self._path)
            raise name_place(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), blobs, need)

    def data(self, payload: bytes) -> None:
        """Take a piece; what goes wrong is told when it is asked for."""
        if self._failure is None:
            try:
                self._take(payload)
            except (StoreError, OSError) as error:
                self._fail(error)

    def _take(self, payload: bytes) -> None:
        self._block += payload
        while self.offset < self.size:
            length = min(BLOCK, self.size - self.offset)
            if len(self._block) < length + PROOF:
                return
            self._keep(length)
        if self._block:
            raise StoreError("more bytes of %s arrived than were announced" % self.sha256[:12])

    def _keep(self, length: int) -> None:
        """Write the block that is complete, if it is what was sent."""
        with memoryview(self._block) as view:
            data = view[:length]
            self._hash.update(data)
            proven = view[length : length + PROOF] == self._hash.digest()
            try:
                if proven:
                    write_all(self._fd, data)
            except OSError as error:
                raise name_place(error, self._path, self.size - self.offset) from None
            finally:
                data.release()
        if not proven:
            raise StoreError("a block of %s arrived damaged" % self.sha256[:12])
        del self._block[: length + PROOF]
        self.offset += length

    def end(self) -> None:
        """Verify the whole and put it in its place, in a thread."""
        self._ended = True
        if self._failure is None and (self.offset < self.size or self._block):
            self._fail(StoreError("%s ended before its last byte" % self.sha256[:12]), spoilt=True)
        if self._failure is None:
            self._operations.connection.run_aside(self._place_it, self._settle)

    def _place_it(self) -> Optional[Union[StoreError, OSError]]:
        try:
            if self._whole_hash() != self.sha256:
                return StoreError("%s arrived with other contents" % self.sha256[:12])
            os.utime(self._fd)  # contents that nothing wants yet are kept for a day from now on
            os.fsync(self._fd)
            os.makedirs(os.path.dirname(self._place), 0o700, exist_ok=True)
            os.rename(self._path, self._place)
            sync_folder(os.path.dirname(self._place))
        except OSError as error:
            return name_place(error, self._place)
        return None

    def _whole_hash(self) -> str:
        if not self.began:
            return self._hash.hexdigest()
        whole = hashlib.sha256()
        at = 0
        while True:
            data = os.pread(self._fd, BLOCK, at)
            if not data:
                return whole.hexdigest()
            whole.update(data)
            at += len(data)

    def _settle(self, failure: Optional[Union[StoreError, OSError]]) -> None:
        if failure is not None:
            self._fail(failure, spoilt=isinstance(failure, StoreError))
        else:
            self._done = True
            os.close(self._fd)
        for stream, number in self._askers:
            self._operations.guard(number, lambda stream=stream, number=number: self.ask(stream, number))  # type: ignore[misc]  # bound to this one

    def _fail(self, failure: Union[StoreError, OSError], *, spoilt: bool = False) -> None:
        """Note what went wrong; verified blocks stay for the next try, unless they are not good or there is no space."""
        self._failure = failure
        self._block = bytearray()  # what an error's traceback still holds of it cannot be resized
        if spoilt or not self.offset or (isinstance(failure, OSError) and failure.errno in SPACE):
            drop(self._path)
        os.close(self._fd)

    def ask(self, stream: int, number: object) -> None:
        """Answer how far it has come, at once or when it is in its place; raise what went wrong."""
        if self._failure is not None:
            del self._operations.uploads[stream]
            raise self._failure
        if self._ended and not self._done:
            self._askers.append((stream, number))
            return
        if self._done:
            del self._operations.uploads[stream]
        self._operations.connection.send({"id": number, "ok": {"stored": self._done, "offset": self.offset}})

    def abandon(self) -> None:
        """Leave what was verified to whoever goes on; while it is being put in its place that goes on too."""
        if self._failure is not None or self._ended:
            return
        if not self.offset:
            drop(self._path)
        os.close(self._fd)
