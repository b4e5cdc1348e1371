"""End an attempt before it ends by itself: because somebody asked, or because a rank failed and others do not go.

A stop is one grace. TERM goes to the launcher at once, unless the training has asked `report.should_stop()`: then
the stop file alone is its sign, and TERM, which would end its DataLoader workers first, is not sent. What is left when the
grace is over is killed, until a full scan finds nothing. The launcher goes last, so that its end is ours to see.
"""

from __future__ import annotations

import os
import signal
import time

from remote_train.host import ends, layout, system
from remote_train.host.durable import read_record

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

DEFAULT_GRACE = 30.0
SWEEP_SECONDS = 10.0
AGAIN_SECONDS = 0.2
DEAF_SECONDS = 30.0
"""How long other ranks may go on after one has failed, then they are taken to hang; REMOTE_TRAIN_DEAF_SECONDS overrides it."""

SHUT_DOWN = "the host told it to end (SIGTERM), as at a shutdown, while it waited for its GPUs"


class Grace:
    """How long a stop still gives a training, by the stop file; asked again, it can only become shorter."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, layout.STOP)
        self._asked: Optional[float] = None
        self._deadline: Optional[float] = None

    def is_over(self) -> bool:
        """Read the stop file and tell whether the time is up; the first call lets it begin."""
        now = time.monotonic()
        request = read_record(self._path) or {}
        deadline = now + float(request.get("grace", DEFAULT_GRACE))
        if self._deadline is None:
            self._deadline, self._asked = deadline, request.get("asked")
        elif request.get("asked") != self._asked:
            self._deadline, self._asked = min(self._deadline, deadline), request.get("asked")
        return now >= self._deadline

    def prolong(self, seconds: float) -> None:
        """Have the time be up again in so many seconds: what was killed is looked at once more then."""
        self._deadline = time.monotonic() + seconds


class Stopping:
    """What the supervisor of one attempt does about stop requests and deaf ranks; asked once a tick."""

    def __init__(self, folder: str, cookie: str) -> None:
        self._folder = folder
        self._cookie = cookie
        self._family = system.Family(os.getpid())
        self._grace = Grace(folder)
        self._failed: Optional[float] = None
        self._ends_size = 0
        self.stopped = False
        self.terminated = False
        """The supervisor itself was told to end by SIGTERM: a host that shuts down, or a full disk without a stop file."""

    def is_asked(self) -> bool:
        """Tell whether the attempt should end."""
        return self.terminated or self.has_request()

    def has_request(self) -> bool:
        """Tell whether somebody has left word that it should."""
        return os.path.exists(os.path.join(self._folder, layout.STOP))

    def explain_shutdown(self) -> Optional[OSError]:
        """Return why a run ends that waited for GPUs, where nobody has left word: its user did not ask for that."""
        return None if self.has_request() else OSError(SHUT_DOWN)

    def look(self, child: int) -> None:
        """Do what is due now, given the launcher's pid."""
        self._family.observe()
        if self.is_asked():
            self._go_on(child)
        else:
            self._end_deaf_ranks(child)

    def note_end(self) -> None:
        """Note, once the launcher has ended, whether it was for a stop that the training saw before we did."""
        self.stopped = self.stopped or (self._has_asked() and self.is_asked())

    def sweep(self) -> "list[int]":
        """Kill everything of the attempt; return who is left after 10 s.

        A system that is out of descriptors shows nobody its processes: it is asked again until it does.
        """
        left = self._try_sweep()
        while left is None:
            time.sleep(AGAIN_SECONDS)
            left = self._try_sweep()
        return left

    def _try_sweep(self) -> "Optional[list[int]]":
        try:
            return self._family.sweep(self._cookie, SWEEP_SECONDS)
        except OSError:
            return None

    def _go_on(self, child: int) -> None:
        over = self._grace.is_over()
        if not self.stopped:
            self.stopped = True
            if not self._has_asked():
                os.kill(child, signal.SIGTERM)
        elif over:
            self._grace.prolong(SWEEP_SECONDS)
            self._family.sweep(self._cookie, SWEEP_SECONDS, keep=child)
            os.kill(child, signal.SIGKILL)

    def _has_asked(self) -> bool:
        return os.path.exists(os.path.join(self._folder, layout.POLLED))

    def _end_deaf_ranks(self, child: int) -> None:
        """Kill what is left of a round in which a rank failed long ago; torchrun then ends, or starts the next round."""
        if not self._has_failed_rank():
            self._failed = None
            return
        now = time.monotonic()
        if self._failed is None:
            self._failed = now + float(os.environ.get("REMOTE_TRAIN_DEAF_SECONDS", DEAF_SECONDS))
        elif now >= self._failed:
            self._failed = None
            self._family.sweep(self._cookie, SWEEP_SECONDS, keep=child)

    def _has_failed_rank(self) -> bool:
        path = os.path.join(self._folder, layout.RANKS, layout.RANK_ENDS)
        try:
            size = os.stat(path).st_size
        except OSError:
            return False
        if size == self._ends_size:
            return self._failed is not None
        self._ends_size = size
        return ends.has_failure(self._folder)


def await_gpus(record: Dict[str, Any]) -> Optional[List[Dict[str, Any]]]:
    """Return what is still held on the attempt's GPUs once its processes are gone, None when the driver does not say."""
    if not record.get("gpus"):
        return []
    from remote_train.host import gpu_release  # noqa: PLC0415  (ctypes and subprocess: only a CUDA run pays)

    return gpu_release.await_release(record["gpus"], SWEEP_SECONDS)
