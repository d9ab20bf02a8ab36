"""Swaps the linear layers of a model for 4-bit ones, and back."""

from __future__ import annotations

import fnmatch
from collections import Counter

import torch

from .linear4bit import Linear4bit


def quantize_(
    model: torch.nn.Module,
    skip=(),
    quant_type="nf4",
    compress_statistics=True,
    compute_dtype=None,
    quant_storage=torch.uint8,
    blocksize=64,
    session=None,
    in_process=False,
):
    """Replaces every torch.nn.Linear inside `model` by a quantized Linear4bit, in place and one at a time, so that at
    most one layer exists twice. Returns the names of the replaced layers.

    skip: names, last parts of names, or patterns like "layers.0.*" to leave alone. Layers whose weight another module
    shares (tied embeddings) and subclasses of Linear are left alone. Other arguments: see Linear4bit."""
    if type(model) is torch.nn.Linear:
        raise ValueError("the model is itself a Linear. Hint: bitpager.nn.Linear4bit.from_linear(model).")
    skip = [skip] if isinstance(skip, str) else list(skip)
    replaced = []
    for places in _places(model, skip):
        parent, child_name, name = places[0]
        layer = Linear4bit.from_linear(
            parent._modules[child_name],
            compute_dtype,
            compress_statistics,
            quant_type,
            quant_storage,
            blocksize=blocksize,
            session=session,
            in_process=in_process,
        )
        for parent, child_name, _ in places:
            parent._modules[child_name] = layer
        replaced.append(name)
    release_sources(model)
    return replaced


def release_sources(model: torch.nn.Module) -> None:
    """Has the daemons let go of the GPU memory that the model's weights were quantized from, or torch could not give it
    back."""
    pages = (layer.weight.pages for layer in model.modules() if isinstance(layer, Linear4bit) and layer.is_quantized)
    sessions = {id(p.session): p.session for p in pages if getattr(p, "session", None) is not None}
    for session in sessions.values():
        if session.device_kind == "cuda":
            session.settle()
            session.release_gradients()


def dequantize_(model: torch.nn.Module, dtype=None):
    """The way back: replaces every Linear4bit inside `model` by a torch.nn.Linear with its dequantized values, in place
    and one at a time; their pages go back. dtype: of the new weights (None: that of each quantized tensor). Returns the
    names of the replaced layers."""
    replaced = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit) and name:
            parent_name, _, child = name.rpartition(".")
            model.get_submodule(parent_name)._modules[child] = _plain_linear(layer, dtype)
            replaced.append(name)
    return replaced


def _plain_linear(layer: Linear4bit, dtype) -> torch.nn.Linear:
    plain = torch.nn.Linear(layer.in_features, layer.out_features, False, "meta")
    weight = layer.dequantize()
    plain.weight = torch.nn.Parameter(weight if dtype is None else weight.to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def _places(model, skip):
    """[(parent, attribute, full name), ...] of each layer to replace. Holds no reference to the layers themselves, so
    that each is freed when it is replaced."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found = {}
    for parent_name, parent in model.named_modules():
        for child_name, child in parent._modules.items():
            name = f"{parent_name}.{child_name}" if parent_name else child_name
            if type(child) is torch.nn.Linear and uses[id(child.weight)] == 1 and not _skipped(name, skip):
                found.setdefault(id(child), []).append((parent, child_name, name))
    return list(found.values())


def _skipped(name: str, skip) -> bool:
    last = name.rpartition(".")[2]
    return any(name == item or last == item or fnmatch.fnmatchcase(name, item) for item in skip)
