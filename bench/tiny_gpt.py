"""The training that `explain` is tried on: a GPT of 4 layers, 4 heads, width 128 on blocks of 64, as nanoGPT's README has it for a CPU.

Plain PyTorch, nothing of ours. Prints one line of JSON of the timed part: steps and tokens a second, and tokens a second of the process's CPU time.
Options are what a person would change after reading `explain`: the batch, a fused optimizer, compilation, bfloat16, threads.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, BLOCK, LAYERS, HEADS, WIDTH = 65, 64, 4, 4, 128
BATCH = 12
WARM_STEPS = 10


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, bias=False) for _ in range(2)])
        self.mix = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.join = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, time, WIDTH) as it came in, refined."""
        batch, length, _ = x.shape
        parts = self.mix(self.norms[0](x)).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        refined: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return refined


class GPT(nn.Module):
    """The whole model, weights of embedding and head shared."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of (batch, BLOCK) token numbers."""
        x = self.tokens(inputs) + self.places(torch.arange(BLOCK, device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps",
        type=int,
        default=200,
        help="of the timed part, at the batch of 12; a larger one does fewer",
    )
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=0, help="0: as the environment says")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train as many tokens as asked and return the pace."""
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.randint(VOCABULARY, (100_000,))
    raw = GPT().to(device)
    model = torch.compile(raw) if options.compile else raw
    optimizer = torch.optim.AdamW(raw.parameters(), lr=1e-3, fused=options.fused or None)
    steps, began, spent = 0, time.perf_counter(), time.process_time()
    timed = max(1, options.steps * BATCH // options.batch)
    while steps < WARM_STEPS + timed:
        starts = torch.randint(len(text) - BLOCK - 1, (options.batch,)).tolist()
        inputs, targets = (
            torch.stack([text[start + shift : start + shift + BLOCK] for start in starts]).to(device)
            for shift in (0, 1)
        )
        with torch.autocast(device, dtype=torch.bfloat16, enabled=options.bf16):
            loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        steps += 1
        if steps == WARM_STEPS:
            began, spent = time.perf_counter(), time.process_time()
    tokens = options.batch * BLOCK
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    return {
        "steps": timed / seconds,
        "tokens": timed * tokens / seconds,
        "cpu_tokens": timed * tokens / spent,
    }


def main() -> None:
    """Train and say how fast."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(train(options)), flush=True)


if __name__ == "__main__":
    main()
