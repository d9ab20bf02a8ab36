"""What tests of bitpager.optim share: steps with random gradients, and the states of one parameter."""

from __future__ import annotations

import torch

WRAPPED = "__bnb_optimizer_quant_state__"


def tensors_of(optimizer, index=0):
    return optimizer.state_dict()["state"][index][WRAPPED]


def random_steps(optimizer, parameters, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
