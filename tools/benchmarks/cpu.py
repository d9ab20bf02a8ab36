"""Group cpu: optimizer steps and 4-bit conversions at full size, everything resident."""

from __future__ import annotations

import ctypes

import torch
from machine import Setting, median_ms, session_of
from optimizers import step_ms, torch_fused
from rows import Row

SIDE = 2048
TENSORS = 24
ELEMENTS = TENSORS * SIDE * SIDE
SCALED = 1e9 / ELEMENTS
UNIT = f"ms per 1e9 parameters (scaled from {ELEMENTS / 1e6:.0f}e6)"
DAEMON = ("--device-budget", "1GiB", "--host-budget", "3GiB")
NF4_SIDE = 4096
BLOCK = 64


def _steps(setting: Setting, rule: str, states: int, dtype: torch.dtype, base_ms: float) -> list[Row]:
    """Rows against torch's fused fp32 AdamW and against the peer's optimizer of the same name."""
    import bitpager

    shapes = [(SIDE, SIDE)] * TENSORS
    name = f"{rule} 8-bit, {'fp32' if dtype == torch.float32 else 'bf16'}"
    with session_of(setting, "cpu", *DAEMON) as session:
        ours = step_ms(shapes, dtype, lambda p: getattr(bitpager.optim, f"{rule}8bit")(p, lr=1e-3, session=session))
    size = dtype.itemsize
    limit_ms = ELEMENTS * (3 * size + 2 * states * (1 + 4 / 256)) / setting.ceiling * 1e3
    rows = [Row(name, UNIT, ours * SCALED, base_ms * SCALED, "torch fused AdamW fp32", limit_ms * SCALED)]
    if setting.peer is not None:
        few = max(1, TENSORS // 8)  # the peer is slow enough to be measured on less
        peer = step_ms(shapes[:few], dtype, lambda p: getattr(setting.peer.optim, f"{rule}8bit")(p, lr=1e-3), 3)
        peer *= TENSORS / few
        rows.append(Row(name, UNIT, ours * SCALED, peer * SCALED, f"bitsandbytes {rule}8bit", limit_ms * SCALED))
    return rows


def _through_buffer(session, weight, function: str, tensor: torch.Tensor, *tail):
    """A call of the C ABI whose tensor lies in a buffer that the daemon maps."""
    from bitpager import _lib, dtypes, shared

    place = shared.locate(session, tensor)
    if not place.buffer:
        raise RuntimeError(f"the tensor could not be shared: {place.reason}")
    call = getattr(_lib.lib(), function)
    code = dtypes.require_float(tensor, "tensor")
    return lambda: _lib.check(call(session.handle, weight.handle, code, None, place.buffer, 0, *tail))


def _four_bit(setting: Setting) -> list[Row]:
    import bitpager
    from bitpager import _lib

    source = torch.randn(NF4_SIDE, NF4_SIDE, generator=torch.Generator().manual_seed(3))
    out = torch.empty_like(source)
    limit = source.numel() * (4 + 0.5 + 4 / BLOCK) / setting.ceiling * 1e3
    work = f"NF4 {{}} {NF4_SIDE}x{NF4_SIDE} fp32, {{}}"
    with session_of(setting, "nf4", *DAEMON) as session:
        weight = bitpager.Weight(source.shape, blocksize=BLOCK, nested=False, session=session)
        quantize = _through_buffer(session, weight, "bp_weight_quantize", source)
        request = _through_buffer(
            session, weight, "bp_weight_dequantize", out, _lib.PATHS["request"], ctypes.POINTER(ctypes.c_int)()
        )
        quantized = median_ms(lambda: None, quantize)
        requested = median_ms(lambda: None, request)
        request()
        check = (out - source).abs().mean().item() / source.abs().mean().item()
        if not check < 0.12:  # NF4's mean error for normal values is 9% at block 64
            raise RuntimeError(f"dequantized values are {100 * check:.0f}% off: not worth timing")
        private = torch.empty_like(source)
        try:
            leased = median_ms(lambda: None, lambda: weight.dequantize(out=private, path="lease"))
        except (bitpager.BusyError, bitpager.NotResidentError) as error:
            print(f"no figure for the lease path: {error}")
            leased = None
    peer_quantize, peer_dequantize = _peer_four_bit(setting, source)
    name = "bitsandbytes" if setting.peer is not None else None
    rows = [
        Row(work.format("quantize", "request"), "ms", quantized, peer_quantize, name, limit),
        Row(work.format("dequantize", "request"), "ms", requested, peer_dequantize, name, limit),
    ]
    if leased is not None:
        rows.append(Row(work.format("dequantize", "lease"), "ms", leased, peer_dequantize, name, limit))
    return rows


def _peer_four_bit(setting: Setting, source: torch.Tensor) -> tuple[float | None, float | None]:
    if setting.peer is None:
        return None, None
    functional = setting.peer.functional
    packed, state = functional.quantize_4bit(source, blocksize=BLOCK, quant_type="nf4")
    quantize = median_ms(lambda: None, lambda: functional.quantize_4bit(source, blocksize=BLOCK, quant_type="nf4"), 3)
    return quantize, median_ms(lambda: None, lambda: functional.dequantize_4bit(packed, state))


def run(setting: Setting) -> list[Row]:
    base = step_ms([(SIDE, SIDE)] * TENSORS, torch.float32, torch_fused)
    rows = []
    for rule, states in (("AdamW", 2), ("Lion", 1)):
        for dtype in (torch.float32, torch.bfloat16):
            rows += _steps(setting, rule, states, dtype, base)
    return rows + _four_bit(setting)
