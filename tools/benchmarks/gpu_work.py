"""The models and gradients that GPU benchmarks step: a 1B-Llama's shapes, and the adapters of a 7B one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_machine import DEVICE, wall_ms

HIDDEN, INNER, KEYS, VOCABULARY, LAYERS = 2048, 8192, 512, 13112, 16
# q, k, v, o, gate, up, down and two norms.
LAYER = [(HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN)]
LAYER += [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER), (HIDDEN,), (HIDDEN,)]
# Llama 3.2 1B with a smaller vocabulary: 999,999,488 parameters; one table for embedding and head.
LLAMA = [(VOCABULARY, HIDDEN), *LAYER * LAYERS, (HIDDEN,)]
LORA = [(16, 4096), (4096, 16)] * 128  # q, k, v, o of 32 layers: 256 tensors, 16.8 million elements
SCALE_BYTES = 4 / 256  # of each 8-bit state


def count(shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def parameters(shapes, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    made = []
    for shape in shapes:
        values = torch.empty(shape, dtype=dtype, device=DEVICE).normal_(0, 0.02, generator=generator)
        made.append(torch.nn.Parameter(values))
    return made


class FreshGradients:
    """Gives every parameter a new gradient tensor, last one first, as zero_grad(set_to_none=True) and a backward pass
    do. Values repeat from tensor to tensor; what a step costs does not depend on them."""

    def __init__(self, params: list[torch.nn.Parameter]):
        self._params = params
        generator = torch.Generator(DEVICE).manual_seed(2)
        longest = max(p.numel() for p in params)
        self._noise = torch.empty(longest, dtype=params[0].dtype, device=DEVICE).normal_(0, 1e-3, generator=generator)

    def of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return self._noise[: parameter.numel()].view(parameter.shape).clone()

    def __call__(self) -> None:
        for p in self._params:
            p.grad = None
        for p in reversed(self._params):
            p.grad = self.of(p)


def step_bytes(shapes, dtype: torch.dtype, states: int) -> float:
    """Bytes that one step with 8-bit states must move: parameters and states both ways, gradients one."""
    return count(shapes) * (3 * dtype.itemsize + 2 * states * (1 + SCALE_BYTES))


def step_ms(shapes, dtype: torch.dtype, make: Callable, repeats: int) -> float:
    """Median wall time of [optimizer.step(); synchronize] with fresh gradients."""
    params = parameters(shapes, dtype)
    optimizer = make(params)
    return wall_ms(FreshGradients(params), optimizer.step, repeats)


def free() -> None:
    """Gives unused device memory back to the system, for whoever is measured next."""
    import gc

    gc.collect()
    torch.cuda.empty_cache()


def load_peer(folder):
    """The bitsandbytes module from `folder`; raises whatever its import raises."""
    import sys

    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    import bitsandbytes

    return bitsandbytes
