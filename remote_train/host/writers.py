"""Which files somebody holds open for writing, as far as this account can see: /proc tells, elsewhere nobody does."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Iterator, Optional, Set, Tuple

    Identity = Tuple[int, int]

PROC = "/proc"


def can_tell() -> bool:
    """Tell whether this system says who holds which file."""
    return os.path.isdir(PROC + "/self/fdinfo")


def find_written(files: Set[Identity]) -> Optional[Set[Identity]]:
    """Return those of the files, as (device, inode), that a process of this account holds open for writing.

    None where that cannot be told. A file that is mapped for writing and closed is not seen.
    """
    if not can_tell():
        return None
    found: Set[Identity] = set()
    for process in _list_own():
        for number in _list(process + "/fd"):
            identity = _identify(process + "/fd/" + number)
            if identity in files and identity not in found and _writes(process + "/fdinfo/" + number):
                found.add(identity)
    return found


def _list_own() -> Iterator[str]:
    user = os.geteuid()
    for name in _list(PROC):
        if name.isdigit():
            place = "%s/%s" % (PROC, name)
            try:
                own = os.stat(place).st_uid == user
            except OSError:
                continue
            if own:
                yield place


def _list(folder: str) -> "list[str]":
    try:
        return os.listdir(folder)
    except OSError:  # it has ended, or is closed to us
        return []


def _identify(link: str) -> Identity:
    """Return device and inode behind a descriptor that has a path; asking for others, as sockets, would be for nothing."""
    try:
        target = os.readlink(link)
        if not target.startswith("/") or target.startswith("/dev/"):
            return (0, 0)
        status = os.stat(link)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def _writes(place: str) -> bool:
    try:
        with open(place, "rb") as file:
            for line in file:
                if line.startswith(b"flags:"):
                    return bool(int(line[6:], 8) & os.O_ACCMODE)
    except (OSError, ValueError):
        return False
    return False
