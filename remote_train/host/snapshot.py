"""The private snapshot that an attempt runs in: copies of the package's files, written by several processes.

Making a file is mostly the kernel's work, so a large package is shared out over a few cores; neighbouring paths stay
together, because two makers in one folder wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

from remote_train.host import layout
from remote_train.host.disk import name_place
from remote_train.host.durable import write_all

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Tuple

    from remote_train.host.store import Rows

FICLONE = 0x40049409
SMALL = 1 << 20
PROGRESS_EVERY = 500
ROWS_PER_WORKER = 2000
MOST_WORKERS = 4
WAIT_SECONDS = 1.0


def clone(source: int, target: int) -> bool:
    """Make one open file share the contents of another, where the file system can."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


class _Copier:
    """Copy blobs to files; reflinks while the file system can, else plain copies (never hard links)."""

    def __init__(self, progress: Callable[[], None]) -> None:
        self._can_clone = True
        self._progress = progress

    def copy(self, source: str, target: str, mode: int, size: int) -> None:
        try:
            self._copy(source, target, mode, size)
        except OSError as error:
            raise error if error.filename else name_place(error, target) from None

    def _copy(self, source: str, target: str, mode: int, size: int) -> None:
        read_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            write_fd = os.open(target, flags, 0o700 if mode & 0o111 else 0o600)
            try:
                self._fill(read_fd, write_fd, size)
            finally:
                os.close(write_fd)
        finally:
            os.close(read_fd)

    def _fill(self, read_fd: int, write_fd: int, size: int) -> None:
        if size >= 4096 and self._can_clone:
            if clone(read_fd, write_fd):
                return
            self._can_clone = False
        while True:
            data = os.read(read_fd, min(SMALL, size + 1))
            if not data:
                return
            write_all(write_fd, data)
            if len(data) == size < SMALL:
                return
            self._progress()


def write_snapshot(root: str, rows: Rows, target: str, progress: Callable[[], None]) -> None:
    """Write the package's files into the new folder `target`; `progress` is called now and then."""
    os.mkdir(target, 0o700)
    _make_folders(rows, target)
    share = -(-len(rows) // _count_workers(len(rows)))
    workers: List[Tuple[int, int]] = []
    try:
        for start in range(share, len(rows), share):
            workers += [_fork_worker(root, rows[start : start + share], target)]
        _write_rows(root, rows[:share], target, progress)
        problems = [_await_worker(worker, progress) for worker in workers]
    except BaseException:
        for pid, _ in workers:
            _end_worker(pid)
        raise
    for problem in filter(None, problems):
        number, _, name = problem.partition(b":")
        raise OSError(int(number), os.strerror(int(number)), os.fsdecode(name))


def _count_workers(count: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores, count // ROWS_PER_WORKER))


def _make_folders(rows: Rows, target: str) -> None:
    for folder in sorted({os.path.dirname(row[0]) for row in rows} - {""}):
        os.makedirs(os.path.join(target, folder), 0o700, exist_ok=True)


def _write_rows(root: str, rows: Rows, target: str, progress: Callable[[], None]) -> None:
    copier = _Copier(progress)
    for number, row in enumerate(rows):
        place = os.path.join(target, row[0])
        if row[1] == "l":
            os.symlink(row[2], place)
        else:
            copier.copy(layout.blob_path(root, row[4]), place, row[2], row[3])
        if number % PROGRESS_EVERY == PROGRESS_EVERY - 1:
            progress()


def _fork_worker(root: str, rows: Rows, target: str) -> Tuple[int, int]:
    """Return the pid and the descriptor of a process that writes these rows and tells what went wrong."""
    read_fd, write_fd = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read_fd)
        os.close(write_fd)
        raise
    if pid == 0:
        words = b"5:the copying process ended early"
        try:
            _write_rows(root, rows, target, lambda: None)
            words = b""
        except OSError as error:
            words = b"%d:%s" % (error.errno or 5, os.fsencode(error.filename or target))
        finally:
            os.write(write_fd, words)
            os._exit(0)
    os.close(write_fd)
    return pid, read_fd


def _end_worker(pid: int) -> None:
    """Kill a worker whose snapshot nobody wants any more, if it has not ended."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _await_worker(worker: Tuple[int, int], progress: Callable[[], None]) -> bytes:
    """Return what a worker had to say: nothing when all of its files are there."""
    pid, fd = worker
    while not select.select([fd], [], [], WAIT_SECONDS)[0]:
        progress()
    words = os.read(fd, 4096)
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    return words or (b"5:the copying process was killed" if status else b"")


def link_folders(target: str, links: Dict[str, str]) -> None:
    """Put links to folders outside the snapshot (data, persist) at their places inside it."""
    for place, source in links.items():
        path = os.path.join(target, place)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        if not os.path.lexists(path):
            os.symlink(source, path)
