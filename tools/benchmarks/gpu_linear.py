"""Linear layers with an NF4 weight, at batch sizes from one to training's, against bitsandbytes and plain bf16."""

from __future__ import annotations

import torch
from gpu_machine import DEVICE, Bench, device_us, session_of
from gpu_sections import Report
from gpu_work import free, load_peer
from rows import Row

IN, OUT = 28672, 8192
BATCHES = (1, 8, 16, 32, 64, 512, 4096)
BLOCK = 64
DTYPE = torch.bfloat16
BUDGETS = (2 << 30, 2 << 30)
LAYERS = 2  # a weight is larger than the cache already


def _dense() -> list[torch.nn.Linear]:
    layers = []
    for seed in range(LAYERS):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        layer = torch.nn.Linear(IN, OUT, bias=False, dtype=DTYPE, device="meta")
        weight = torch.empty(OUT, IN, dtype=DTYPE, device=DEVICE).normal_(0, 0.02, generator=generator)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layers.append(layer)
    return layers


def _of_peer(module, dense: torch.nn.Linear, nested: bool):
    options = {"compress_statistics": nested, "quant_type": "nf4"}
    layer = module.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=DTYPE, **options)
    layer.weight = module.nn.Params4bit(dense.weight.detach().cpu(), requires_grad=False, **options)
    return layer.to(DEVICE)


def _times(layers) -> dict:
    """Microseconds of forward by batch size."""
    times = {}
    with torch.no_grad():
        for batch in BATCHES:
            inputs = [torch.randn(batch, IN, device=DEVICE, dtype=DTYPE) for _ in layers]
            pairs = list(zip(layers, inputs))
            times[batch] = device_us([lambda la=la, x=x: la(x) for la, x in pairs])
    return times


def _require_close(layer, dense: torch.nn.Linear) -> None:
    """The product with the quantized weight against the dense one: NF4's error on normal values is some 10%."""
    with torch.no_grad():
        for batch in (1, 64):
            x = torch.randn(batch, IN, device=DEVICE, dtype=DTYPE)
            theirs = dense(x).float()
            error = ((layer(x).float() - theirs).norm() / theirs.norm()).item()
            if not error < 0.15:
                raise RuntimeError(f"at batch {batch} the products are {100 * error:.1f}% off: not worth timing")


def _limit_us(bench: Bench, batch: int) -> float | None:
    """The packed weight, input and output once through memory, or the operations at matmul's rate."""
    memory = bench.ms_of(IN * OUT * (0.5 + 4 / BLOCK) + 2 * batch * (IN + OUT), "copy")
    compute = bench.ms_of(2.0 * batch * IN * OUT, "matmul")
    return None if memory is None or compute is None else max(memory, compute) * 1e3


def linear(nested: bool):
    """A section; nested: with double quantization."""
    return lambda bench, report: _linear(bench, report, nested)


def _linear(bench: Bench, report: Report, nested: bool) -> None:
    import bitpager

    work = f"NF4 linear {OUT}x{IN}{', double quantization' if nested else ''}, batch"
    ours, dense = {}, _dense()
    with report.guard(f"{work}: ours", "us"), session_of(bench, "linear", *BUDGETS) as found:
        options = {"compress_statistics": nested, "blocksize": BLOCK, "session": found.session}
        layers = [bitpager.nn.Linear4bit.from_linear(layer, DTYPE, **options) for layer in dense]
        _require_close(layers[0], dense[0])
        ours = _times(layers)
        for batch in BATCHES:
            report.add(Row(f"{work} {batch}", "us", ours[batch], limit=_limit_us(bench, batch)))
        del layers
    with report.guard(f"{work}: bf16 matmul", "us"):
        for batch, theirs in _times(dense).items():
            limit = _limit_us(bench, batch)
            report.add(Row(f"{work} {batch}", "us", ours.get(batch), theirs, "torch bf16 matmul", limit))
    with report.guard(f"{work}: bitsandbytes", "us"):
        module = load_peer(bench.peers)
        layers = [_of_peer(module, layer, nested) for layer in dense]
        del dense
        free()
        for batch, theirs in _times(layers).items():
            limit = _limit_us(bench, batch)
            report.add(Row(f"{work} {batch}", "us", ours.get(batch), theirs, "bitsandbytes Linear4bit", limit))
