"""Data folders: made once from blobs, by hard links, read-only, and shared by every run that names the same content.

`data/ID/` is there whole or not at all: it is made under another name, synced and renamed, by however many at once.
"""

from __future__ import annotations

import errno
import os
import shutil

from remote_train.host import layout, locks, store
from remote_train.host.disk import name_place
from remote_train.host.trees import erase, throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from remote_train.host.operations import Operations
    from remote_train.host.store import Rows

TIDIED_SECONDS = 300.0
FEW_FILES = 64
"""Files that are synced one by one; of more, the whole disk is."""


def data(operations: Operations, request: Dict[str, Any]) -> None:
    """Have a data folder here, made from what was sent; say what is lacking for it. In a thread: it may be large."""
    data_id = request["data"]
    if not layout.is_hash(data_id):
        raise ValueError("not a data folder's id")
    operations.aside(request["id"], lambda: have_data(operations.root, data_id))


def have_data(root: str, data_id: str) -> Dict[str, Any]:
    """Return `{"here": True}`, or `{"need": "manifest"}` or `{"need": "contents"}`."""
    cleaning = locks.hold_off_cleaning(root, TIDIED_SECONDS, lambda: None)
    if cleaning is None:
        raise ValueError("its state folder has been tidied for too long")
    try:
        return make_missing(root, data_id)
    finally:
        os.close(cleaning)


def make_missing(root: str, data_id: str) -> Dict[str, Any]:
    """Make the folder if it is not here and everything for it is; whoever calls this holds off the cleaning."""
    place = layout.data_path(root, data_id)
    rows = store.read_package(root, data_id)
    if rows is None:
        return {"need": "manifest"}
    store.note_use(root, data_id)
    if store.is_whole(place):
        return {"here": True}
    if not all(row[1] != "f" or store.has_blob(root, row[4], row[3]) for row in rows):
        return {"need": "contents"}
    make_data(root, data_id, rows)
    return {"here": True}


def make_data(root: str, data_id: str, rows: Rows) -> None:
    """Make the folder, unless somebody else does first; on an error nothing of it stays."""
    place = layout.data_path(root, data_id)
    os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
    temporary = "%s.%s.%d.tmp" % (place, os.urandom(4).hex(), os.getpid())
    try:
        os.mkdir(temporary, 0o700)
        _sync(_write_rows(root, rows, temporary))
        _close_folders(temporary, data_id)
        if os.path.isdir(place) and not store.is_whole(place):
            os.chmod(place, 0o700)  # or it could not be moved
            throw_away(root, place)
        os.rename(temporary, place)
    except OSError as error:
        if os.path.isdir(temporary):
            erase(temporary)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise error if error.filename else name_place(error, place) from None


def _write_rows(root: str, rows: Rows, folder: str) -> List[str]:
    """Return the files whose contents may not have reached the disk yet."""
    fresh = []
    for inner in sorted({os.path.dirname(row[0]) for row in rows} - {""}):
        os.makedirs(os.path.join(folder, inner), 0o700, exist_ok=True)
    for row in rows:
        path = os.path.join(folder, row[0])
        if row[1] == "l":
            os.symlink(row[2], path)
        elif _link_blob(layout.blob_path(root, row[4]), path, store.make_seal(row[4])):
            fresh.append(path)
    return fresh


def _link_blob(blob: str, path: str, seal: int) -> bool:
    """Give a blob another name, or copy it where the file system gives it none, or no more; tell whether it is new."""
    sealed = store.is_sealed(os.stat(blob))
    if not sealed:
        os.utime(blob, (seal, seal))
        os.chmod(blob, store.SEALED_MODE)
    try:
        os.link(blob, path)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.ENOSYS):
            raise
        shutil.copyfile(blob, path)
        os.utime(path, (seal, seal))
        os.chmod(path, store.SEALED_MODE)
        return True
    return not sealed


def _sync(paths: List[str]) -> None:
    """What is here is believed for good: a power cut must not leave files of it empty."""
    if len(paths) > FEW_FILES:
        os.sync()
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _close_folders(folder: str, data_id: str) -> None:
    """Let nobody write into it, from the inside out."""
    seal = store.make_seal(data_id)
    for inner, _, _ in os.walk(folder, topdown=False):
        os.chmod(inner, 0o500)
        os.utime(inner, (seal, seal))
