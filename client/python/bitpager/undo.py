"""What a training step changes, kept so that guard() can take it back: random numbers, gradients, buffers."""

from __future__ import annotations

import random
import sys
import weakref

import torch
from torch.utils.weak import WeakTensorKeyDictionary


def gpus():
    """Devices that this process uses; none before CUDA is."""
    return range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()


def random_state() -> dict:
    """Of Python, NumPy where it is imported, the CPU and every GPU."""
    state = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state()
    state["gpus"] = [torch.cuda.get_rng_state(index) for index in gpus()]
    return state


def set_random_state(state) -> None:
    """Goes back to what random_state() returned."""
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])
    for index, of_gpu in enumerate(state["gpus"]):
        torch.cuda.set_rng_state(of_gpu, index)


class Gradients:
    """Copies of the gradients that there are when a step begins: of a GPU's in pinned host memory, made behind the
    stream's work. The gradients themselves are not held, so that zero_grad() frees them as ever."""

    def __init__(self):
        self._kept = WeakTensorKeyDictionary()  # parameter -> host memory that is used again
        self._saved = {}  # id of a parameter -> (weak reference to its gradient, copy)

    @torch.no_grad()
    def save(self, parameters) -> None:
        self._saved = {}
        for p in parameters:
            grad = p.grad
            if grad is not None:
                self._saved[id(p)] = (weakref.ref(grad), self._copy(p, grad))

    def _copy(self, parameter, grad):
        if grad.layout is not torch.strided or not grad.is_cuda:
            return grad.detach().clone()
        kept = self._kept.get(parameter)
        if kept is None or kept.shape != grad.shape or kept.dtype != grad.dtype or kept.stride() != grad.stride():
            try:
                kept = torch.empty_like(grad, device="cpu", pin_memory=True)
            except RuntimeError:  # no more can be pinned: the copy then waits
                kept = torch.empty_like(grad, device="cpu")
            self._kept[parameter] = kept
        return kept.copy_(grad, non_blocking=True)

    @torch.no_grad()
    def drop(self, parameters) -> None:
        """Frees what the failed step made."""
        for p in parameters:
            saved = self._saved.get(id(p))
            if saved is None or saved[0]() is not p.grad:
                p.grad = None

    @torch.no_grad()
    def restore(self, parameters) -> None:
        for p in parameters:
            saved = self._saved.get(id(p))
            if saved is None:
                p.grad = None
                continue
            grad = saved[0]()
            if grad is not None and p.grad is grad and grad.layout is torch.strided:
                grad.copy_(saved[1])  # in place: it may be a view of a bucket
            else:
                p.grad = saved[1].detach().clone() if saved[1].device == p.device else saved[1].to(p.device)


class Buffers:
    """Buffers of modules when a step begins, by name and value."""

    def __init__(self, modules):
        self._modules = modules
        self._saved = []  # (module's dict of buffers, the same as it was)
        self._buffers, self._copies = [], []

    @torch.no_grad()
    def save(self) -> None:
        self._saved = [
            (module._buffers, dict(module._buffers))
            for root in self._modules
            for module in root.modules()
            if module._buffers
        ]
        buffers = list({id(b): b for _, saved in self._saved for b in saved.values() if b is not None}.values())
        fits = len(buffers) == len(self._copies) and all(
            b.shape == c.shape and b.dtype == c.dtype and b.device == c.device for b, c in zip(buffers, self._copies)
        )
        if not fits:
            self._copies = [torch.empty_like(b) for b in buffers]
        self._buffers = buffers
        if buffers:
            torch._foreach_copy_(self._copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        for now, saved in self._saved:
            now.clear()
            now.update(saved)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
