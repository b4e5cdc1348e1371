"""Our own processes beside a training: which they are, and what they have used so far."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def read_cpu(pid: int) -> float:
    """Return the CPU seconds of a process's threads so far, to the nanosecond; 0 for one that is gone."""
    seconds = 0.0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            seconds += int(path.read_text().split()[0]) / 1e9
    return seconds


def read_resident(pid: int) -> float:
    """Return a process's resident memory in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def list_children(pid: int) -> list[int]:
    """Return the processes that this one has started and that still run."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in found for word in path.read_text().split()]


def find_ours(client: int, home: Path) -> dict[str, int]:
    """Return the pids of the agent, the supervisor and the first rank's shim, as far as there are any."""
    (record,) = home.glob(".local/state/remote-train/runs/*/attempts/1/attempt.json")
    attempt = json.loads(record.read_text())
    found = {"supervisor": int(attempt["pid"])}
    agents = [
        pid for pid in list_children(client) if b"binascii" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    found |= {"agent": agents[0]} if agents else {}
    if attempt["plan"]["launcher"] == "torchrun":
        shims = [
            pid
            for pid in list_children(int(attempt["child"]))
            if b"rank.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        found |= {"shim": shims[0]} if shims else {}
    return found
