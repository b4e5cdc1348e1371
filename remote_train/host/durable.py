"""Files that are whole or absent: written beside, synced, renamed, and the folder synced."""

from __future__ import annotations

import errno
import json
import os
import stat

from remote_train.host.disk import drop, name_place
from remote_train.host.layout import FORMAT

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Union


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: str, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data`; a reader sees the old file or the new one, with `sync` after a power cut too.

    Nothing is left beside it when that fails; the OSError names the path.
    """
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        try:
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        if sync:
            sync_folder(os.path.dirname(path))
    except OSError as error:
        drop(temporary)
        raise name_place(error, path, len(data)) from None


def write_all(fd: int, data: Union[bytes, memoryview]) -> None:
    """Write everything or raise OSError: a nearly full disk takes a part first, and says so only by a number."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_record(path: str, record: Dict[str, Any], *, sync: bool = True) -> None:
    """Write a JSON record; its first key is the format number, so that old files always load."""
    whole = {"format": FORMAT}
    whole.update(record)
    write_whole(path, json.dumps(whole, indent=1).encode("ascii") + b"\n", sync=sync)


def read_plain(path: str) -> bytes:
    """Return the bytes of a file; raise OSError, also for what is none: a FIFO would wait for ever, a device never end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)  # `open` would raise for a folder, and leave it open
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
    with open(fd, "rb") as file:
        return file.read()


def read_record(path: str) -> Optional[Dict[str, Any]]:
    """Return a JSON record, or None when there is no such file or it is not one."""
    try:
        value = json.loads(read_plain(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None
