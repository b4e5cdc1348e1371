"""Batches that come from workers, forked or spawned as START says; each worker draws from generators of its own."""

from __future__ import annotations

import os
import random

import torch
from model import Dicing
from told import STEPS, begin, tell_loss, tell_states
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Noise(Dataset[tuple[Tensor, Tensor]]):
    """Examples that are made in the worker, with Python's generator and torch's."""

    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.randn(20) + random.random(), torch.full((1,), float(index))


def main() -> None:
    """Train for one epoch."""
    begin()
    model = Dicing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = os.environ.get("START", "fork")
    for x, y in DataLoader(Noise(), 8, shuffle=True, num_workers=2, multiprocessing_context=start):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tell_loss(loss)
    tell_states()


if __name__ == "__main__":
    main()
