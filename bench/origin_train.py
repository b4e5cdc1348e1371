"""A script of nanoGPT's shape around a real model: its settings, its configurator, the lines it prints, its A100 in the MFU.

Needs `tiny_gpt.py` and `configurator.py` beside it; bench/origin.py puts them there. Not nanoGPT's code.
"""

import time

import tiny_gpt  # type: ignore[import-not-found]  # beside it in the project that bench/origin.py makes
import torch

log_interval = 1
max_iters = 100
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
gradient_accumulation_steps = 1
device = "cuda"
compile = True  # noqa: A001  (the family's own name for it)
exec(open("configurator.py").read())  # noqa: PTH123, SIM115  (what the family is known by)

tokens = gradient_accumulation_steps * batch_size * block_size
print(f"tokens per iteration will be: {tokens:,}")
torch.manual_seed(1337)
data = torch.randint(tiny_gpt.VOCABULARY, (100_000,))
print(f"found vocab_size = {tiny_gpt.VOCABULARY} (inside data/meta.pkl)")
model = tiny_gpt.GPT()
parameters = list(model.parameters())
numbers = sum(p.numel() for p in parameters) - model.places.weight.numel()
print(f"number of parameters: {numbers / 1e6:.2f}M")
for kind, group in (
    ("decayed", [p for p in parameters if p.dim() >= 2]),
    ("non-decayed", [p for p in parameters if p.dim() < 2]),
):
    print(
        f"num {kind} parameter tensors: {len(group)}, with {sum(p.numel() for p in group):,} parameters",
        flush=True,
    )
optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99))
flops = (6 * numbers + 12 * n_layer * n_embd * block_size) * tokens
running, since = -1.0, time.time()
for iteration in range(max_iters + 1):
    starts = torch.randint(len(data) - block_size - 1, (batch_size,)).tolist()
    inputs, targets = (torch.stack([data[at + n : at + n + block_size] for at in starts]) for n in (0, 1))
    loss = model(inputs, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    now = time.time()
    seconds, since = now - since, now
    if iteration % log_interval == 0:
        if iteration >= 5:
            mfu = flops / seconds / 312e12
            running = mfu if running < 0 else 0.9 * running + 0.1 * mfu
        line = (
            f"iter {iteration}: loss {loss.item():.4f}, time {seconds * 1000:.2f}ms, mfu {running * 100:.2f}%"
        )
        print(line, flush=True)
