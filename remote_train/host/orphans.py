"""Stop a run whose supervisor was killed: a process of our own takes the supervisor's place for that.

It holds the attempt's lock, so that there is one, and puts its own identity into attempt.json: the run is supervised
again, and stopping. It outlives the connection that asked for it, and writes the exit record that nobody else will, for
what it did itself is known: the run was stopped. How it would have ended is not.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from remote_train.host import layout, locks, system
from remote_train.host.detach import leave_connection
from remote_train.host.durable import write_record
from remote_train.host.ends import make_outcome, measure_others, sync_outputs
from remote_train.host.stopping import SWEEP_SECONDS, Grace, await_gpus

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

ADOPT_SECONDS = 5.0
PAUSE_SECONDS = 0.1
RECORD_SECONDS = 60.0
"""How long to go on trying to write the exit record on a disk that is full."""


def spawn(folder: str, record: Dict[str, Any]) -> None:
    """End the run in a process of its own, and return once that is in its place; nothing when there is one already."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become(folder, record, write_fd)
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(child, 0)
    select.select([read_fd], [], [], ADOPT_SECONDS)
    os.close(read_fd)


def _become(folder: str, record: Dict[str, Any], place: int) -> None:
    try:
        lock = locks.open_lock(os.path.join(folder, layout.LOCK))
        log = os.path.join(folder, layout.SUPERVISOR_LOG)
        leave_connection(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), [lock, place])
        # Who asks again for a stop signals a supervisor: this one looks at the file.
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        system.set_process_name("remote-train")
        if locks.try_lock(lock):
            _adopt(folder, record)
            os.close(place)
            end(folder, record)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(0)


def _adopt(folder: str, record: Dict[str, Any]) -> None:
    start = system.start_time(os.getpid())
    if start is None:  # without it nobody could tell us from a later process of this pid
        return
    record.update(pid=os.getpid(), start_time=start, adopted=True)
    try:
        write_record(os.path.join(folder, layout.ATTEMPT), record)
    except (
        OSError
    ) as error:  # a full disk: it is stopped all the same, and looks unsupervised until it has ended
        sys.stderr.write("%s\n" % error)


def end(folder: str, record: Dict[str, Any]) -> None:
    """TERM, the grace, KILL of all that is marked, and the exit record; nothing when all had ended by itself."""
    marked = system.marked_processes(record["cookie"])
    if not marked:
        return
    if not os.path.exists(os.path.join(folder, layout.POLLED)):
        _terminate(marked)
    grace = Grace(folder)
    while system.marked_processes(record["cookie"]) and not grace.is_over():
        time.sleep(PAUSE_SECONDS)
    survivors = system.sweep(None, record["cookie"], SWEEP_SECONDS)
    problems: List[OSError] = []
    outcome = make_outcome(folder, None, record["plan"]["launcher"])
    outcome.update(
        launcher=record["plan"]["launcher"],
        run=record["run"],
        attempt=record["attempt"],
        stopped=True,
        unsupervised=True,
        outputs=sync_outputs(folder, problems.append),
        others=measure_others(folder),
        survivors=survivors,
        gpu_held=await_gpus(record),
        ended=time.time(),
    )
    _write(folder, outcome)


def _terminate(marked: List[int]) -> None:
    """Send TERM to the topmost of these: torchrun passes it on, a training may save."""
    table = system.read_table()
    for pid in marked:
        process = table.get(pid)
        if process is not None and process.parent not in marked:
            system.kill_process(pid, process.start, signal.SIGTERM)


def _write(folder: str, outcome: Dict[str, Any]) -> None:
    deadline = time.monotonic() + RECORD_SECONDS
    error = _try_write(folder, outcome)
    while error is not None:
        if time.monotonic() > deadline:
            raise error
        time.sleep(1.0)
        error = _try_write(folder, outcome)


def _try_write(folder: str, outcome: Dict[str, Any]) -> Optional[OSError]:
    try:
        write_record(os.path.join(folder, layout.EXIT), outcome)
    except OSError as error:
        return error
    return None
