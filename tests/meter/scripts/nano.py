"""A training of nanoGPT's shape: accumulation, clipping, an evaluation now and then, a checkpoint; COMPILE=1 compiles it."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import torch
from model import Gpt, make_batch
from told import STEPS, begin, tell, tell_loss, tell_states

ACCUMULATION, EVALUATE = 2, 8

begin()
raw = Gpt()
model: Any = torch.compile(raw) if os.environ.get("COMPILE") else raw
decaying = [parameter for parameter in raw.parameters() if parameter.dim() >= 2]
others = [parameter for parameter in raw.parameters() if parameter.dim() < 2]
groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
scaler = torch.amp.GradScaler("cpu", enabled=False)


@torch.no_grad()
def estimate() -> float:
    """Return the mean loss of three batches without dropout."""
    model.eval()
    found = [model(*make_batch())[1].item() for _ in range(3)]
    model.train()
    return sum(found) / len(found)


batch = make_batch()
step = 0
while True:
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * min(1.0, (step + 1) / 5)
    if step % EVALUATE == 0:
        tell("val", estimate().hex())
        torch.save({"model": raw.state_dict(), "step": step}, io.BytesIO())
    for _ in range(ACCUMULATION):
        with contextlib.nullcontext():
            _, loss = model(*batch)
            loss = loss / ACCUMULATION
        batch = make_batch()
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    tell_loss(loss * ACCUMULATION)
    step += 1
    if step >= STEPS:
        break
tell_states()
