"""Independent float64 references for the tests, from the formulas alone: the dynamic map, blockwise coding, and the
update rules. Uses numpy; shares no code with the package."""

from __future__ import annotations

import numpy as np

BLOCK = 256


def dynamic_map(signed: bool) -> np.ndarray:
    """256 ascending float32 values of the dynamic 8-bit type."""
    values = [0.0, 1.0]
    for exponent in range(7):
        points = np.linspace(0.1, 1.0, (2**exponent if signed else 2 ** (exponent + 1)) + 1)
        means = (points[1:] + points[:-1]) / 2 * 10.0 ** (exponent - 6)
        values += list(means) + (list(-means) if signed else [])
    return np.sort(np.array(values)).astype(np.float32)


def decode(codes, absmax, signed):
    """float64 values of flat codes."""
    scale = np.repeat(np.asarray(absmax, np.float64), BLOCK)[: len(codes)]
    return dynamic_map(signed).astype(np.float64)[np.asarray(codes)] * scale


def encode(values, signed, sign_rule):
    """(codes, absmax) of flat float64 values: the nearest entry, then the sign rule."""
    table = dynamic_map(signed).astype(np.float64)
    count = len(values)
    blocks = -(-count // BLOCK)
    absmax = np.array([np.abs(values[b * BLOCK : (b + 1) * BLOCK]).max() for b in range(blocks)])
    scale = np.repeat(np.where(absmax > 0, absmax, 1.0), BLOCK)[:count]
    normal = values / scale
    upper = np.clip(np.searchsorted(table, normal), 1, 255)
    codes = np.where(normal - table[upper - 1] <= table[upper] - normal, upper - 1, upper)
    if sign_rule:
        wrong = np.signbit(table[codes]) != np.signbit(values)
        codes = np.where(wrong, np.where(values > 0, codes + 1, codes - 1), codes)
    return np.clip(codes, 0, 255).astype(np.uint8), absmax


def adam(p, g, m, v, step, lr, betas, eps, weight_decay):
    """One step in float64 on flat arrays: (p, m, v)."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    c1, c2 = 1 - b1**step, np.sqrt(1 - b2**step)
    p = p - lr * (c2 / c1) * m / (np.sqrt(v) + eps * c2)
    return p * (1 - lr * weight_decay), m, v


def lion(p, g, m, lr, betas, weight_decay):
    """One step in float64 on flat arrays: (p, m)."""
    b1, b2 = betas
    p = p * (1 - lr * weight_decay)
    p = p - lr * np.sign(b1 * m + (1 - b1) * g)
    return p, b2 * m + (1 - b2) * g
