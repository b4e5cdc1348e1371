"""The clock of an attempt: when its outputs had which size, and from when to when a disk may have swallowed some of them.

A training writes its output itself: what it could not write, nobody sees. So the supervisor looks at the disk with
every tick. A gap reaches from the last look at which all was well to the next one, with the outputs' sizes at both.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import time

from remote_train.host import disk, layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

LOSING = (*disk.FAILING, errno.EFBIG)
MOST_GAPS = 100
PROBE_SECONDS = 5.0
"""Between two looks at a disk that is nearly full, which root may have used as its own for years."""


class Clock:
    """What the supervisor notes while the training runs; `gaps` go into the exit record too."""

    def __init__(self, folder: str, started: float) -> None:
        self.gaps: List[Dict[str, Any]] = []
        self._folder = folder
        self._started = started
        self._sizes: Dict[str, int] = {}
        self._well: Optional[Dict[str, Any]] = None
        self._gap: Optional[Dict[str, Any]] = None
        self._untold: List[Dict[str, Any]] = []
        self._torn = False
        self._next_look = 0.0

    def note(self) -> None:
        """Append (monotonic, wall, size of each output) if they grew, and look at the disk; never raises for it."""
        try:
            sizes = self._read_sizes()
            moment = self._make_moment(sizes)
            if sizes != self._sizes:
                self._append(moment)
                self._sizes = sizes
            trouble = errno.EFBIG if self._is_limited(sizes) else self._look(moment["mono"])
        except OSError as error:
            self.fail(error)
            return
        if trouble:
            self.fail(OSError(trouble, os.strerror(trouble)))
        else:
            self._be_well(moment)

    def _is_limited(self, sizes: Dict[str, int]) -> bool:
        """Tell whether an output has the most bytes that the login's `ulimit -f` lets a file have."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return limit != resource.RLIM_INFINITY and any(size >= limit for size in sizes.values())

    def _look(self, now: float) -> int:
        """Return ENOSPC if the disk is full, else 0; one that is nearly so is asked by a write, which is not done at every tick."""
        if self._lacks_reserve():
            return errno.ENOSPC
        if self._gap is None and now < self._next_look:
            return 0
        full = disk.is_full(self._folder)
        nearly = not full and disk.free_bytes(self._folder) < disk.LOW_BYTES
        self._next_look = now + PROBE_SECONDS if nearly else now
        return errno.ENOSPC if full else 0

    def _lacks_reserve(self) -> bool:
        """Tell whether somebody took the space held for a stop, as on a full disk; hold it anew, or raise OSError."""
        if os.path.exists(os.path.join(self._folder, layout.RESERVE)):
            return False
        disk.keep_reserve(self._folder)
        return True

    def fail(self, error: OSError) -> None:
        """Take notice of a write that the disk did not take, and give the training what is held back for it.

        Other errors (a system out of descriptors) lose nothing of an output.
        """
        if error.errno not in LOSING:
            return
        if self._gap is None:
            self._gap = self._open_gap(errno.errorcode.get(error.errno or 0, "EIO"))
        disk.drop_large_reserve(self._folder)

    def _open_gap(self, reason: str) -> Dict[str, Any]:
        if len(self.gaps) >= MOST_GAPS:  # a disk that is full over and over: the last one grows
            self.gaps[-1]["end"] = None
            return self.gaps[-1]
        gap = {"reason": reason, "begin": self._well or self._make_moment(self._sizes), "end": None}
        self.gaps.append(gap)
        return gap

    def _be_well(self, moment: Dict[str, Any]) -> None:
        self._well = moment
        if self._gap is not None:
            self._gap["end"] = moment
            self._untold.append(self._gap)
            self._gap = None
            disk.keep_large_reserve(self._folder)
        try:
            while self._untold:
                self._append({"gap": self._untold[0]})
                del self._untold[0]
        except OSError as error:
            self.fail(error)

    def _make_moment(self, sizes: Dict[str, int]) -> Dict[str, Any]:
        return {"mono": time.monotonic() - self._started, "wall": time.time(), "sizes": sizes}

    def _read_sizes(self) -> Dict[str, int]:
        ranks = os.path.join(self._folder, layout.RANKS)
        names = [name for name in os.listdir(ranks) if name.endswith(".log")]
        return {name[:-4]: os.stat(os.path.join(ranks, name)).st_size for name in names}

    def _append(self, line: Dict[str, Any]) -> None:
        """Append a line; one that was cut short before is ended first, so that it costs no other."""
        data = json.dumps(line).encode("ascii") + b"\n"
        data = b"\n" + data if self._torn else data
        path = os.path.join(self._folder, layout.CLOCK)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        self._torn = 0 < written < len(data) or (self._torn and not written)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
