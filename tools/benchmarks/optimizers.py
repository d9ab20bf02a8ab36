"""Optimizer steps with fresh gradients, timed; ours, torch's fused AdamW and bitsandbytes' CPU build alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from machine import REPEATS, median_ms


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


class FreshGradients:
    """Gives every parameter a new gradient tensor, as zero_grad(set_to_none=True) and a backward pass do."""

    def __init__(self, params: list[torch.nn.Parameter]):
        self._params = params
        generator = torch.Generator().manual_seed(2)
        self._values = {p.shape: torch.randn(p.shape, generator=generator).to(p.dtype) for p in params}

    def __call__(self) -> None:
        for p in self._params:
            p.grad = None
        for p in self._params:
            p.grad = self._values[p.shape].clone()


def step_ms(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    repeats: int = REPEATS,
) -> float:
    """Median wall time of optimizer.step()."""
    params = parameters(shapes, dtype)
    optimizer = make(params)
    return median_ms(FreshGradients(params), optimizer.step, repeats)


def torch_fused(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2, fused=True)
