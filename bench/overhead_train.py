"""The training that bench/overhead.py watches: `overhead_train.py JOB.json`. Prints one line of JSON with the times of its steps.

Between the warm-up and the end lies the window. At both of its ends a file is written beside the job, and the training waits for
the other side to have read what our processes have used.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim import optimizer as optimizers

from remote_train.host.bench_gpt import choose_dtype, make_step

if TYPE_CHECKING:
    from collections.abc import Callable

HOOK_CALLS = 20_000
SYNCHRONISED = 50


def meet(folder: Path, word: str) -> None:
    """Say that the window begins or ends, and wait until that was noticed."""
    (folder / word).touch()
    while (folder / word).exists():
        time.sleep(0.005)


def time_hooks(optimizer: object) -> float:
    """Return the seconds that the hooks on every optimizer's steps take for one step; to be called after the last of them."""
    before = optimizers._global_optimizer_pre_hooks.values()  # noqa: SLF001  (nothing public lists them)
    after = optimizers._global_optimizer_post_hooks.values()  # noqa: SLF001  (as above)
    began = time.perf_counter()
    for _ in range(HOOK_CALLS):
        for hook in (*before, *after):
            hook(optimizer, (), {})  # type: ignore[arg-type]  # any optimizer is one
    return (time.perf_counter() - began) / HOOK_CALLS


def read_cpu() -> float:
    """Return the CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def take(step: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Take so many steps and return the seconds of each; the queue of a GPU is emptied now and then, and in the end."""
    ends = [time.perf_counter()]
    for number in range(1, count + 1):
        step()
        if device.type == "cuda" and (number % SYNCHRONISED == 0 or number == count):
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return [late - early for early, late in pairwise(ends)]


def main() -> None:
    """Train, and tell."""
    place = Path(sys.argv[1])
    job = json.loads(place.read_text())
    seen: list[object] = []
    remember = optimizers.register_optimizer_step_post_hook(lambda one, _args, _kwargs: seen.append(one))
    device = torch.device(job["device"])
    torch.set_num_threads(job["threads"])
    step, _ = make_step(torch, job, device, choose_dtype(torch, device))
    step()
    remember.remove()
    warm = take(step, job["warm_up"], device)
    meet(place.parent, "begins")
    before = read_cpu()
    steps = take(step, job["steps"], device)
    cpu = read_cpu() - before
    meet(place.parent, "ends")
    told = {"warm": warm, "steps": steps, "cpu": cpu, "hooks": time_hooks(seen[0])}
    told |= {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    sys.stdout.write(f"told {json.dumps(told)}\n")


if __name__ == "__main__":
    main()
