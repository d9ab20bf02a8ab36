"""Entry of the GPU groups."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path

from gpu_machine import Bench
from gpu_mps import mps
from gpu_sections import Section, run_sections
from rows import Row

GROUPS = ("gpu-step", "gpu-paged", "gpu-quant", "gpu-train", "gpu-oom")


def chosen(sections: list[Section], only: list[str] | None) -> list[Section]:
    """The ceilings, which the others are set against, and those with one of `only` in their name; None: all."""
    if not only:
        return sections
    found = [s for s in sections if any(text.lower() in s.name.lower() for text in only)]
    if not found:
        raise SystemExit(f"--only {only}: no section is called so; there are: {', '.join(s.name for s in sections)}")
    return [s for s in sections if s in found or s.name == "ceilings"]


def run(group: str, bench: Bench, keep: Callable[[list[Row]], None], only: list[str] | None = None) -> list[Row]:
    """The group's rows; keep(rows so far) is called after each. only: see chosen()."""
    module = importlib.import_module(group.replace("-", "_"))
    sections = chosen(module.sections(bench), only)
    print(f"\n{group}: wall time of the client through the daemon, fresh gradients, cold caches, median", flush=True)
    try:
        with mps() if bench.mps else contextlib.nullcontext():
            return run_sections(bench, sections, module.LIMIT_S, keep)
    except RuntimeError as error:  # of mps(): sections keep theirs to themselves
        row = Row(f"{group} under MPS", "-", None, error=str(error))
        keep([row])
        return [row]


def bench_of(programs: Path, logs: Path, peers: Path, quick: bool, under_mps: bool, tiny_cpu: bool = False) -> Bench:
    return Bench(programs.resolve(), logs, peers.resolve(), quick, under_mps, tiny_cpu)
