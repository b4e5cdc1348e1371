"""Whether the GPUs of an attempt are free again once its processes are gone: a driver can hold a dead one's memory.

Asked in a process of its own, since a broken driver may not answer. In a container the driver's pids may be those of
the machine outside; then nothing is found held, which is no proof.
"""

from __future__ import annotations

import time

from remote_train.host.commands import finish_commands
from remote_train.host.facts import parse_gpus, start_gpu_reader
from remote_train.host.nvml import exists

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

READER_SECONDS = 10.0
PAUSE_SECONDS = 0.5


def await_release(before: List[Dict[str, Any]], seconds: float) -> Optional[List[Dict[str, Any]]]:
    """Return what is still held on these GPUs after `seconds` at the most: index, pid and memory_bytes of each process.

    `before` are the GPUs as they were when the attempt was given them. A process counts that computes there, did not
    then, and does not exist any more: a live one is somebody else's. None when the driver does not answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        held = _find_held(before)
        if not held or time.monotonic() >= deadline:
            return held
        time.sleep(PAUSE_SECONDS)


def _find_held(before: List[Dict[str, Any]]) -> Optional[List[Dict[str, Any]]]:
    known = {gpu["uuid"]: {process["pid"] for process in gpu.get("processes") or []} for gpu in before}
    answer = parse_gpus(finish_commands([start_gpu_reader()], READER_SECONDS)[0])
    if not {gpu["uuid"] for gpu in answer["gpus"]} >= set(known):
        return None
    return [
        {"index": gpu["index"], "pid": process["pid"], "memory_bytes": process["memory_bytes"]}
        for gpu in answer["gpus"]
        if gpu["uuid"] in known
        for process in gpu["processes"]
        if process["compute"] and process["pid"] not in known[gpu["uuid"]] and not exists(process["pid"])
    ]
