"""gpu-train and gpu-oom on the processor with models of no size: that they run to their last row, and nothing more."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import warnings

import pytest
import python_fixtures

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = [str(ROOT / "tools"), str(ROOT / "tools" / "benchmarks")]
PEER = "bitsandbytes"

sys.path[:0] = TOOLS


class Report:
    """Takes rows as gpu_sections.Report does; what fails is raised, unless it concerns the peer, which is not here."""

    def __init__(self):
        self.rows = []

    def add(self, row):
        assert row.error is None, row
        self.rows.append(row)

    def tell(self, name, value):
        pass

    def guard(self, work, unit="-"):
        import contextlib

        return contextlib.suppress(ImportError) if PEER in work else contextlib.nullcontext()


@pytest.fixture
def bench(tmp_path):
    from gpu_machine import Bench

    return Bench(python_fixtures.BUILD / "bin", tmp_path, tmp_path / "no-peers", quick=True, tiny_cpu=True)


# section -> rows without a peer
TRAIN = {"QLoRA": 6, "full training": 3, "memory": 3, "loading": 1}
OOM = {"spike, kept": 2, "spike, given back": 2, "guard": 2}


@pytest.mark.parametrize("group, name", [("gpu_train", n) for n in TRAIN] + [("gpu_oom", n) for n in OOM])
def test_sections_run_to_their_end(bench, group, name):
    import importlib

    import torch

    module = importlib.import_module(group)
    section = next(s for s in module.sections(bench) if s.name == name)
    report = Report()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            section.run(bench, report)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(report.rows) == {**TRAIN, **OOM}[name]
    if name.startswith("spike"):
        assert report.rows[1].ours == 0, "the parameters differ"


class Stream:
    """Stands for a GPU's; the processor does everything in order."""

    def wait_stream(self, other):
        assert isinstance(other, Stream)


def test_steps_inside_backward(bench, monkeypatch):
    import contextlib

    import gpu_llama
    import gpu_train
    import torch

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    place = gpu_llama.place_of(bench)
    with gpu_train._full(place, gpu_llama.TINY, "inside", None) as (found, model, ids):
        before = [p.detach().clone() for p in model.parameters()]
        ms, pages_in, pages_out = gpu_train._inside(place, found, model, ids, 2)
        assert ms > 0 and all(p.grad is None for p in model.parameters())
        assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before) if p.dim() > 1)


def test_two_jobs_at_once(tmp_path):
    """In a process of its own, as it forks."""
    source = f"""
import sys, pathlib
sys.path[:0] = {TOOLS!r}
from gpu_llama import SEVEN
from gpu_machine import Bench
from gpu_sections import Report
from gpu_pair import pair
class Rows(Report):
    def __init__(self): pass
    def add(self, row): print(row.work if row.error is None else f"FAILED {{row}}", flush=True)
here, programs = pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(python_fixtures.BUILD / "bin")!r})
pair(SEVEN)(Bench(programs, here, here / "none", quick=True, tiny_cpu=True), Rows())
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=240)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in lines if "memory of the card" in line], done.stdout + done.stderr[-3000:]
    assert all(PEER in line for line in lines if line.startswith("FAILED")), done.stdout


@pytest.mark.parametrize("group", ["gpu_train", "gpu_oom"])
def test_every_section_can_be_run_alone(bench, group):
    import importlib

    import gpu_run

    sections = importlib.import_module(group).sections(bench)
    for section in sections:
        assert [s.name for s in gpu_run.chosen(sections, [section.name])] == [section.name]


def test_groups_are_known():
    import gpu_run

    command = [sys.executable, str(ROOT / "tools" / "benchmarks"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    said = said.replace("\n", " ").replace("- ", "-")
    assert "gpu-step, gpu-paged" in " ".join(said.split()) and "--tiny-cpu" not in said
    assert {"gpu-train", "gpu-oom"} <= set(gpu_run.GROUPS)
