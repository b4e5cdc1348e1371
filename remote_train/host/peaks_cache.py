"""Measured matrix product peaks, kept in the state root: a peak is measured once per device, threads and torch."""

import hashlib
import json
import os
from typing import Any, Dict, Optional

from remote_train.host import layout, matmul_peak
from remote_train.host.commands import find_marked, finish_commands, start_command
from remote_train.host.durable import read_record, write_record

MEASURE_SECONDS = 60.0
_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16", "tf32", "float32")}


def peak_key(name: str, threads: int, torch: str, device: str) -> str:
    """Return the key of a peak: processor or GPU model, threads, torch version, device kind (cpu, cuda)."""
    return hashlib.sha256(json.dumps([name, threads, torch, device]).encode()).hexdigest()[:32]


def read_peak(state_root: str, key: str) -> Optional[Dict[str, Any]]:
    """Return a measured peak, or None when there is none that can be read."""
    return read_record(_path(state_root, key))


def write_peak(state_root: str, key: str, peak: Dict[str, Any]) -> None:
    """Keep a peak; a reader sees it whole or not at all."""
    path = _path(state_root, key)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    write_record(path, peak)


def measure_peak(python: str, device: str, threads: int, env: Dict[str, str]) -> Dict[str, Any]:
    """Return FLOP/s by dtype as `matmul_peak` prints them, or {"error": words}; takes up to 60 s.

    `env` is the training's environment, so that its thread settings and libraries count.
    """
    dtypes = _DTYPES.get(device.partition(":")[0])
    if dtypes is None:
        return {"error": "there is no peak to measure on a device named %s" % device}
    # Our code may lie in an archive, so the script travels as text.
    source = matmul_peak.__loader__.get_source(matmul_peak.__name__)  # type: ignore[union-attr]
    command = start_command([python, "-c", source, device, str(threads), *dtypes], env)
    outcome = finish_commands([command], MEASURE_SECONDS)[0]
    answer = find_marked(outcome.output, matmul_peak.MARKER)
    if answer is None:
        return {"error": outcome.problem or "it printed no measurement"}
    peak: Dict[str, Any] = json.loads(answer)
    return peak


def _path(state_root: str, key: str) -> str:
    return os.path.join(state_root, layout.PEAKS, key + ".json")
