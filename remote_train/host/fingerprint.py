"""What a remembered set of facts rests on, as one short hash: the hot path of a conditional start.

Stats and two small reads; nothing heavy is imported and no process is started.
"""

from __future__ import annotations

import hashlib
import json
import os

from remote_train.host import system

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_HW_SUBSET",
)
"""Variables with which a user says how many threads there are, or where they run."""

GPUS = "CUDA_VISIBLE_DEVICES"
"""The one with which a user, or who set up the login, says which GPUs are theirs."""
GPUS_BYTES = 16 * 1024
"""What a laptop takes of it: 16 GPUs, each of seven parts (MIG) that are named by UUID, are 4,600 bytes."""

_DRIVER = "proc/driver/nvidia"


def fingerprint(python: Dict[str, Any]) -> str:
    """Return the fingerprint of this host with the `python` object of its facts."""
    return fingerprint_now(python["path"], python.get("torch_file"))


def fingerprint_now(python_path: str, torch_version_file: Optional[str], root: str = "/") -> str:
    """Return a hash that changes when facts may have: NVIDIA's driver and cards are looked for below `root`.

    It changes with a reboot, another interpreter or torch behind these paths, another driver, other GPUs, and with the
    CPUs and threads that this process was given.
    """
    parts: List[Any] = [system.boot_id(), python_path, _stamp(python_path), torch_version_file]
    parts.append(_stamp(torch_version_file) if torch_version_file else None)
    parts.append(_read_line(os.path.join(root, _DRIVER, "version")))
    # The names are the cards' bus addresses; their contents change while the driver wakes up.
    parts.append(_list_names(os.path.join(root, _DRIVER, "gpus")))
    parts.append(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
    parts.append({name: os.environ.get(name) for name in (*THREADS, GPUS)})
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def read_thread_words() -> Dict[str, str]:
    """Return what the login's environment says about threads, whose first 64 characters are enough here, and about GPUs."""
    words = {name: os.environ[name][:64] for name in THREADS if name in os.environ}
    if GPUS in os.environ:
        words[GPUS] = os.environ[GPUS][:GPUS_BYTES]
    return words


def _stamp(path: str) -> Optional[List[int]]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline()
    except OSError:
        return ""


def _list_names(path: str) -> List[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
