"""Files that are whole or absent: written beside, synced, renamed, and the folder synced."""

from __future__ import annotations

import errno
import json
import os

from remote_train.host.layout import FORMAT, RESERVE

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
RESERVE_BYTES = 64 * 1024


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: str, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data`; a reader sees the old file or the new one, with `sync` after a power cut too."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    if sync:
        sync_folder(os.path.dirname(path))


def write_record(path: str, record: Dict[str, Any], *, sync: bool = True) -> None:
    """Write a JSON record; its first key is the format number, so that old files always load."""
    whole = {"format": FORMAT}
    whole.update(record)
    write_whole(path, json.dumps(whole, indent=1).encode("ascii") + b"\n", sync=sync)


def read_record(path: str) -> Optional[Dict[str, Any]]:
    """Return a JSON record, or None when there is no such file or it is not one."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def keep_reserve(folder: str) -> None:
    """Hold back a little space in an attempt's folder, so that its stop and its end can be written on a full disk."""
    try:
        with open(os.path.join(folder, RESERVE), "wb") as file:
            file.write(bytes(RESERVE_BYTES))
    except OSError:
        drop_reserve(folder)


def drop_reserve(folder: str) -> None:
    """Give the space that was held back."""
    try:
        os.unlink(os.path.join(folder, RESERVE))
    except FileNotFoundError:
        return
