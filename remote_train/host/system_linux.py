"""The Linux half of system.py: /proc, prctl and pidfd. Starts no process, imports ctypes only to become subreaper."""

from __future__ import annotations

import os
import signal

from remote_train.host.process_table import Process, Table

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Set

# The kernel hands orphans to the supervisor (PR_SET_CHILD_SUBREAPER), so nothing has to be remembered.
ORPHANS_RETURN = True

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Limits that only a host full of forking processes, or one that hides other users' processes, comes near to.
_LISTINGS = 64
_REREADS = 8


def read_boot_id() -> str:
    """Return the kernel's name of this boot."""
    return _read("/proc/sys/kernel/random/boot_id").decode("ascii").strip()


def parse_stat(pid: int, data: bytes) -> Process:
    """Return a process from /proc/PID/stat; its name may hold spaces and parentheses, so count from the last one."""
    fields = data.rpartition(b")")[2].split()
    # A leader that ended while its threads run on shows Z too, and holds its memory: it is not gone.
    zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return Process(pid, int(fields[1]), int(fields[2]), fields[19].decode("ascii"), zombie)


def read_process(pid: int) -> Optional[Process]:
    """Return one process, a zombie too, or None when there is none."""
    try:
        return parse_stat(pid, _read("/proc/%d/stat" % pid))
    except OSError:
        return None


def read_table() -> Table:
    """Return all processes; about 10 us each.

    A process whose parent ended while we read looks as if it belonged to nobody: it is read again.
    """
    table: Table = {}
    seen: Set[str] = set()
    lost: List[int] = []

    def visit(pid: int) -> None:
        process = read_process(pid)
        if process is not None:
            table[pid] = process

    for _ in range(_REREADS):
        for pid in lost:
            del table[pid]
            seen.discard(str(pid))
        _scan(visit, seen)
        lost = [pid for pid, process in table.items() if process.parent and process.parent not in table]
        if not lost:
            break
    return table


def marked_processes(item: str) -> List[int]:
    """Return the processes of our user whose first environment holds exactly `NAME=VALUE`; never ourselves."""
    found: List[int] = []
    mark = b"\0" + item.encode() + b"\0"
    user = os.geteuid()

    def visit(pid: int) -> None:
        if pid != os.getpid() and _has_mark(pid, mark, user):
            found.append(pid)

    _scan(visit, set())
    return found


def become_subreaper() -> bool:
    """Have orphaned descendants handed to this process; False when the kernel refuses."""
    import ctypes  # noqa: PLC0415  (9 ms of start-up that only the supervisor pays)

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def set_process_name(name: str) -> None:
    """Set the name that ps and top show; the kernel keeps 15 bytes of it."""
    with open("/proc/self/comm", "wb") as file:
        file.write(name.encode()[:15])


def kill_process(pid: int, start: str, number: int) -> bool:
    """Send a signal to exactly this process; False when it is gone, is another by now, or may not be signalled.

    The pidfd is opened before the start time is compared: whatever it points at then cannot be exchanged.
    """
    handle = _open_handle(pid)
    try:
        process = read_process(pid)
        if process is None or process.zombie or process.start != start:
            return False
        if handle is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _open_handle(pid: int) -> Optional[int]:
    """Return a pidfd, or None before Python 3.9, before Linux 5.3, and where a sandbox forbids it."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _scan(visit: Callable[[int], None], seen: Set[str]) -> None:
    """Visit every pid not `seen`, and list again until no new one turns up.

    A process that forks and ends between the listing and the visit would otherwise be missed with its child.
    """
    for _ in range(_LISTINGS):
        fresh = [name for name in os.listdir("/proc") if name not in seen and name.isdigit()]
        if not fresh:
            return
        seen.update(fresh)
        for name in fresh:
            visit(int(name))


def _has_mark(pid: int, mark: bytes, user: int) -> bool:
    try:
        fd = os.open("/proc/%d/environ" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return mark in b"\0" + _read_all(fd) + b"\0" and os.fstat(fd).st_uid == user
    except OSError:
        return False  # it ended while we read
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> bytes:
    whole = piece = os.read(fd, 65536)
    while piece:
        piece = os.read(fd, 65536)
        whole += piece
    return whole
