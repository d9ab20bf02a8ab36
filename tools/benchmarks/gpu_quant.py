"""Group gpu-quant: 4-bit and 8-bit quantization at full size, in this process and by request, and 4-bit linear layers.

Times are the device's, by events, with operands that rotate through more memory than its cache holds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_linear import linear
from gpu_machine import DEVICE, Bench, device_us, session_of
from gpu_sections import Report, Section
from gpu_step import copy_ceiling, matmul_ceiling
from gpu_work import free, load_peer
from rows import Row

LIMIT_S = 90
BLOCK = 64
BIG = (8192, 28672)
SHAPES = [(4096, 4096), (14336, 4096), BIG]
BUDGETS = (2 << 30, 2 << 30)
ROTATED_BYTES = 400 << 20
DTYPE = torch.bfloat16
NORMAL_ERROR = 0.12  # NF4's mean error on normal values is 9% at block 64


def _count(shape) -> int:
    return torch.Size(shape).numel()


def _normal(shape, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.empty(shape, dtype=DTYPE, device=DEVICE).normal_(generator=generator)


def _sets(shape) -> int:
    """Operands that together are larger than the cache."""
    return max(2, min(8, -(-ROTATED_BYTES // (_count(shape) * DTYPE.itemsize))))


def _four_bit_bytes(shape) -> float:
    return _count(shape) * (DTYPE.itemsize + 0.5 + 4 / BLOCK)


def _require_close(got: torch.Tensor, source: torch.Tensor) -> None:
    error = (got - source).abs().float().mean().item() / source.abs().float().mean().item()
    if not error < NORMAL_ERROR:
        raise RuntimeError(f"dequantized values are {100 * error:.1f}% off: not worth timing")


def _name(shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _us_of(bench: Bench, moved_bytes: float) -> float | None:
    limit = bench.ms_of(moved_bytes, "copy")
    return None if limit is None else limit * 1e3


def _functional_quantize(functional, shape, kind: str) -> float:
    sources = [_normal(shape, seed) for seed in range(_sets(shape))]
    if kind == "8-bit":
        return device_us([lambda s=s: functional.quantize_blockwise(s) for s in sources])
    options = {"blocksize": BLOCK, "quant_type": "nf4", "compress_statistics": kind == "nested"}
    return device_us([lambda s=s: functional.quantize_4bit(s, **options) for s in sources])


def _functional_dequantize(functional, shape, nested: bool) -> float:
    source = _normal(shape)
    packed, state = functional.quantize_4bit(source, blocksize=BLOCK, quant_type="nf4", compress_statistics=nested)
    out = torch.empty(shape, dtype=DTYPE, device=DEVICE)
    functional.dequantize_4bit(packed, state, out=out)
    _require_close(out, source)
    operands = [(packed.clone(), torch.empty_like(out)) for _ in range(_sets(shape))]
    return device_us([lambda p=p, o=o: functional.dequantize_4bit(p, state, out=o) for p, o in operands])


def _against_peer(bench: Bench, report: Report, work: str, limit, measure: Callable) -> None:
    """measure(functional) -> us, for ours and for the peer's module of the same name."""
    import bitpager

    ours = None
    with report.guard(work, "us"):
        ours = measure(bitpager.functional)
        report.add(Row(work, "us", ours, limit=limit))
    free()
    with report.guard(f"{work}: bitsandbytes", "us"):
        theirs = measure(load_peer(bench.peers).functional)
        report.add(Row(work, "us", ours, theirs, "bitsandbytes", limit))
    free()


def in_process(bench: Bench, report: Report) -> None:
    """bitpager.functional on CUDA tensors, without a daemon."""
    big = _name(BIG)
    limit = _us_of(bench, _four_bit_bytes(BIG))
    work = f"NF4 quantize {big} bf16"
    _against_peer(bench, report, work, limit, lambda f: _functional_quantize(f, BIG, "4-bit"))
    work += ", double quantization"
    _against_peer(bench, report, work, limit, lambda f: _functional_quantize(f, BIG, "nested"))
    for nested in (False, True):
        kind = ", double quantization" if nested else ""
        for shape in SHAPES:
            limit = _us_of(bench, _four_bit_bytes(shape))
            work = f"NF4 dequantize {_name(shape)} to bf16{kind}"
            _against_peer(bench, report, work, limit, lambda f, s=shape, n=nested: _functional_dequantize(f, s, n))
    limit = _us_of(bench, _count(BIG) * (DTYPE.itemsize + 1 + 4 / 4096))
    work = f"8-bit blockwise quantize {big} bf16, block 4096"
    _against_peer(bench, report, work, limit, lambda f: _functional_quantize(f, BIG, "8-bit"))


def _requested(report: Report, bench: Bench, session, shape, nested: bool) -> None:
    import bitpager

    kind = ", double quantization" if nested else ""
    limit = _us_of(bench, _four_bit_bytes(shape))
    sources = [_normal(shape, seed) for seed in range(_sets(shape))]
    weights = [bitpager.Weight(shape, dtype=DTYPE, blocksize=BLOCK, nested=nested, session=session) for _ in sources]
    try:
        work = f"NF4 quantize {_name(shape)} bf16, by request{kind}"
        with report.guard(work, "us"):
            pairs = list(zip(weights, sources))
            report.add(Row(work, "us", device_us([lambda w=w, s=s: w.quantize_(s) for w, s in pairs]), limit=limit))
        for path in ("request", "lease"):
            work = f"NF4 dequantize {_name(shape)} to bf16, by {path}{kind}"
            with report.guard(work, "us"):
                outs = [torch.empty(shape, dtype=DTYPE, device=DEVICE) for _ in weights]
                weights[0].dequantize(out=outs[0], path=path)
                _require_close(outs[0], sources[0])
                pairs = list(zip(weights, outs))
                calls = [lambda w=w, o=o, path=path: w.dequantize(out=o, path=path) for w, o in pairs]
                report.add(Row(work, "us", device_us(calls), limit=limit))
    finally:
        for weight in weights:
            weight.drop()


def by_request(bench: Bench, report: Report) -> None:
    """Weights in the daemon's pages."""
    with session_of(bench, "quant", *BUDGETS) as found:
        for shape, nested in [(s, False) for s in SHAPES] + [(BIG, True)]:
            with report.guard(f"NF4 by request, {_name(shape)}", "us"):
                _requested(report, bench, found.session, shape, nested)
            free()


def ceilings(bench: Bench, report: Report) -> None:
    copy_ceiling(bench, report)
    matmul_ceiling(bench, report)


SECTIONS = [
    Section("ceilings", ceilings, 15),
    Section("in process", in_process, 25),
    Section("by request", by_request, 20),
    Section("linear", linear(nested=False), 25),
    Section("linear, double quantization", linear(nested=True), 25),
]


def sections(bench: Bench) -> list[Section]:
    return SECTIONS
