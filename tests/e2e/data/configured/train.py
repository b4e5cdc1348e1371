"""A script that configurator.py configures and that prints the lines nanoGPT prints; there is no model behind them."""

import struct
import time
from pathlib import Path

out_dir = "out"
dataset = "none"
eval_interval = 1000
log_interval = 10
max_iters = 1000
batch_size = 12
block_size = 1024
n_layer = 12
n_head = 12
n_embd = 768
gradient_accumulation_steps = 40
init_from = "scratch"
device = "cuda"
compile = True  # noqa: A001  (the family's own name for it)
exec(open("configurator.py").read())  # noqa: PTH123, SIM115  (what the family is known by)

if device != "cpu" or compile:
    raise SystemExit(f"this machine has neither: device {device}, compile {compile}")
folder = Path("data") / dataset
tokens = struct.unpack("<256H", (folder / "train.bin").read_bytes())
print(f"tokens per iteration will be: {gradient_accumulation_steps * batch_size * block_size:,}")
print(f"found vocab_size = {max(tokens) + 1} (inside {folder}/meta.pkl)")
assert (folder / "meta.pkl").exists()
weights = 12 * n_layer * n_embd**2 + 65 * n_embd
print(f"number of parameters: {weights / 1e6:.2f}M")
print(f"num decayed parameter tensors: {4 * n_layer + 2}, with {weights + block_size * n_embd:,} parameters")
print(f"num non-decayed parameter tensors: {2 * n_layer + 1}, with {(2 * n_layer + 1) * n_embd:,} parameters")
Path(out_dir).mkdir(exist_ok=True)
for iteration in range(max_iters + 1):
    if iteration % eval_interval == 0:
        print(f"step {iteration}: train loss {4 - iteration / 100:.4f}, val loss {4 - iteration / 100:.4f}")
        if iteration:
            print(f"saving checkpoint to {out_dir}")
            (Path(out_dir) / "ckpt.pt").write_text(f"{iteration}\n")
    if iteration % log_interval == 0:
        mfu = 0.01 if iteration >= 5 else -100
        print(
            f"iter {iteration}: loss {4 - iteration / 100:.4f}, time {20:.2f}ms, mfu {mfu:.2f}%", flush=True
        )
    time.sleep(0.005)
