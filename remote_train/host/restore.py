"""Files of an older attempt put into a new snapshot: the checkpoint it goes on from, verified while it is copied.

Each comes from the snapshot of an older attempt on this host, or from the blob store. No link is followed, neither where
it lies nor where it goes; what the package has at its path is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from remote_train.host import layout
from remote_train.host.disk import name_place
from remote_train.host.durable import write_all
from remote_train.host.manifest_format import ManifestError, check_path
from remote_train.host.snapshot import clone
from remote_train.host.trees import open_parent

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Sequence, Tuple

    Row = Dict[str, Any]

PIECE = 1 << 20
NO_PLACE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


class RestoreError(Exception):
    """A file cannot be put back: it is gone, it is another one now, or something stands in its way."""


def check_rows(rows: Sequence[Row], attempt: int) -> None:
    """Raise ValueError unless these are files of older attempts, or of the blob store, for places inside a snapshot."""
    for row in rows:
        older, sha256 = row["attempt"], row["sha256"]
        try:
            check_path(row["path"])
        except ManifestError as error:
            raise ValueError(str(error)) from None
        known = type(row["size"]) is int and row["size"] >= 0 and type(row["mode"]) is int
        hashed = layout.is_hash(sha256) or (sha256 is None and older is not None)
        if not known or not hashed or not (older is None or (type(older) is int and 1 <= older < attempt)):
            raise ValueError("not a file to put back: %r" % (row,))


def missing_blobs(root: str, rows: Sequence[Row], has_blob: Callable[[str, str, int], bool]) -> List[str]:
    """Return the hashes of those that come from the blob store and are not there."""
    wanted = [row for row in rows if row["attempt"] is None]
    return [row["sha256"] for row in wanted if not has_blob(root, row["sha256"], row["size"])]


def put_files(root: str, run: str, code: str, rows: Sequence[Row], progress: Callable[[], None]) -> List[Row]:
    """Put every file at its path below `code`; return the rows with the hash of what was put there.

    Raises RestoreError, and OSError for a disk that takes no more.
    """
    return [dict(row, sha256=_put_one(root, run, code, row, progress)) for row in rows]


def _put_one(root: str, run: str, code: str, row: Row, progress: Callable[[], None]) -> str:
    source = _open_source(root, run, row)
    try:
        before = os.fstat(source)
        if not stat.S_ISREG(before.st_mode) or before.st_size != row["size"]:
            raise RestoreError("%s is not the file any more that was chosen" % row["path"])
        digest = _write_place(code, row, source, progress)
        if _identify(os.fstat(source)) != _identify(before) or digest != (row["sha256"] or digest):
            raise RestoreError("%s changed before it was copied" % row["path"])
    finally:
        os.close(source)
    return digest


def _identify(status: os.stat_result) -> Tuple[int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _open_source(root: str, run: str, row: Row) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if row["attempt"] is None:
            return os.open(layout.blob_path(root, row["sha256"]), flags)
        older = layout.attempt_dir(root, run, row["attempt"])
        folder, name = open_parent(os.path.join(older, layout.CODE), row["path"])
        try:
            return os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise name_place(error, row["path"]) from None
        raise RestoreError("%s is not there any more" % row["path"]) from None


def _write_place(code: str, row: Row, source: int, progress: Callable[[], None]) -> str:
    """Copy an open file to its place; return its SHA-256."""
    place = os.path.join(code, row["path"])
    try:
        folder, name = open_parent(code, row["path"], make=0o700)
        try:
            target = _open_new(folder, name, 0o700 if row["mode"] & 0o111 else 0o600)
        finally:
            os.close(folder)
        try:
            return _copy(source, target, progress)
        finally:
            os.close(target)
    except OSError as error:
        if error.errno in NO_PLACE:
            raise RestoreError("a link or another file stands where %s goes" % row["path"]) from None
        raise name_place(error, place, row["size"]) from None


def _open_new(folder: int, name: str, mode: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)


def _copy(source: int, target: int, progress: Callable[[], None]) -> str:
    """Reflink where the file system can, else copy; what is hashed is what arrived."""
    cloned = clone(source, target)
    reading = target if cloned else source
    digest = hashlib.sha256()
    for data in iter(lambda: os.read(reading, PIECE), b""):
        digest.update(data)
        if not cloned:
            write_all(target, data)
        progress()
    return digest.hexdigest()
