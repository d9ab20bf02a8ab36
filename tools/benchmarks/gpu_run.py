"""Entry of the GPU groups."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path

from gpu_machine import Bench
from gpu_mps import mps
from gpu_sections import run_sections
from rows import Row

GROUPS = ("gpu-step", "gpu-paged", "gpu-quant", "gpu-train", "gpu-oom")


def run(group: str, bench: Bench, keep: Callable[[list[Row]], None]) -> list[Row]:
    """The group's rows; keep(rows so far) is called after each."""
    module = importlib.import_module(group.replace("-", "_"))
    print(f"\n{group}: wall time of the client through the daemon, fresh gradients, cold caches, median", flush=True)
    try:
        with mps() if bench.mps else contextlib.nullcontext():
            return run_sections(bench, module.sections(bench), module.LIMIT_S, keep)
    except RuntimeError as error:  # of mps(): sections keep theirs to themselves
        row = Row(f"{group} under MPS", "-", None, error=str(error))
        keep([row])
        return [row]


def bench_of(programs: Path, logs: Path, peers: Path, quick: bool, under_mps: bool, tiny_cpu: bool = False) -> Bench:
    return Bench(programs.resolve(), logs, peers.resolve(), quick, under_mps, tiny_cpu)
