"""Blobs by hash and manifests by id: what of a package is here, and how the rest arrives."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib

from remote_train.host import layout
from remote_train.host.disk import drop, find_open_folder, name_place
from remote_train.host.durable import read_record, write_whole
from remote_train.host.manifest_format import ManifestError, apply_delta, check_rows, make_package_id

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

    Rows = List[List[Any]]

SMALL = 1 << 20
MISSING_LIMIT = 5000
SEALED_MODE = 0o400
SEAL_FROM, SEAL_SPAN = 1_000_000_000, 500_000_000
"""Seconds since 1970: times from 2001 to 2017, when nothing of ours was written."""


class StoreError(Exception):
    """What arrived is not what was announced; nothing of it was kept."""


def _make_folders(root: str) -> None:
    for name in (layout.AGENTS, layout.BLOBS, layout.PACKAGES, layout.PEAKS, layout.RUNS, layout.TRASH):
        os.makedirs(os.path.join(root, name), 0o700, exist_ok=True)


def open_root(root: str) -> None:
    """Make the state root, or check that an existing one is ours and closed to others."""
    root = os.path.realpath(root)
    _refuse_open_parents(root)
    ours = os.path.basename(root) == "remote-train" or os.path.isdir(os.path.join(root, layout.RUNS))
    strange = not ours and os.path.isdir(root) and bool(os.listdir(root))
    os.makedirs(root, 0o700, exist_ok=True)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "the state folder belongs to another user", root)
        if status.st_mode & 0o077 and strange:
            words = "others may enter the state folder and it holds other things: chmod 700 it, or name an empty one"
            raise PermissionError(errno.EPERM, words, root)
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
    _make_folders(root)


def _refuse_open_parents(root: str) -> None:
    """Raise PermissionError where another user could put a folder of their own in the place of one above the root."""
    above = find_open_folder(root)
    if above is not None:
        words = "everybody may write into that folder above the state folder: chmod o-w it, or name another state_dir"
        raise PermissionError(errno.EPERM, words, above)


def has_blob(root: str, sha256: str, size: int) -> bool:
    """Tell whether these contents are here; a file of another size (a power cut), or written over, is not them."""
    try:
        found = os.stat(layout.blob_path(root, sha256))
    except OSError:
        return False
    return found.st_size == size and (found.st_mode & 0o777 != SEALED_MODE or is_sealed(found))


def make_seal(name: str) -> int:
    """Return the time that a shared file or folder gets, by the hash it is named by: any write changes it."""
    return SEAL_FROM + int(name[:8], 16) % SEAL_SPAN


def is_sealed(found: os.stat_result) -> bool:
    """Tell whether a shared file or folder is as it was made: root may write into what is closed to everybody."""
    return SEAL_FROM <= int(found.st_mtime) < SEAL_FROM + SEAL_SPAN


class BatchWriter:
    """Write a stream of announced blobs, each under its own hash, as the bytes arrive in any cutting."""

    def __init__(self, root: str, items: Sequence[Tuple[object, object]], *, compressed: bool) -> None:
        self._items: List[Tuple[str, int]] = []
        for sha256, size in items:
            if not layout.is_hash(sha256) or not isinstance(size, int) or size < 0:
                raise StoreError("a blob must be announced by its SHA-256 and size")
            self._items.append((str(sha256), size))
        self._root = root
        self._inflate = zlib.decompressobj() if compressed else None
        self._next = 0
        self._left = 0
        self._file: Optional[Any] = None
        self._hash = hashlib.sha256()
        self._temporary = os.path.join(root, layout.BLOBS, "incoming.%d.%d" % (os.getpid(), id(self)))
        try:
            self._begin()
        except OSError:
            self.abandon()
            raise

    def left(self) -> int:
        """Return how many announced bytes are not stored yet."""
        return sum(size for _, size in self._items[self._next :])

    def _begin(self) -> None:
        while self._next < len(self._items) and self._file is None:
            self._left = self._items[self._next][1]
            self._hash = hashlib.sha256()
            self._file = open(self._temporary, "wb")  # noqa: SIM115  (closed in _finish, one blob later)
            if self._left == 0:
                self._finish()

    def _finish(self) -> None:
        sha256, _ = self._items[self._next]
        if self._file is not None:
            self._file.close()
        self._file = None
        if self._hash.hexdigest() != sha256:
            os.unlink(self._temporary)
            raise StoreError("blob %s arrived with other contents" % sha256[:12])
        target = layout.blob_path(self._root, sha256)
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        os.rename(self._temporary, target)
        self._next += 1

    def write(self, data: bytes) -> None:
        """Take the next bytes of the batch; an OSError names the place and how much was still to come."""
        try:
            self._write(data)
        except OSError as error:
            raise name_place(error, os.path.join(self._root, layout.BLOBS), self.left()) from None

    def _write(self, data: bytes) -> None:
        if self._inflate is None:
            self._take(data)
        while self._inflate is not None and data:
            try:
                plain = self._inflate.decompress(data, wire_limit)
            except zlib.error as error:
                raise StoreError("a batch arrived damaged: %s" % error) from None
            self._take(plain)
            data = self._inflate.unconsumed_tail
            if self._inflate.unused_data:
                raise StoreError("more bytes arrived than were announced")

    def _take(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._file is None:
                raise StoreError("more bytes arrived than were announced")
            part = view[: self._left]
            self._file.write(part)
            self._hash.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            if self._left == 0:
                self._finish()
                self._begin()

    def close(self) -> int:
        """Return how many blobs were stored; raise StoreError when some did not come."""
        stored = self._next
        self.abandon()
        if stored < len(self._items):
            raise StoreError("%d of %d blobs did not arrive" % (len(self._items) - stored, len(self._items)))
        return stored

    def abandon(self) -> None:
        """Drop a blob that was being written."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:  # its last bytes found no space: they are not wanted any more
            pass
        drop(self._temporary)


wire_limit = 4 << 20
"""Bytes inflated at a time: a small frame cannot fill the memory."""


def read_package(root: str, package: str) -> Optional[Rows]:
    """Return the rows of a manifest, or None when it is not here or damaged."""
    try:
        with open(layout.package_path(root, package), "rb") as file:
            rows = json.loads(file.read().decode("ascii"))
    except (OSError, ValueError):
        return None
    return rows if isinstance(rows, list) else None


def note_use(root: str, package: str) -> None:
    """Note that a launch wants this manifest: those that none has wanted for long are removed."""
    touch(layout.package_path(root, package))


def touch(path: str) -> None:
    """Note that something is in use."""
    try:
        os.utime(path)
    except OSError:  # read-only, or gone: it goes a little earlier, and would be sent again
        return


def find_data(root: str, reference: object) -> str:
    """Return where the data of a plan lies: `ID` is a folder, `ID/NAME` the one file in it; raise ValueError."""
    data_id, slash, name = str(reference).partition("/")
    if not layout.is_hash(data_id) or "/" in name or name in (".", "..") or (slash and not name):
        raise ValueError("no data folder is called %.80r" % (reference,))
    return os.path.join(layout.data_path(root, data_id), name) if name else layout.data_path(root, data_id)


def note_data(root: str, references: Iterable[object]) -> List[str]:
    """Note that a launch wants these data folders; return the ids of those that are not here, or not whole."""
    lost = []
    for reference in references:
        find_data(root, reference)
        data_id = str(reference).partition("/")[0]
        if is_whole(layout.data_path(root, data_id)):
            note_use(root, data_id)
        else:
            lost.append(data_id)
    return lost


def is_whole(folder: str) -> bool:
    """Tell whether a data folder is here; for root, who may write into it, whether nobody has."""
    if not os.path.isdir(folder):
        return False
    waiting = [folder] if os.getuid() == 0 else []
    while waiting:
        inner = waiting.pop()
        if not is_sealed(os.stat(inner)):
            return False
        with os.scandir(inner) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_symlink() and not is_sealed(entry.stat(follow_symlinks=False)):
                    return False
    return True


def store_package(root: str, package: str, base: Optional[str], delta: Dict[str, Any]) -> bool:
    """Keep the manifest that `delta` makes of `base`; False when the base is not here."""
    base_rows = read_package(root, base) if base else []
    if base_rows is None:
        return False
    try:
        rows = apply_delta(base_rows, delta)
        check_rows(rows)
    except ManifestError as error:
        raise StoreError("the manifest is not one: %s" % error) from None
    if make_package_id(rows) != package:
        raise StoreError("the manifest does not have the id it was announced with")
    # Not synced: a manifest damaged by a power cut is no JSON, and is asked for again.
    write_whole(layout.package_path(root, package), json.dumps(rows).encode("ascii"), sync=False)
    return True


def read_usage(root: str) -> Optional[Dict[str, Any]]:
    """Return what the state root was last counted to take: `total` bytes, `kinds`, `when`."""
    return read_record(os.path.join(root, layout.USAGE))


def missing_blobs(root: str, rows: Rows) -> List[str]:
    """Return hashes of the manifest that are not stored, at most MISSING_LIMIT of them."""
    missing: List[str] = []
    for row in rows:
        if row[1] == "f" and not has_blob(root, row[4], row[3]):
            missing.append(row[4])
            if len(missing) >= MISSING_LIMIT:
                break
    return missing
