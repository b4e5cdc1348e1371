"""A file that is whole gets its name, in the folder where it lies, and in place of nothing of yours."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from remote_train.mirror import hash_file

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.ledger import Ledger, Row
    from remote_train.partial import Partial


class Taken(Exception):
    """Something of yours has come where a file was to be."""


class Held:
    """What stands at a place."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.status = _look(place)
        self.sha256 = hash_file(place) if place.exists() else None

    def look_again(self, ledger: Ledger) -> Held:
        """Return what stands there now; raise Taken when that is nothing that may be replaced. Raises OSError."""
        if _look(self.place) == self.status:
            return self
        now = Held(self.place)
        if not ledger.may_replace(self.place, now.sha256):
            raise Taken
        return now


def _look(place: Path) -> tuple[int, ...] | None:
    """Return what tells a file from what it was before; None where there is nothing."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def publish(partial: Partial, held: Held, ledger: Ledger, entry: Row) -> None:
    """Give a file its name, in place of what was held there; raise Taken, OSError."""
    place, before = held.place, ledger.find(held.place)
    ledger.note({place: entry})
    try:
        _name(partial.path.name, place.name, partial.folder, anew=held.status is None)
    except FileExistsError:
        ledger.note({place: before}) if before is not None else ledger.drop([place])
        raise Taken from None
    if not _leads_to(place.parent, partial.folder):
        raise OSError(errno.ESTALE, f"{place.parent} is another folder than when the pull began", str(place))


def _leads_to(path: Path, folder: int) -> bool:
    """Tell whether a path leads to an open folder.

    The file in it would not say that: on some disks each of its names has an inode number, and a sync program may replace it.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _name(old: str, new: str, folder: int, *, anew: bool) -> None:
    """Rename a file of an open folder; `anew`: raise FileExistsError where something has that name."""
    within = {"src_dir_fd": folder, "dst_dir_fd": folder}
    if anew:
        try:
            os.link(old, new, **within, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a disk without links
            pass
        else:
            os.unlink(old, dir_fd=folder)
            return
    os.replace(old, new, **within)  # noqa: PTH105  (a Path knows no open folder)
