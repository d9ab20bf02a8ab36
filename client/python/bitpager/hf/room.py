"""What would help a quantized model that lacks memory, in bytes."""

from __future__ import annotations

import contextlib
import math

import torch

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
