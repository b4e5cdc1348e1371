"""Measured matrix product peaks, kept in the state root: a peak is measured once per device, threads and torch."""

from __future__ import annotations

import hashlib
import json
import os
import time

from remote_train.host import layout
from remote_train.host.durable import read_record, write_record

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Sequence


def peak_key(name: str, threads: int, torch: str, device: str, cpus: Sequence[int] = ()) -> str:
    """Return the key of a peak: processor or GPU model, threads, torch version, device kind (cpu, cuda), CPUs bound to."""
    parts = [name, threads, torch, device, *([list(cpus)] if cpus else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def read_peak(state_root: str, key: str) -> Optional[Dict[str, Any]]:
    """Return a measured peak, or None when there is none that can be read."""
    return read_record(_path(state_root, key))


def write_peak(state_root: str, key: str, peak: Dict[str, Any]) -> None:
    """Keep a peak; a reader sees it whole or not at all."""
    path = _path(state_root, key)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    write_record(path, peak)


def _path(state_root: str, key: str) -> str:
    return os.path.join(state_root, layout.PEAKS, key + ".json")


def make_peak_key(wanted: Dict[str, Any]) -> str:
    """Return the key of the peak that a plan asks for."""
    return peak_key(
        wanted["name"], wanted["threads"], wanted["torch"], wanted["device"], wanted.get("cpus", ())
    )


def recall_peak(root: str, wanted: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """Return the peak that a plan asks for, if it was measured before."""
    peak = read_peak(root, make_peak_key(wanted)) if wanted else None
    return None if peak is None or time.time() > peak.get("until", float("inf")) else peak
