"""What a tree takes, how a place in it is reached, and how it goes: links are never followed, and what cannot be read is not counted."""

from __future__ import annotations

import os

from remote_train.host import layout
from remote_train.host.durable import sync_folder

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Tuple, Union

BLOCK = 512
"""What st_blocks counts in, whatever the file system's own blocks are."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_parent(top: Union[str, int], path: str, *, make: Optional[int] = None) -> Tuple[int, str]:
    """Return the open folder that a path below `top` lies in, reached without following a link, and its name there.

    What is done by that folder is done there, whatever becomes of its name meanwhile. `top` is a path or an open folder;
    folders that are missing get the mode `make`. Raises OSError.
    """
    parts = path.split("/")
    folder = os.open(top, FOLDER) if isinstance(top, str) else os.dup(top)
    for part in parts[:-1]:
        try:
            if make is not None:
                _make_folder(part, folder, make)
            inner = os.open(part, FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder, parts[-1]


def _make_folder(name: str, folder: int, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=folder)
    except FileExistsError:  # what it is shows when it is opened
        return


def all_blocks(status: os.stat_result) -> int:
    """Return the bytes of disk that a file takes."""
    return status.st_blocks * BLOCK


def own_blocks(status: os.stat_result) -> int:
    """Return the bytes that are free once a blob is removed: none when a data folder has it too."""
    return 0 if status.st_nlink > 1 else status.st_blocks * BLOCK


def shared_blocks(status: os.stat_result) -> int:
    """Return a data folder's part of the bytes of a file, whose other names are a blob and files of other folders."""
    return status.st_blocks * BLOCK // max(1, status.st_nlink - 1)


def measure(path: str, count: Callable[[os.stat_result], int] = all_blocks) -> int:
    """Return the bytes of disk that a file or a tree takes; `count` says what of a file is counted."""
    total = 0
    waiting = [path]
    while waiting:
        place = waiting.pop()
        try:
            status = os.lstat(place)
            if os.path.isdir(place) and not os.path.islink(place):
                total += status.st_blocks * BLOCK + _measure_folder(place, waiting, count)
            else:
                total += count(status)
        except OSError:  # gone meanwhile, or closed to us
            continue
    return total


def _measure_folder(folder: str, waiting: List[str], count: Callable[[os.stat_result], int]) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                total += count(entry.stat(follow_symlinks=False))
    return total


def erase(path: str) -> None:
    """Remove a file or a tree; folders that a training closed to itself are opened first."""
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    waiting = [path]
    while waiting:
        folders = _erase_files(waiting[-1])
        waiting += folders
        if not folders:
            os.rmdir(waiting.pop())


def _erase_files(folder: str) -> List[str]:
    """Remove a folder's files and return the folders in it."""
    if os.lstat(folder).st_mode & 0o700 != 0o700:
        os.chmod(folder, 0o700)
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    return folders


def throw_away(root: str, path: str) -> None:
    """Take a folder of the state root away in one step; a process that dies behind it leaves only trash."""
    trash = os.path.join(root, layout.TRASH)
    os.makedirs(trash, 0o700, exist_ok=True)
    name = "%s.%d.%s" % (os.path.basename(path), os.getpid(), os.urandom(4).hex())
    os.rename(path, os.path.join(trash, name))
    sync_folder(os.path.dirname(path))


def list_trash(root: str) -> List[str]:
    """Return what was taken away and is still there."""
    trash = os.path.join(root, layout.TRASH)
    try:
        return sorted(os.path.join(trash, name) for name in os.listdir(trash))
    except FileNotFoundError:
        return []
