"""A training under the real torchrun with the real DataLoader: two workers a rank, all of them busy."""

import os
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset


class Slow(Dataset[torch.Tensor]):
    """Never ends within a test."""

    def __len__(self) -> int:
        """Return how many items there are."""
        return 1_000_000

    def __getitem__(self, place: int) -> torch.Tensor:
        """Return one item, after a while."""
        time.sleep(0.01)
        return torch.zeros(8)


if __name__ == "__main__":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(
                sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", sys.argv[1]], {}
            )
        os._exit(0)
    torch.set_num_threads(1)
    for number, _ in enumerate(DataLoader(Slow(), batch_size=2, num_workers=2)):
        if number == 2:
            print("on", flush=True)
