"""The small models of these scripts: a GPT of the usual shape with dropout, and a perceptron that throws dice in Python."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, BLOCK, WIDTH, HEADS = 65, 16, 32, 4


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.grow, self.shrink = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        parts = self.attend(self.first(x)).split(WIDTH, dim=2)
        query, key, value = (part.view(rows, length, HEADS, -1).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=0.1 if self.training else 0.0, is_causal=True
        )
        x = x + self.dropout(self.project(seen.transpose(1, 2).reshape(rows, length, WIDTH)))
        return x + self.dropout(self.shrink(functional.gelu(self.grow(self.second(x)))))


class Gpt(nn.Module):
    """Two blocks; returns logits, and the loss where there are targets."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        return logits, functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


class Dicing(nn.Module):
    """Dropout, and a scale drawn from Python's own generator in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layers(x) * random.uniform(0.9, 1.1)
        return scaled


def make_batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    """Return random tokens and those that follow them."""
    tokens = torch.randint(VOCABULARY, (rows, BLOCK + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
