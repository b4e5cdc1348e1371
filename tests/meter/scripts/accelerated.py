"""accelerate around a model, an optimizer and a DataLoader, with accumulation."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from model import Gpt, make_batch
from told import STEPS, begin, tell_loss, tell_states
from torch.utils.data import DataLoader, TensorDataset

begin()
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = Gpt()
loader = DataLoader(TensorDataset(*make_batch(8 * STEPS)), 4, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
for batch in loader:
    with accelerator.accumulate(model):
        _, loss = model(*batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tell_loss(loss.detach())
tell_states()
