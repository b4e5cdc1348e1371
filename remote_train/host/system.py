"""Every question to the operating system about processes: who lives, who belongs to a run, make them go.

One interface, two halves, chosen once: system_linux (/proc, prctl, pidfd) or system_posix (ps; macOS).
REMOTE_TRAIN_SYSTEM=posix forces the second, so that CI runs both on one machine. A process is named by
(boot id, pid, start time): pids are used again. A zombie counts as gone; its parent still has to reap it.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from remote_train.host import layout
from remote_train.host.process_table import Table, walk_down

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Set, Tuple

if os.environ.get("REMOTE_TRAIN_SYSTEM") == "posix" or sys.platform != "linux":
    from remote_train.host.system_posix import (
        ORPHANS_RETURN,
        become_subreaper,
        kill_process,
        read_boot_id,
        read_process,
        read_table,
        set_process_name,
    )
    from remote_train.host.system_posix import marked_processes as _processes_with
else:
    from remote_train.host.system_linux import (
        ORPHANS_RETURN,
        become_subreaper,
        kill_process,
        read_boot_id,
        read_process,
        read_table,
        set_process_name,
    )
    from remote_train.host.system_linux import marked_processes as _processes_with

__all__ = [
    "Family",
    "become_subreaper",
    "boot_id",
    "descendants",
    "is_alive",
    "is_zombie",
    "kill_process",
    "marked_processes",
    "read_table",
    "set_process_name",
    "start_time",
    "sweep",
]

# Between two observations on POSIX: short while the family changes, then longer. A ps takes 5 to 10 ms, so
# one every 8 s is 0.1 % of a core.
_SHORTEST_PAUSE = 0.4
_LONGEST_PAUSE = 8.0
_SWEEP_PAUSE = 0.005


def boot_id() -> str:
    """Return the name of this boot, "unknown" where the system gives none; REMOTE_TRAIN_BOOT_ID_FILE overrides it."""
    override = os.environ.get("REMOTE_TRAIN_BOOT_ID_FILE")
    try:
        if override:
            with open(override, encoding="ascii") as file:
                return file.read().strip()
        return read_boot_id() or "unknown"
    except OSError:
        return "unknown"


def start_time(pid: int) -> Optional[str]:
    """Return when the process started, as opaque text; None when it is gone or a zombie."""
    process = read_process(pid)
    return None if process is None or process.zombie else process.start


def is_alive(pid: int, start: str) -> bool:
    """Tell whether the process that had this pid and start time still runs."""
    return start_time(pid) == start


def is_zombie(pid: int) -> bool:
    """Tell whether the process has ended and waits for its parent."""
    process = read_process(pid)
    return process is not None and process.zombie


def descendants(pid: int) -> List[int]:
    """Return the living descendants of a process, lowest first."""
    return sorted(_living(read_table(), [pid], {pid}))


def marked_processes(cookie: str) -> List[int]:
    """Return the processes of our user that were started with this run's cookie, without ourselves."""
    return _processes_with("%s=%s" % (layout.COOKIE, cookie))


def sweep(root_pid: Optional[int], cookie: str, seconds: float, *, reap_all: bool = False) -> List[int]:
    """Kill the descendants of `root_pid` and all that carries the cookie; see `Family.sweep`."""
    return Family(root_pid).sweep(cookie, seconds, reap_all=reap_all)


class Family:
    """The processes one supervisor answers for, orphans among them.

    On Linux the kernel hands orphans to the supervisor (`become_subreaper`) and nothing is remembered. Elsewhere
    `observe`, called with every tick, notes pids and process groups while their parents still live: an orphan is
    then known by itself, or by its group. Make it where it is used: groups are compared with our own.
    """

    def __init__(self, root_pid: Optional[int]) -> None:
        self.root_pid = root_pid
        self._seen: Dict[int, str] = {}
        self._groups: Set[int] = set()
        self._pause = _SHORTEST_PAUSE
        self._next = 0.0

    def observe(self) -> None:
        """Note who belongs to us; cheap enough for every tick, and nothing at all on Linux."""
        if ORPHANS_RETURN or time.monotonic() < self._next:
            return
        before = self._seen
        self._recall(read_table())
        self._pause = min(self._pause * 2, _LONGEST_PAUSE) if self._seen == before else _SHORTEST_PAUSE
        self._next = time.monotonic() + self._pause

    def members(self, cookie: Optional[str] = None) -> Dict[int, str]:
        """Return the living as {pid: start time}: descendants, remembered ones, and those with the cookie.

        Neither the root nor the calling process is ever among them.
        """
        return self._look(cookie)[1]

    def sweep(
        self, cookie: str, seconds: float, *, keep: Optional[int] = None, reap_all: bool = False
    ) -> List[int]:
        """SIGKILL every member but `keep` until a full scan finds none or `seconds` are over; return who is left.

        Ended children of ours that it killed are reaped, so a Popen object would find its child gone; with
        `reap_all` (only for a subreaper that waits for nobody else) every ended child is.
        """
        deadline = time.monotonic() + seconds
        killed: Set[int] = set()
        while True:
            table, alive = self._look(cookie)
            if keep is not None:
                alive.pop(keep, None)
            _reap([-1] if reap_all else killed)
            if not alive or (killed and time.monotonic() >= deadline):
                return sorted(alive)
            _kill(table, alive, killed)
            killed.update(alive)
            time.sleep(_SWEEP_PAUSE)

    def _look(self, cookie: Optional[str]) -> Tuple[Table, Dict[int, str]]:
        table = read_table()
        found = self._recall(table)
        for pid in marked_processes(cookie) if cookie else ():
            process = table.get(pid) or read_process(pid)
            if pid != self.root_pid and process is not None and not process.zombie:
                found[pid] = process.start
        return table, found

    def _recall(self, table: Table) -> Dict[int, str]:
        """Return the members in this picture, and remember them and their process groups."""
        ours = {os.getpid()} if self.root_pid is None else {os.getpid(), self.root_pid}
        roots = [] if self.root_pid is None else [self.root_pid]
        roots += [pid for pid, start in self._seen.items() if pid in table and table[pid].start == start]
        roots += [process.pid for process in table.values() if process.group in self._groups]
        found = _living(table, roots, ours)
        if not ORPHANS_RETURN:
            self._seen = found
            # Our own group may hold strangers: whoever started us from a shell.
            own = {table[pid].group for pid in ours if pid in table}
            self._groups = {table[pid].group for pid in found} - own
        return dict(found)


def _living(table: Table, roots: Iterable[int], without: Set[int]) -> Dict[int, str]:
    found = walk_down(table, roots) - without
    return {pid: table[pid].start for pid in found if pid in table and not table[pid].zombie}


def _kill(table: Table, alive: Dict[int, str], killed: Set[int]) -> None:
    """Kill process groups that hold members only, and one by one who is in no such group or outlived its killing.

    A group goes at once, before any of it can fork: a process that forks and ends all the time never has a pid
    for long, but it keeps its group.
    """
    strangers = {
        process.group for process in table.values() if process.pid not in alive and not process.zombie
    }
    groups = {table[pid].group for pid in alive if pid in table} - strangers - {0, 1, os.getpgrp()}
    for group in groups:
        _kill_group(group)
    for pid, start in alive.items():
        if pid in killed or pid not in table or table[pid].group not in groups:
            kill_process(pid, start, signal.SIGKILL)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # gone since the last picture, or not ours to signal: the next scan shows what is left


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        while _reap_one(pid) and pid == -1:
            pass


def _reap_one(pid: int) -> bool:
    """Collect a child of ours that has ended, any child for -1; False when there is none."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False
