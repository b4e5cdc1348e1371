"""Two processes of torchrun with gloo; the gradients are shared, the batches are not."""

from __future__ import annotations

import torch
import torch.distributed as dist
from model import Gpt, make_batch
from told import STEPS, begin, tell_loss, tell_states
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
begin(dist.get_rank())
model = DistributedDataParallel(Gpt())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(STEPS):
    _, loss = model(*make_batch())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tell_loss(loss)
tell_states()
dist.destroy_process_group()
