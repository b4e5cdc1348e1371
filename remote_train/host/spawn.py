"""Fork the supervisor off the connection: twice, into a session of its own, without a descriptor of ours.

Whatever goes wrong on the way is told to the agent through a pipe, and no half-forked process goes on as a second agent.
"""

from __future__ import annotations

import errno
import os
import select
import sys

from remote_train.host import layout, system
from remote_train.host.detach import leave_connection
from remote_train.host.supervisor import Supervisor

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from remote_train.host.waiting import Turn

LOG_BYTES = 64 * 1024
BREATH_SECONDS = 1.0


class Held:
    """What the supervisor takes over: the attempt's lock, and its ticket for GPUs if it has one."""

    def __init__(self, lock: int, turn: Optional[Turn] = None) -> None:
        self.lock = lock
        self.turn = turn

    def descriptors(self) -> List[int]:
        """Return what has to stay open."""
        return [self.lock] if self.turn is None else [self.lock, self.turn.ticket.fd]

    def let_go(self) -> None:
        """Close our own: a supervisor that was forked holds them on, without one they are free."""
        for fd in self.descriptors():
            os.close(fd)
        self.turn = None

    def give_back(self) -> None:
        """Let go of the ticket of a start that came to nothing, file and all."""
        if self.turn is not None:
            self.turn.ticket.give_back()
            self.turn = None


def fork_supervisor(
    folder: str,
    record: Dict[str, Any],
    environment: Dict[str, str],
    held: Held,
    progress: Callable[[], None],
) -> Optional[str]:
    """Fork twice; return None once the supervisor's attempt.json is written, its last word or raise OSError if it never is."""
    read_fd, write_fd = os.pipe()
    try:
        try:
            child = os.fork()
            if child == 0:
                _fork_again(folder, record, environment, (held, write_fd))
        finally:
            os.close(write_fd)
        os.waitpid(child, 0)
        while not select.select([read_fd], [], [], BREATH_SECONDS)[0]:
            progress()
        word = os.read(read_fd, 4096)
    finally:
        os.close(read_fd)
    number, _, place = word.partition(b" ")
    if number.isdigit():
        raise OSError(int(number), os.strerror(int(number)), os.fsdecode(place))
    return None if word == b"ok" else _read_last_word(folder)


def _read_last_word(folder: str) -> str:
    """Return the last line of supervisor.log, which is removed with a start that failed."""
    try:
        with open(os.path.join(folder, layout.SUPERVISOR_LOG), "rb") as file:
            lines = file.read(LOG_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return "it left no word"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:500] if said else "it left no word"


def _fork_again(
    folder: str, record: Dict[str, Any], environment: Dict[str, str], keep: "tuple[Held, int]"
) -> None:
    """Fork the supervisor in a session of its own; whatever happens, this process never goes on as a second agent."""
    try:
        os.setsid()
        if os.fork() == 0:
            _become_supervisor(folder, record, environment, keep)
    except OSError as error:
        _tell_error(keep[1], error, folder)
    finally:
        os._exit(0)


def _tell_error(fd: int, error: OSError, folder: str) -> None:
    place = error.filename if isinstance(error.filename, str) else folder
    os.write(fd, b"%d " % (error.errno or 0) + os.fsencode(place)[:4000])


def _become_supervisor(
    folder: str, record: Dict[str, Any], environment: Dict[str, str], keep: "tuple[Held, int]"
) -> None:
    code = 1
    try:
        supervisor = _announce_supervisor(folder, record, environment, keep)
        supervisor.run()
        code = 0
    finally:
        try:
            if code:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)


def _announce_supervisor(
    folder: str, record: Dict[str, Any], environment: Dict[str, str], keep: "tuple[Held, int]"
) -> Supervisor:
    """Write attempt.json and tell the agent; when that fails the agent is told why."""
    try:
        _leave_connection(folder, keep)
        system.become_subreaper()
        system.set_process_name("remote-train")
        record["pid"] = os.getpid()
        record["start_time"] = _read_start_time()
        supervisor = Supervisor(folder, record, environment, sys.executable)
        supervisor.turn = keep[0].turn
        supervisor.watch_signals()
        supervisor.announce_first()
    except OSError as error:
        _tell_error(keep[1], error, folder)
        raise
    _tell_started(keep[1])
    return supervisor


def _read_start_time() -> str:
    """Return our own start time; without it nobody could tell us from a later process of this pid."""
    found = system.start_time(os.getpid()) or system.start_time(os.getpid())
    if found is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/proc/self/stat")
    return found


def _tell_started(fd: int) -> None:
    """Tell the agent; if it has died meanwhile, whoever asks again with the token finds the attempt started."""
    try:
        os.write(fd, b"ok")
    except BrokenPipeError:
        return
    finally:
        os.close(fd)


def _leave_connection(folder: str, keep: "tuple[Held, int]") -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    kept = [*keep[0].descriptors(), keep[1]]
    leave_connection(os.open(os.path.join(folder, layout.SUPERVISOR_LOG), flags, 0o600), kept)
