"""What `bench` asks of a host: the peak of its device, and a small GPT trained for a few seconds, one request each.

Children read to the end of their stdin, which is ours: when the laptop goes away they end with us, and nothing trains on.
What was measured of the device is kept as the peak that later runs divide by.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time

from remote_train.host import layout, peaks_cache
from remote_train.host.affinity import choose_sets, work_bound
from remote_train.host.bench_gpt import MARKER
from remote_train.host.commands import find_marked, run_script
from remote_train.host.launcher import inject, make_environment
from remote_train.host.matmul_peak import MARKER as PEAK_MARKER
from remote_train.host.peak_probe import DTYPES
from remote_train.host.start import Refusal
from remote_train.host.supervisor import BUSY_LOAD, BUSY_SECONDS

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    from remote_train.host.operations import Operations

STARTING_SECONDS = 200.0
"""What importing torch and the first steps may take on a slow machine."""
METER_BYTES = 48 * 1024


def bench(operations: Operations, request: Dict[str, Any]) -> None:
    """Answer with the device and its measured peak (`what` is peak), or with the figures of one model (train)."""
    plan, job, root = request["plan"], dict(request["job"], what=str(request["what"])), operations.root
    if job["what"] == "peak":
        operations.aside(request["id"], lambda: measure_peak(root, plan))
    else:
        operations.aside(request["id"], lambda: train_model(root, plan, job))


def measure_peak(root: str, plan: Dict[str, Any]) -> Dict[str, Any]:
    """Measure a free GPU, or the CPU, and keep that; raise Refusal."""
    device, threads = str(plan["device"]), int(plan["cpu"]["threads"])
    load = os.getloadavg()[0]
    job = {"what": "peak", "device": device, "threads": threads, "dtypes": DTYPES[device]}
    with _hold_gpu(root, plan) as gpu:
        words = _run(job, plan, gpu, None, PEAK_MARKER)
    peak: Dict[str, Any] = json.loads(words)
    busy = device == "cpu" and load > BUSY_LOAD * threads
    if busy:
        peak.update(busy=True, until=time.time() + BUSY_SECONDS)
    wanted = {"device": device, "threads": threads, "torch": plan["torch"]}
    wanted["name"] = gpu["name"] if gpu is not None else plan["cpu"]["model"]
    wanted["cpus"] = sorted(cpu for part in plan.get("affinity") or [] for cpu in part)
    if not busy or peaks_cache.recall_peak(root, wanted) is None:  # one of a machine at rest is better
        peaks_cache.write_peak(root, peaks_cache.make_peak_key(wanted), peak)
    return {"peak": peak, "gpu": gpu, "load": load}


@contextlib.contextmanager
def _hold_gpu(root: str, plan: Dict[str, Any]) -> Iterator[Optional[Dict[str, Any]]]:
    """Have a free GPU of those that the plan asks for, with all that is known of it, to ourselves; None for a CPU.

    Beside somebody else's work the figures would be of what that leaves, and slow it. Raises Refusal.
    """
    if plan["device"] != "cuda":
        yield None
        return
    from remote_train.host import waiting  # noqa: PLC0415  (ctypes: only CUDA pays for it)

    # An attempt 0 is nobody's: should this process die, nothing of its ticket counts.
    wish = {"run": "bench", "attempt": 0, "plan": plan, "on_busy": "fail"}
    try:
        turn = waiting.take_ticket(root, wish)
    except waiting.GpusUnfit as error:
        raise Refusal("host-unfit", str(error)) from None
    except waiting.GpusBusy as error:
        raise Refusal("host-busy", "a benchmark is for a GPU that is free: %s" % error) from None
    try:
        yield {key: value for key, value in turn.gpus[0].items() if key != "processes"}
    finally:
        turn.ticket.give_back()


def train_model(root: str, plan: Dict[str, Any], job: Dict[str, Any]) -> Dict[str, Any]:
    """Train one model under the meter; return its figures and the meter's lines. Raises Refusal."""
    job.update(device=str(plan["device"]), threads=int(plan["cpu"]["threads"]))
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as folder, _hold_gpu(root, plan) as gpu:
        meter = os.path.join(folder, layout.METRICS)
        figures: Dict[str, Any] = json.loads(_run(job, plan, gpu, meter, MARKER))
        figures["meter"] = _read_meter(meter)
    return figures


def _read_meter(path: str) -> List[str]:
    """Return the meter's lines, the first and the last of them when they are many."""
    try:
        with open(path, "rb") as file:
            lines = file.read(1 << 20).decode("ascii", "replace").splitlines()
    except OSError:
        return []
    while sum(map(len, lines)) > METER_BYTES:
        del lines[len(lines) // 2]
    return lines


def _run(
    job: Dict[str, Any],
    plan: Dict[str, Any],
    gpu: Optional[Dict[str, Any]],
    meter: Optional[str],
    marker: str,
) -> str:
    """Return what the training's Python printed behind the marker; raise Refusal with its words when it did not."""
    environment = make_environment(dict(os.environ), plan, {})
    sets = choose_sets(plan, environment)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu["uuid"]
    environment.pop(layout.METER_VARIABLE, None)
    if meter is not None:
        inject(environment)
        environment[layout.METER_VARIABLE] = meter
        environment[layout.BEGAN_VARIABLE] = repr(time.monotonic())
    python, seconds = str(plan["python"]), STARTING_SECONDS + 2 * float(job.get("seconds", 0.0))
    outcome = work_bound(
        sets[0] if sets else [], lambda: run_script("bench_gpt", job, python, environment, seconds)
    )
    words = find_marked(outcome.output, marker)
    if words is None:
        raise Refusal(
            "host-unfit", "the benchmark did not come to its end: %s" % (outcome.problem or "it said nothing")
        )
    return words
