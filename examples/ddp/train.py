"""Check that the processes of a run share their gradients: the smallest honest job for two of them.

Two processes on CPUs (gloo):       torchrun --standalone --nproc-per-node 2 train.py
The same through remote-train:      remote-train run --local --nproc-per-node 2 train.py
One process for each of two GPUs:   remote-train run --gpus 2 train.py

Each process has rows of its own. What DistributedDataParallel makes of the gradients must be their mean, which an
all_reduce of ours works out again; then a linear model takes a few steps. Exit code 0: all of it agreed.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 20


def main() -> None:
    """Compare the gradients once, on the way to a few steps."""
    if "RANK" not in os.environ:
        sys.exit("this is a job for several processes: torchrun --standalone --nproc-per-node 2 train.py")
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    print(f"rank {rank} of {world}: {device}, {dist.get_backend()}, process {os.getpid()}", flush=True)

    torch.manual_seed(0)
    truth, plain = torch.randn(8, 1, device=device), nn.Linear(8, 1, bias=False).to(device)
    model = DistributedDataParallel(plain)
    torch.manual_seed(1 + rank)
    rows = torch.randn(64, 8, device=device)

    (expected,) = torch.autograd.grad(nn.functional.mse_loss(plain(rows), rows @ truth), [plain.weight])
    dist.all_reduce(expected)
    for step in range(1, STEPS + 1):
        plain.zero_grad()
        loss = nn.functional.mse_loss(model(rows), rows @ truth)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch does not type it
        if step == 1:
            torch.testing.assert_close(plain.weight.grad, expected / world)
            print(f"rank {rank} of {world}: gradients agree", flush=True)
        with torch.no_grad():
            plain.weight -= 0.2 * plain.weight.grad  # type: ignore[operator]  # None before the first backward
        mean = loss.detach() / world
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}/{STEPS} | loss {mean.item():.6f}", flush=True)
    dist.destroy_process_group()
    # Threads of gloo may still let go of a tensor while Python shuts down, and abort a process that has done its work
    # (PyTorch issue 190489, 2.13: one run in twenty here): all is printed, so leave without that.
    os._exit(0)


if __name__ == "__main__":
    main()
