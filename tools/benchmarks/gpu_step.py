"""Group gpu-step: optimizer steps with everything resident, and what a request costs."""

from __future__ import annotations

import time

import torch
from gpu_latency import latency
from gpu_machine import Bench, cool, copy_rate, link_rates, matmul_rate, session_of, synchronize, wall_ms
from gpu_sections import Report, Section
from gpu_work import LLAMA, LORA, FreshGradients, free, load_peer, parameters, step_bytes, step_ms
from rows import Row

LIMIT_S = 90
BUDGETS = (4 << 30, 512 << 20)  # of the device, of the host
LORA_STEPS = 100
STATES = {"AdamW": 2, "Lion": 1}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def copy_ceiling(bench: Bench, report: Report) -> None:
    with report.guard("ceiling: copy within the device", "GB/s"):
        rate = copy_rate()
        report.tell("copy", rate)
        report.add(Row("ceiling: copy within the device, read and written", "GB/s", rate / 1e9))


def link_ceilings(bench: Bench, report: Report) -> None:
    names = {
        "to_device": "ceiling: pinned host to device, 16 MiB copies",
        "to_host": "ceiling: device to pinned host, 16 MiB copies",
        "both": "ceiling: both ways at once, each way",
    }
    with report.guard("ceiling: the link", "GB/s"):
        for key, rate in link_rates().items():
            report.tell(key, rate)
            report.add(Row(names[key], "GB/s", rate / 1e9))


def matmul_ceiling(bench: Bench, report: Report) -> None:
    with report.guard("ceiling: bf16 matmul", "TFLOP/s"):
        rate = matmul_rate()
        report.tell("matmul", rate)
        report.add(Row("ceiling: bf16 matmul 8192 cubed, random data", "TFLOP/s", rate / 1e12))


def ceilings(bench: Bench, report: Report) -> None:
    copy_ceiling(bench, report)
    link_ceilings(bench, report)


def _torch_fused(params):
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2, fused=True)


def _calls_ms(prepare, step, repeats: int = 15) -> float:
    """Median of what step() itself takes on the processor, behind prepare()."""
    calls = []
    for _ in range(repeats):
        prepare()
        cool()
        synchronize()
        begun = time.perf_counter_ns()
        step()
        calls.append((time.perf_counter_ns() - begun) / 1e6)
    synchronize()
    return sorted(calls)[len(calls) // 2]


def _ours(bench: Bench, rule: str, dtype: torch.dtype, repeats: int) -> tuple[float, float, float]:
    """Milliseconds: (wall time, of it step() on the processor, of it the last from admission to done)."""
    import bitpager

    make = getattr(bitpager.optim, f"{rule}8bit")
    with session_of(bench, f"step-{rule}-{NAMES[dtype]}".lower(), *BUDGETS) as found:
        params = parameters(LLAMA, dtype)
        optimizer = make(params, lr=1e-4, session=found.session).prepare()
        time_ms = wall_ms(FreshGradients(params), optimizer.step, repeats)
        if not bool(torch.isfinite(params[0]).all()):
            raise RuntimeError("the steps left values that are not finite: not worth timing")
        found.session.synchronize()  # raises what the steps found
        call_ms = _calls_ms(FreshGradients(params), optimizer.step)
        found.session.synchronize()
        return time_ms, call_ms, found.session.last_step()["total_ns"] / 1e6


def _peer_step(bench: Bench, report: Report, work: str, make, dtype: torch.dtype, repeats: int) -> float | None:
    """A peer's figure, or None with a row that says why there is none."""
    with report.guard(work, "ms"):
        try:
            return step_ms(LLAMA, dtype, make, repeats)
        finally:
            free()
    return None


def resident(rule: str, dtype: torch.dtype):
    """A section: steps of 1e9 parameters, all states on the device."""
    work = f"{rule} 8-bit, 1e9 {NAMES[dtype]} parameters (1B-Llama shapes)"

    def run(bench: Bench, report: Report) -> None:
        limit = bench.ms_of(step_bytes(LLAMA, dtype, STATES[rule]), "copy")
        ours = None
        with report.guard(work, "ms"):
            ours, call, admitted = _ours(bench, rule, dtype, bench.repeats(21, 15))
            report.add(Row(work, "ms", ours, limit=limit))
            report.add(Row(f"{work}: of that, step() on the processor", "ms", call))
            report.add(Row(f"{work}: of that, from admission to done, as the daemon counts", "ms", admitted))
        free()

        def peer(module):
            return getattr(module.optim, f"{rule}8bit")

        with report.guard(f"{work}: bitsandbytes", "ms"):
            module = load_peer(bench.peers)
            theirs = step_ms(LLAMA, dtype, lambda p: peer(module)(p, lr=1e-4), bench.repeats(7, 5))
            report.add(Row(work, "ms", ours, theirs, f"bitsandbytes {rule}8bit", limit))
        free()
        if rule == "AdamW":
            name = f"torch fused AdamW, {NAMES[dtype]} states"
            theirs = _peer_step(bench, report, f"{work}: {name}", _torch_fused, dtype, bench.repeats(11, 7))
            report.add(Row(work, "ms", ours, theirs, name, limit))

    return run


def _mean_ms(optimizer, steps: int) -> float:
    """Mean of `steps` times [optimizer.step(); synchronize]; gradients stay."""
    for _ in range(10):
        optimizer.step()
    synchronize()
    begun = time.perf_counter_ns()
    for _ in range(steps):
        optimizer.step()
        torch.cuda.synchronize()
    return (time.perf_counter_ns() - begun) / 1e6 / steps


def _lora_of(make, steps: int = LORA_STEPS) -> tuple[float, float, float]:
    """(mean of many, median with fresh gradients and cold caches, median of what step() itself takes)."""
    params = parameters(LORA, torch.bfloat16)
    optimizer = make(params)
    fresh = FreshGradients(params)
    fresh()
    mean = _mean_ms(optimizer, steps)
    cold = wall_ms(fresh, optimizer.step, 15)
    return mean, cold, _calls_ms(fresh, optimizer.step)


def lora(bench: Bench, report: Report) -> None:
    """The adapters of a 7B model: many small tensors in one request."""
    import bitpager

    under = ", under MPS" if bench.mps else ""
    work = f"256 LoRA tensors (r 16, 7B), bf16, AdamW 8-bit{under}"
    means = f"{work}: mean of {LORA_STEPS} [step; synchronize]"
    limit = bench.ms_of(step_bytes(LORA, torch.bfloat16, 2), "copy")
    ours = (None, None, None)
    with report.guard(means, "ms"), session_of(bench, "step-lora", *BUDGETS) as found:
        ours = _lora_of(lambda p: bitpager.optim.AdamW8bit(p, lr=1e-4, session=found.session).prepare())
        found.session.synchronize()
        report.add(Row(means, "ms", ours[0], limit=limit))
        report.add(Row(f"{work}: fresh gradients, cold", "ms", ours[1], limit=limit))
        report.add(Row(f"{work}: of that, step() on the processor", "ms", ours[2]))
    free()
    with report.guard(f"{means}: torch fused", "ms"):
        theirs = _lora_of(_torch_fused)
        report.add(Row(means, "ms", ours[0], theirs[0], "torch fused AdamW, bf16 states", limit))
        report.add(Row(f"{work}: fresh gradients, cold", "ms", ours[1], theirs[1], "torch fused AdamW", limit))
    with report.guard(f"{means}: bitsandbytes", "ms"):
        module = load_peer(bench.peers)
        theirs = _lora_of(lambda p: module.optim.AdamW8bit(p, lr=1e-4), 20)
        report.add(Row(means, "ms", ours[0], theirs[0], "bitsandbytes AdamW8bit", limit))


SECTIONS = [
    Section("ceilings", ceilings, 20),
    Section("AdamW bf16", resident("AdamW", torch.bfloat16), 25),
    Section("LoRA", lora, 20),
    Section("latency", latency, 15),
    Section("AdamW fp32", resident("AdamW", torch.float32), 25),
    Section("Lion bf16", resident("Lion", torch.bfloat16), 25),
]
# Under MPS only what it changes: the time between a request and its kernel.
MPS_SECTIONS = [SECTIONS[0], SECTIONS[2], SECTIONS[3], SECTIONS[1]]


def sections(bench: Bench) -> list[Section]:
    return MPS_SECTIONS if bench.mps else SECTIONS
