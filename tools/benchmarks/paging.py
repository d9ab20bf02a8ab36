"""Group paging: the same step with all, half and one window of its pages resident; bytes moved and time."""

from __future__ import annotations

import statistics
import time

import torch
from machine import Setting, cool, session_of
from optimizers import FreshGradients, parameters, step_ms, torch_fused
from rows import Row

SIDE = 2048
TENSORS = 24
ELEMENTS = TENSORS * SIDE * SIDE
SCALED = 1e9 / ELEMENTS
PAGE_BYTES = 512 << 10
WINDOW_PAGES = 32
STEPS = 9
WARM_STEPS = 3


def _measure(setting: Setting, frames: int) -> dict:
    """Medians over steps at a device budget of `frames` pages."""
    import bitpager

    flags = ["--device-budget", str(frames * PAGE_BYTES), "--host-budget", "3GiB", "--page-size", str(PAGE_BYTES)]
    flags += ["--window-pages", str(WINDOW_PAGES)]
    params = parameters([(SIDE, SIDE)] * TENSORS, torch.float32)
    fresh, rows = FreshGradients(params), []
    with session_of(setting, f"paging-{frames}", *flags) as session:
        optimizer = bitpager.optim.PagedAdamW8bit(params, lr=1e-3, session=session).prepare()
        for _ in range(WARM_STEPS + STEPS):
            fresh()
            cool()
            before = session.memory_stats()
            begun = time.perf_counter_ns()
            optimizer.step()
            wall_ms = (time.perf_counter_ns() - begun) / 1e6
            after = session.memory_stats()
            rows.append((
                wall_ms,
                (after["loaded_bytes"] - before["loaded_bytes"]) / PAGE_BYTES,
                (after["stored_bytes"] - before["stored_bytes"]) / PAGE_BYTES,
                (after["stall_ns"] - before["stall_ns"]) / 1e6,
            ))  # fmt: skip
    wall_ms, pages_in, pages_out, stall_ms = (statistics.median(column) for column in zip(*rows[WARM_STEPS:]))
    return {
        "ms": wall_ms,
        "in": pages_in,
        "out": pages_out,
        "stall": stall_ms,
        "pages": after["pages"],
    }


def run(setting: Setting) -> list[Row]:
    base = step_ms([(SIDE, SIDE)] * TENSORS, torch.float32, torch_fused) * SCALED
    full = _measure(setting, 4096 // 4)
    pages = full["pages"]
    rows = []
    for name, frames in (("100%", pages), ("50%", pages // 2), ("one window", WINDOW_PAGES)):
        run_ = full if frames == pages else _measure(setting, frames)
        optimum = max(0, pages - frames)
        # A step reads and writes 16 bytes a parameter and the scales; a page moved is read and written once more.
        step_bytes = ELEMENTS * (12 + 4 * (1 + 4 / 256))
        limit = (step_bytes + 4 * optimum * PAGE_BYTES) / setting.ceiling * 1e3
        label = f"AdamW 8-bit fp32, {name} of {pages} pages resident"
        unit = "ms per 1e9 (scaled)"
        rows.append(Row(label, unit, run_["ms"] * SCALED, base, "torch fused AdamW fp32, resident", limit * SCALED))
        rows.append(Row(f"{label}: pages in", "pages a step", run_["in"], limit=float(optimum)))
        rows.append(Row(f"{label}: pages out", "pages a step", run_["out"], limit=float(optimum)))
        rows.append(Row(f"{label}: stalled", unit, run_["stall"] * SCALED))
    return rows
