"""Models whose FLOPs the tests know in closed form, written for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    width: int
    block: int
    batch: int
    vocabulary: int = 65
    dropout: float = 0.0
    kv_heads: int | None = None
    recompute: str | None = None  # "reentrant" or "not reentrant"

    def parameters(self) -> int:
        """Those in products: each block's four matrices and the head, which is tied to the embedding."""
        kv = 2 * self.width * (self.kv_heads or self.heads) // self.heads
        return self.layers * self.width * (self.width + kv + self.width + 8 * self.width) + (
            self.vocabulary * self.width
        )

    def flops(self) -> float:
        """6 N a token and 12 L T C for attention (nothing halved): forward and backward of one call."""
        tokens = self.batch * self.block
        return 6.0 * self.parameters() * tokens + 12.0 * self.layers * self.width * self.block * tokens


TINY = Shape(layers=4, heads=4, width=128, block=64, batch=12)
BABY = Shape(layers=6, heads=6, width=384, block=256, batch=64)
SMALL = Shape(layers=12, heads=12, width=768, block=1024, batch=4, vocabulary=50304)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.size = shape.width // shape.heads
        self.kv = (shape.kv_heads or shape.heads) * self.size
        self.inward = nn.Linear(shape.width, shape.width + 2 * self.kv)
        self.outward = nn.Linear(shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.inward(x).split([width, self.kv, self.kv], dim=2)
        q, k, v = (part.view(batch, length, -1, self.size).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.shape.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.shape.kv_heads is not None,
        )
        out: torch.Tensor = self.outward(y.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(shape), nn.Dropout(shape.dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(shape.dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        out: torch.Tensor = x + self.mlp(x)
        return out


class GPT(nn.Module):
    """nanoGPT's shape: learned positions, pre-norm, the head tied to the embedding, the loss in forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.block, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            if self.shape.recompute:
                x = checkpoint(block, x, use_reentrant=self.shape.recompute == "reentrant")
            else:
                x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_batch(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(shape.vocabulary, (2, shape.batch, shape.block), generator=generator)
    return drawn[0], drawn[1]
