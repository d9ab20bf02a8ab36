"""The values that codes stand for: the dynamic map of 8 bits, the 16 values of a 4-bit type. Each is made once, and
copied once to each GPU that uses it."""

from __future__ import annotations

import torch

from . import _lib
from .quant_state import QUANT_TYPES

_maps = {}


def create_dynamic_map(signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8) -> torch.Tensor:
    """The dynamic data type (https://arxiv.org/abs/1511.04561): 256 ascending fp32 values; with fewer than 8 bits, the
    rest are zeros.

    signed: negatives included; max_exponent_bits: the longest run of exponent bits; total_bits: bits of a code."""
    if not 1 <= total_bits <= 8 or not 1 <= max_exponent_bits < total_bits:
        raise ValueError("create_dynamic_map needs 1 <= max_exponent_bits < total_bits <= 8")
    fraction_bits = total_bits - 1 - max_exponent_bits
    values = [0.0, 1.0]
    for exponent in range(max_exponent_bits):
        count = 2 ** (exponent + fraction_bits + (0 if signed else 1))
        scale = 10 ** (exponent - max_exponent_bits + 1)
        values += _scaled_means(count, scale, signed)
    linear_count = 2**fraction_bits - 1
    if linear_count > 0:
        values += _scaled_means(linear_count, 1, signed)
    values += [0.0] * (256 - len(values))
    return torch.tensor(sorted(values), dtype=torch.float32)


def _scaled_means(count: int, scale: float, signed: bool):
    """Means of neighbours among count + 1 points from 0.1 to 1, times scale; fp32 arithmetic throughout."""
    points = torch.linspace(0.1, 1, count + 1, dtype=torch.float32)
    means = (points[:-1] + points[1:]) / 2.0 * scale
    return means.tolist() + ((-means).tolist() if signed else [])


def get_4bit_type(typename: str, device=None, blocksize: int = 64) -> torch.Tensor:
    """The 16 values of "nf4" or "fp4" by code, fp32, on `device` (None: the CPU)."""
    if typename not in QUANT_TYPES:
        raise NotImplementedError(f"4-bit type {typename!r} is not supported; there are {', '.join(QUANT_TYPES)}")
    if typename not in _maps:
        values = torch.empty(16, dtype=torch.float32)
        _lib.check(_lib.lib().bp_quant_map(_lib.QUANT_TYPES[typename], values.data_ptr()))
        _maps[typename] = values
    return _on_device(typename, "cpu" if device is None else device).clone()


def _on_device(name: str, device) -> torch.Tensor:
    """The kept map `name` on `device`; copied there once, so that later uses need not wait for a copy."""
    device = torch.device(device)
    if device.type == "cpu":
        return _maps[name]
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if (name, device) not in _maps:
        _maps[name, device] = _maps[name].to(device)
    return _maps[name, device]


def dynamic_map(device) -> torch.Tensor:
    """The signed dynamic map on `device`: the one that is kept, not to be written to."""
    if "dynamic" not in _maps:
        _maps["dynamic"] = create_dynamic_map()
    return _on_device("dynamic", device)
