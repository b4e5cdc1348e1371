"""The loop that several scripts share: a regression, one batch at a time."""

from __future__ import annotations

import torch
from told import STEPS, tell_loss


def train(model: torch.nn.Module) -> None:
    """Train on noise, and tell each loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        x, y = torch.randn(8, 20), torch.randn(8, 1)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        tell_loss(loss)
