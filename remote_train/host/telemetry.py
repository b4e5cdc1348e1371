"""Telemetry of an attempt: every few seconds a line of what the host's processor, memory and GPUs were doing meanwhile.

A thread of the supervisor's, so that a driver that does not answer holds up nothing, neither a stop nor the end; a mistake
in it costs the rest of the telemetry and nothing else. A line that the disk does not take is left out. Begun after the
last fork without exec: the driver is open in this process only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from remote_train.host import layout
from remote_train.host.cpu_load import CpuLoad, PlainLoad

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Union

    from remote_train.host.gpu_load import GpuLoad

PAUSES = ((60.0, 2.0), (3600.0, 5.0), (86400.0, 15.0))
"""Seconds between two lines, up to so many seconds after the start; LAST_PAUSE later. A week of eight GPUs is 40 MB."""
LAST_PAUSE = 60.0
CLOSE_SECONDS = 1.0
"""How long the end waits for a sample that is being taken."""


def choose_pause(seconds: float) -> float:
    """Return how long to wait for the next line, so many seconds after the start."""
    return next((pause for until, pause in PAUSES if seconds < until), LAST_PAUSE)


class Telemetry:
    """Writes telemetry.jsonl of one attempt from `begin` to `close`."""

    def __init__(self, folder: str, started: float) -> None:
        self._path = os.path.join(folder, layout.TELEMETRY)
        self._started = started
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._torn = False

    def begin(self, child: int, gpus: List[Dict[str, Any]]) -> None:
        """Go on by ourselves from here: `child` is the launcher, `gpus` what the attempt was given."""
        self._thread = threading.Thread(target=self._go, args=(child, gpus), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had: the login's limit
            self._thread = None

    def close(self) -> None:
        """Write no line any more; returns at once, or after CLOSE_SECONDS where a driver does not answer."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        with self._lock:
            self._path = ""

    def _go(self, child: int, gpus: List[Dict[str, Any]]) -> None:
        load = _make_load(child)
        cards = _make_cards(gpus)
        load.sample(time.monotonic())
        pause = PAUSES[0][1]
        while not self._over.wait(pause):
            now = time.monotonic()
            line = make_line(now - self._started, load.sample(now), cards.sample(load.pids) if cards else [])
            self._append(line)
            pause = choose_pause(now - self._started)
        if cards is not None:
            cards.close()

    def _append(self, line: bytes) -> None:
        with self._lock:
            if self._path:
                self._torn = not append_line(self._path, line, torn=self._torn)


def make_line(seconds: float, sample: Dict[str, Any], gpus: List[Dict[str, Any]]) -> bytes:
    """Return one line of telemetry.jsonl."""
    line = {"kind": "sample", "time": round(seconds, 3)}
    line.update(sample, gpus=gpus)
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def append_line(path: str, line: bytes, *, torn: bool) -> bool:
    """Append a line, one that was cut short before it ended first; tell whether the file ends with a whole line now."""
    data = b"\n" + line if torn else line
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return not torn
    try:
        written = os.write(fd, data)
    except OSError:
        return not torn
    finally:
        os.close(fd)
    return written == len(data)


def _make_load(child: int) -> Union[CpuLoad, PlainLoad]:
    if os.environ.get("REMOTE_TRAIN_SYSTEM") == "posix" or sys.platform != "linux":
        return PlainLoad(child)
    return CpuLoad(child, own=os.getpid())


def _make_cards(gpus: List[Dict[str, Any]]) -> Optional[GpuLoad]:
    if not gpus:
        return None
    from remote_train.host.gpu_load import GpuLoad  # noqa: PLC0415  (ctypes structures: only a CUDA run pays)

    return GpuLoad(gpus)
