"""The facts of this host, in the shape that the laptop reads."""

import json
import os
import sys
import time
from typing import Any, Dict, Sequence

from remote_train.host import gpus, system
from remote_train.host.adapters_read import read_adapters
from remote_train.host.commands import (
    ABOVE,
    Command,
    Outcome,
    find_marked,
    finish_commands,
    start_command,
)
from remote_train.host.cpu import read_cpu
from remote_train.host.fingerprint import fingerprint, fingerprint_now, read_thread_words
from remote_train.host.pythons import (
    START_SECONDS,
    choose_python,
    finish_candidates,
    search_pythons,
    start_candidates,
)

__all__ = [
    "collect_facts",
    "fingerprint",
    "fingerprint_now",
    "parse_gpus",
    "search_pythons",
    "start_gpu_reader",
]

_DEFAULT_PYTHONS = ("python3", "python")
_GPU_READER = "import sys; sys.path.insert(0, sys.argv[1]); from remote_train.host.gpus import main; main()"


def collect_facts(pythons: Sequence[str], state_root: str) -> Dict[str, Any]:
    """Return the facts of this host; `pythons` are candidates for the training's Python, best first.

    The candidates and the GPU reader run beside each other, 20 s at most.
    """
    candidates = list(pythons) or list(_DEFAULT_PYTHONS)
    running = start_candidates(candidates)
    missing = gpus.missing_driver()
    if missing is None:
        running.append(start_gpu_reader(units=True))
    facts = _read_machine(state_root)
    outcomes = finish_commands(running, START_SECONDS)
    facts["pythons"] = finish_candidates(candidates, outcomes)
    facts["python"] = choose_python(facts["pythons"])
    facts.update(_no_gpus(missing) if missing is not None else parse_gpus(outcomes[-1]))
    facts["fingerprint"] = fingerprint(facts["python"])
    return facts


def _read_machine(state_root: str) -> Dict[str, Any]:
    name = os.uname()
    return {
        "os": name.sysname,
        "kernel": name.release,
        "machine": name.machine,
        "hostname": name.nodename,
        "boot_id": system.boot_id(),
        "cpu": read_cpu(),
        "adapters": read_adapters(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "disk_free_bytes": _disk_free(os.path.abspath(os.path.expanduser(state_root))),
        "thread_env": read_thread_words(),
        "now": time.time(),
    }


def _disk_free(path: str) -> int:
    """Return what this user may still write where the folder is, or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def start_gpu_reader(*, units: bool = False) -> Command:
    """Ask the driver in another process: it can hang or crash, and CUDA, for compute `units`, would stay in our memory."""
    env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    light = [] if units else ["light"]
    return start_command([sys.executable, "-I", "-S", "-c", _GPU_READER, ABOVE, *light], env)


def _no_gpus(why: str) -> Dict[str, Any]:
    return {"gpus": [], "driver": None, "driver_cuda": None, "gpu_error": why}


def parse_gpus(outcome: Outcome) -> Dict[str, Any]:
    """Return `gpus`, `driver` and `gpu_error` from what that process printed."""
    answer = find_marked(outcome.output, gpus.MARKER)
    if answer is None:
        return _no_gpus("the NVIDIA driver did not answer: %s" % (outcome.problem or "no output"))
    found: Dict[str, Any] = json.loads(answer)
    return found
