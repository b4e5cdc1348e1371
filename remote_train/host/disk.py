"""A disk that is full, over quota, read-only or failing: what an error of it means, and the space held back for it.

An attempt holds two reserves: a small one for its stop file and its exit record, and a large one that is given back
as soon as the disk is full, so that the training's own words go on for a while.
"""

from __future__ import annotations

import errno
import os

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FAILING = (*SPACE, errno.EIO)
"""What a disk answers that took a write until now; none of it may cost a training its supervisor."""

RESERVE_BYTES = 64 << 10
LARGE_RESERVE_BYTES = 16 << 20
LARGE_RESERVE_FROM = 1 << 30
"""Bytes that must be free for the large reserve to be held: on a small disk it would itself be what fills it."""
LOW_BYTES = 256 << 10
"""Bytes free below which it is tried whether the disk takes any."""
PROBE_BYTES = 16 << 10

_LIMITS = {
    errno.EMFILE: ("open files", "ulimit -n", "RLIMIT_NOFILE"),
    errno.EAGAIN: ("processes", "ulimit -u", "RLIMIT_NPROC"),
    errno.EFBIG: ("the size of a file", "ulimit -f", "RLIMIT_FSIZE"),
    errno.ENOMEM: ("memory", "ulimit -v", "RLIMIT_AS"),
}


def find_open_folder(path: str) -> Optional[str]:
    """Return a folder above an absolute path in which everybody may put something else in its place; None: there is none."""
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        if mode & 0o002 and not mode & 0o1000:  # in a sticky one nobody renames what is another's
            return path
    return None


class Unwritten(OSError):
    """An OSError of a write that knows where it was to go and how many bytes it needed."""

    need: Optional[int] = None


def name_place(error: OSError, place: str, need: Optional[int] = None) -> OSError:
    """Return the error with the place it is about (that of a write names none) and the bytes that were needed."""
    named = Unwritten(error.errno, error.strerror, place)
    named.need = need
    return named


def describe_error(error: OSError, root: str) -> Dict[str, Any]:
    """Return `kind` and `message` of what went wrong, as the laptop is told it: host-space, or host-unfit."""
    place = error.filename
    place = os.fsdecode(place) if isinstance(place, (bytes, str)) else root
    message = "%s: %s" % (place, error.strerror or error)
    facts: Dict[str, Any] = {"path": place, "errno": errno.errorcode.get(error.errno or 0)}
    if error.errno not in FAILING:
        return {"kind": "host-unfit", "message": message + _render_limit(error.errno), "facts": facts}
    need = error.need if isinstance(error, Unwritten) else None
    have = free_near(place) if error.errno == errno.ENOSPC else None
    facts.update(need=need, have=have)
    words = ["{:,} bytes were to be written".format(need)] if need is not None else []
    words += ["{:,} are free".format(have)] if have is not None else []
    message += " (%s)" % ", ".join(words) if words else ""
    return {"kind": "host-space", "message": message, "facts": facts}


def is_of_machine(error: OSError) -> bool:
    """Tell whether the machine is in the way (its disk, a limit of the login), not what was asked of it."""
    return error.errno in FAILING or error.errno == errno.ENFILE or error.errno in _LIMITS


def _render_limit(number: Optional[int]) -> str:
    if number == errno.ENFILE:
        return "; the whole system's limit on open files (fs.file-max) is reached"
    if number not in _LIMITS:
        return ""
    import resource  # noqa: PLC0415  (only an error pays for it)

    what, command, name = _LIMITS[number]
    limit = resource.getrlimit(getattr(resource, name))[0] if hasattr(resource, name) else -1
    told = "none" if limit == resource.RLIM_INFINITY else "{:,}".format(limit)
    return "; the login's limit on %s (`%s`) is %s" % (what, command, told)


def free_bytes(path: str) -> int:
    """Return the bytes free on the disk of `path` for anybody; no inode left is none. Root may find a few more."""
    found = os.statvfs(path)
    if found.f_files and not found.f_favail:
        return 0
    return found.f_bavail * found.f_frsize


def is_full(folder: str) -> bool:
    """Tell whether the disk takes no more; asked by a write, because what root may still use nobody says."""
    if free_bytes(folder) >= LOW_BYTES:
        return False
    probe = os.path.join(folder, layout.PROBE)
    try:
        _fill(probe, PROBE_BYTES)
    except OSError:
        return True
    drop(probe)
    return False


def free_near(path: str) -> Optional[int]:
    """Return what is free where a path lies, or would lie."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        return free_bytes(path or "/")
    except OSError:
        return None


def keep_reserve(folder: str) -> None:
    """Hold back the space for a stop and an end; raise OSError when there is none: nothing must start then."""
    _fill(os.path.join(folder, layout.RESERVE), RESERVE_BYTES)


def keep_large_reserve(folder: str) -> None:
    """Hold back space for the training's own words, where that takes no time and much is free."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        if free_bytes(folder) >= LARGE_RESERVE_FROM:
            _fill(os.path.join(folder, layout.LARGE_RESERVE), LARGE_RESERVE_BYTES)
    except OSError:  # only the small one is owed
        return


def _fill(path: str, size: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            elif os.write(fd, bytes(size)) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
    except OSError as error:
        drop(path)
        raise name_place(error, path, size) from None


def drop_large_reserve(folder: str) -> None:
    """Give back the space held for the training's own words."""
    drop(os.path.join(folder, layout.LARGE_RESERVE))


def drop_reserve(folder: str) -> None:
    """Give back all the space that was held."""
    drop_large_reserve(folder)
    drop(os.path.join(folder, layout.RESERVE))


def drop(path: str) -> None:
    """Remove a file, if it is there and the disk lets it go."""
    try:
        os.unlink(path)
    except OSError:
        return


def drop_folder(path: str) -> None:
    """Remove a folder with nothing in it."""
    try:
        os.rmdir(path)
    except OSError:
        return
