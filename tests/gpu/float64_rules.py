"""Independent float64 references on a torch device, from the formulas alone: the dynamic map, blockwise coding and the
update rules. Shares no code with the package."""

from __future__ import annotations

import torch

BLOCK = 256


def dynamic_map(signed: bool, device) -> torch.Tensor:
    """256 ascending values of the dynamic 8-bit type, rounded to float32."""
    values = [0.0, 1.0]
    for exponent in range(7):
        points = torch.linspace(0.1, 1.0, (2**exponent if signed else 2 ** (exponent + 1)) + 1, dtype=torch.float64)
        means = ((points[1:] + points[:-1]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += means + ([-m for m in means] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64, device=device).float().double()


def _scale(absmax: torch.Tensor, count: int) -> torch.Tensor:
    return absmax.double().repeat_interleave(BLOCK)[:count]


def decode(codes: torch.Tensor, absmax: torch.Tensor, signed: bool) -> torch.Tensor:
    """float64 values of flat codes."""
    return dynamic_map(signed, codes.device)[codes.long()] * _scale(absmax, codes.numel())


def encode(values: torch.Tensor, signed: bool):
    """(codes, absmax) of flat float64 values: the nearest entry; for signed ones, one of the value's own sign."""
    table = dynamic_map(signed, values.device)
    count = values.numel()
    padded = torch.nn.functional.pad(values.abs(), (0, -count % BLOCK))
    absmax = padded.view(-1, BLOCK).amax(1)
    normal = values / _scale(torch.where(absmax > 0, absmax, torch.ones_like(absmax)), count)
    upper = torch.searchsorted(table, normal.contiguous()).clamp(1, 255)
    codes = torch.where(normal - table[upper - 1] <= table[upper] - normal, upper - 1, upper)
    if signed:
        wrong = torch.signbit(table[codes]) != torch.signbit(values)
        codes = torch.where(wrong, torch.where(values > 0, codes + 1, codes - 1), codes)
    return codes.clamp(0, 255).to(torch.uint8), absmax


def adam(p, g, m, v, step: int, lr: float, betas, eps: float, weight_decay: float):
    """One step in float64 on flat tensors: (p, m, v)."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    c1, c2 = 1 - b1**step, (1 - b2**step) ** 0.5
    p = p - lr * (c2 / c1) * m / (v.sqrt() + eps * c2)
    return p * (1 - lr * weight_decay), m, v


def lion(p, g, m, lr: float, betas, weight_decay: float):
    """One step in float64 on flat tensors: (p, m)."""
    b1, b2 = betas
    p = p * (1 - lr * weight_decay)
    p = p - lr * torch.sign(b1 * m + (1 - b1) * g)
    return p, b2 * m + (1 - b2) * g
