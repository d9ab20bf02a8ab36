"""A small decoder language model over bytes, and a LoRA wrapper around its linear layers.

Runs in the training processes of the quickstart job; knows nothing of bitpager itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. The defaults give 10.8 million parameters."""

    vocab: int = 256  # bytes
    context: int = 128
    width: int = 384
    heads: int = 6
    layers: int = 6


class Block(nn.Module):
    """Attention and a GELU layer, each behind a norm and added to its input [batch, time, width]."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.norm2 = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteModel(nn.Module):
    """Next-byte logits [batch, time, vocab] of bytes [batch, time] (int64)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.token = nn.Embedding(shape.vocab, shape.width)
        self.place = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        self.apply(_init)
        nn.init.normal_(self.token.weight, std=1.0)
        nn.init.zeros_(self.head.weight)  # the first loss is that of a uniform guess, ln(vocab)
        for block in self.blocks:  # each block starts as the identity
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, bytes_in: torch.Tensor) -> torch.Tensor:
        x = self.token(bytes_in) + self.place.weight[: bytes_in.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def loss_of(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats per byte) of windows [batch, context + 1]."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class LoraLinear(nn.Module):
    """y = base(x) + alpha/r * B(A(x)) with a frozen base; B starts at zero (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 16, alpha: float = 32.0):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


def wrap_linears(model: ByteModel, freeze: Callable[[nn.Linear], nn.Linear], rank: int, alpha: float) -> None:
    """Replaces every linear layer by LoRA around `freeze(layer)`; nothing else keeps a gradient."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("qkv", "out", "up", "down"):
            setattr(block, name, LoraLinear(freeze(getattr(block, name)), rank, alpha))
    model.head = LoraLinear(freeze(model.head), rank, alpha)
