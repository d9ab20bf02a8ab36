"""What would help a quantized model that lacks memory, in bytes."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
import weakref

import torch
from transformers.pytorch_utils import Conv1D

from .. import errors
from ..functional import whole_bytes
from ..nn import Linear4bit
from ..sizes import print_bytes

try:
    TorchOutOfMemory = torch.OutOfMemoryError
except AttributeError:  # torch before 2.5
    TorchOutOfMemory = torch.cuda.OutOfMemoryError


def layers_of(model: torch.nn.Module) -> list:
    """The quantized layers."""
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def weights_of(layers) -> int:
    """How many weights they hold."""
    return sum(layer.in_features * layer.out_features for layer in layers)


def packed_bytes_of(layers) -> int:
    """Bytes of codes and scales, once all are quantized."""
    return sum(
        whole_bytes(layer.in_features * layer.out_features, layer.blocksize, layer.compress_statistics)
        for layer in layers
    )


def saved_by_double_quantization(layers) -> int:
    """Bytes: the four of a block's scale become one, and four for every 256 blocks."""
    plain = [layer for layer in layers if not layer.compress_statistics]
    blocks = sum(math.ceil(layer.in_features * layer.out_features / layer.blocksize) for layer in plain)
    return 3 * blocks - 4 * math.ceil(blocks / 256) if plain else 0


LARGE_SHARE = 0.1  # of a model's size in 16 bits, from which floats that are no linear layers are spoken of
_NEVER = (torch.nn.Embedding, torch.nn.EmbeddingBag, torch.nn.modules.conv._ConvNd)


def base_parameters(module: torch.nn.Module, prefix="", seen=None):
    """(name, module, parameter) of all but adapters, each parameter once."""
    seen = set() if seen is None else seen
    base = module._modules.get("base_layer")  # PEFT's layers of every kind keep what they adapt under this name
    if base is not None:
        yield from base_parameters(base, f"{prefix}base_layer.", seen)
        return
    for key, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield prefix + key, module, parameter
    for key, child in module.named_children():
        yield from base_parameters(child, f"{prefix}{key}.", seen)


def bytes_of(parameter) -> int:
    """Of a parameter, in pages or not."""
    pages = getattr(parameter, "pages", None)
    return parameter.numel() * parameter.element_size() if pages is None else pages.packed_bytes


def bytes_in_16_bits(model: torch.nn.Module) -> int:
    """What the model's parameters would take, adapters left out."""
    return 2 * sum(parameter.numel() for _, _, parameter in base_parameters(model))


def left_as_floats(model: torch.nn.Module):
    """(linear, other): {name: bytes} of matrices, and stacks of them, that are neither quantized nor embeddings, output
    head or convolutions. linear: of linear layers, which were left out by name. other: what no name brings in, as the
    experts that transformers keep as parameters of three dimensions."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    never = set() if head is None else set(head.modules())
    linear, other = {}, {}
    for name, module, parameter in base_parameters(model):
        is_float = getattr(parameter, "pages", None) is None and parameter.is_floating_point() and parameter.dim() > 1
        if is_float and module not in never and not isinstance(module, (*_NEVER, Linear4bit)):
            kind = linear if type(module) is torch.nn.Linear or isinstance(module, Conv1D) else other
            kind[name] = bytes_of(parameter)
    return linear, other


def name_largest(found: dict, most=3) -> str:
    """ "model.layers.*.mlp.experts.down_proj (2.0 GiB), ..." of {name: bytes}, layers taken together."""
    together = {}
    for name, size in found.items():
        name = re.sub(r"\b\d+\b", "*", name)
        together[name] = together.get(name, 0) + size
    largest = sorted(together.items(), key=lambda item: -item[1])
    said = ", ".join(f"{name} ({print_bytes(size)})" for name, size in largest[:most])
    return said + (", ..." if len(largest) > most else "")


def on_gpu(layers) -> bool:
    """Any of them computes on a GPU."""
    return any(layer.weight.device.type == "cuda" for layer in layers)


_warned = weakref.WeakSet()  # first layers of models that were spoken of


def warn_of_float32(model: torch.nn.Module, where: str) -> None:
    """Once for a model: its quantized layers compute in float32, `where` that costs time."""
    first = next(iter(layers_of(model)), None)
    if first is None or first in _warned:
        return
    _warned.add(first)
    warnings.warn(
        f"the quantized layers compute in float32 {where}, which is slow. Hint: from_pretrained(..., "
        "dtype=torch.bfloat16), with TRL model_init_kwargs={'dtype': 'bfloat16'}, and no other compute_dtype.",
        stacklevel=3,
    )


def bytes_of_tokens(model, tokens: int) -> int:
    """About what a training step takes for so many tokens more, with checkpointing; 0 when the config does not tell. As
    in bitpager.plan: logits in 16 bits, as float32 and their gradient; one kept input of each layer."""
    text = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
    if text is None or not getattr(text, "vocab_size", None) or not getattr(text, "hidden_size", None):
        return 0
    return tokens * (10 * text.vocab_size + 2 * text.hidden_size * (getattr(text, "num_hidden_layers", None) or 1))


def advice(model: torch.nn.Module) -> str:
    """ "1.2 GiB by ...; 300.0 MiB by ...": the largest first; "" when nothing is known to help."""
    layers = layers_of(model)
    sessions = {layer.weight.pages.session for layer in layers if layer.is_quantized} - {None}
    leave = sum(session.memory_stats()["resident_bytes"] for session in sessions if not session.closed)
    found = [
        (leave, "pages leave (session.make_room, or a smaller bitpager limit)"),
        (saved_by_double_quantization(layers), "double quantization"),
        (bytes_of_tokens(model, 1024), "every 1,024 tokens less in a batch, about"),
    ]
    return "; ".join(f"{print_bytes(size)} by {how}" for size, how in sorted(found, reverse=True) if size > 0)


def while_loading(error: errors.Error, model: torch.nn.Module) -> errors.Error:
    """`error`; when memory ran out for pages, with what the whole model needs of them and what would save some."""
    if not isinstance(error, errors.OutOfMemoryError):
        return error
    layers = layers_of(model)
    said = f"{error} All {len(layers)} quantized layers of this model take {print_bytes(packed_bytes_of(layers))}"
    saved = saved_by_double_quantization(layers)
    said += f"; double_quant=True would save {print_bytes(saved)} of it." if saved else "."
    inner = [layer for layer in layers if layer.offload != "disk"]
    if isinstance(error, errors.BudgetError) and inner:
        said += (
            f" On disk they take no host memory, up to {print_bytes(packed_bytes_of(inner))} of it: bitpagerd "
            '--disk-folder PATH, and "disk" for modules in device_map.'
        )
    return type(error)(said, error.code, error.name)


@contextlib.contextmanager
def explained(model: torch.nn.Module):
    """`with explained(model): step` adds advice(model) to what torch says when its memory ran out."""
    try:
        yield
    except TorchOutOfMemory as error:
        try:
            said = advice(model)
        except errors.Error:  # a lost daemon must not hide what happened
            said = ""
        if not said:
            raise
        raise TorchOutOfMemory(f"{error} What would help here: {said}.") from error
