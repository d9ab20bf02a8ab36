"""The quickstart job's own parts, without a daemon: text, model, progress of child processes, and the verdict."""

import copy
import json
import queue
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "quickstart_job"))

import model as models  # noqa: E402
import progress  # noqa: E402
import report  # noqa: E402
import settings  # noqa: E402
import text  # noqa: E402

BUDGET_BYTES = 100 * settings.PAGE_BYTES
JOB = {
    "pages": 300,
    "parameters": 11_000_000,
    "pages_in": 900.0,
    "pages_out": 900.0,
    "heldout": [(0, 5.5), (140, 2.6)],
    "losses": [5.5, 2.7],
    "unigram": 3.1,
    "sha256": "ab" * 32,
    "perplexity": {"bf16": 12.0, "nf4": 12.1},
}


def verdict(**changes):
    """The failing sentences when `changes` (dotted: job.key) are made to three good results."""
    jobs = {"full": copy.deepcopy(JOB), "qlora": copy.deepcopy(JOB), "again": {**copy.deepcopy(JOB), "pages_in": 0.0}}
    for place, value in changes.items():
        job, key = place.split("__")
        jobs[job][key] = value
    checks = report.verdict(jobs["full"], jobs["qlora"], jobs["again"], BUDGET_BYTES)
    return [sentence for holds, sentence in checks if not holds]


def test_good_results_hold():
    assert verdict() == []


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("full__pages", 150, "(a) has 150 pages"),
        ("qlora__pages", 199, "(b) has 199 pages"),
        ("full__parameters", 9_999_999, "million parameters"),
        ("full__pages_in", 0.0, "(a) had pages moved both ways"),
        ("qlora__pages_out", 0.0, "(b) had pages moved both ways"),
        ("full__heldout", [(0, 5.5), (140, 3.9)], "(a) held-out loss"),
        ("qlora__heldout", [(0, 5.0), (100, 3.6)], "(b) held-out loss"),
        ("full__unigram", 2.6, "unigram entropy"),
        ("again__pages_in", 1.0, "everything resident"),
        ("again__perplexity", {"bf16": 12.0, "nf4": 12.2}, "perplexity"),
        ("again__losses", [5.5, 2.7000000000000006], "the same losses"),
        ("again__sha256", "ac" * 32, "the same parameters"),
    ],
)
def test_each_broken_promise_is_named(change, value, words):
    failing = verdict(**{change: value})
    assert any(words in sentence for sentence in failing), failing


def test_budget_of_half_the_pages_is_too_much():
    jobs = [{**JOB, "pages": 105}, {**JOB, "pages": 105}, {**JOB, "pages_in": 0.0}]
    checks = report.verdict(*jobs, BUDGET_BYTES)
    assert any("device budget" in sentence for holds, sentence in checks if not holds)


def test_texts_are_large_enough_and_held_out():
    code, names = text.code(), text.names()
    assert len(code.train) > 1 << 20 and len(code.heldout) > 1 << 16
    trained = set(bytes(names.train.numpy()).splitlines())
    held = bytes(names.heldout.numpy()).splitlines()
    assert len(held) > 1000 and not trained.intersection(held)


def test_unigram_entropy_of_two_equal_bytes_is_ln_2():
    assert text.unigram_entropy(torch.tensor([7, 9] * 50, dtype=torch.uint8)) == pytest.approx(0.693147, abs=1e-6)


def test_model_has_its_ten_million_parameters_and_starts_uniform():
    torch.manual_seed(0)
    model = models.ByteModel(models.Shape(context=settings.CONTEXT))
    assert sum(p.numel() for p in model.parameters()) >= 10_000_000
    windows = torch.randint(256, (2, settings.CONTEXT + 1))
    assert models.loss_of(model, windows).item() == pytest.approx(5.545, abs=1e-3)


def test_lora_starts_as_its_base_and_trains_alone():
    torch.manual_seed(0)
    model = models.ByteModel(models.Shape(context=8, width=32, heads=2, layers=1))
    torch.nn.init.normal_(model.head.weight)
    windows = torch.randint(256, (2, 9))
    before = models.loss_of(model, windows).item()
    models.wrap_linears(model, lambda linear: linear, 4, 8.0)
    loss = models.loss_of(model, windows)
    assert loss.item() == before
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.endswith((".a", ".b")) for name in trained) and len(trained) == 10


def child(tmp_path, events, code: str, name: str = "job") -> progress.Job:
    return progress.Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", events)


def test_progress_collects_results_and_other_events(tmp_path, capsys):
    events = queue.Queue()
    lines = [{"event": "step", "step": 20, "steps": 20, "loss": 1.0, "heldout": 2.0}, {"event": "base"}]
    code = f"import json\nfor e in {lines!r}: print(json.dumps(e))\nprint(json.dumps(dict(event='result', x=3)))"
    jobs, seen = [child(tmp_path, events, code)], []
    progress.follow(jobs, events, lambda job, kind: seen.append(kind))
    assert jobs[0].result == {"x": 3} and seen == ["base"]
    assert "20/20" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["raise SystemExit('the cause')", "import sys; print('the cause', file=sys.stderr)"])
def test_progress_says_why_a_job_died(tmp_path, code):
    events = queue.Queue()
    waiting = child(tmp_path, events, "import time; time.sleep(60)", "other")
    failing = child(tmp_path, events, code, "failing")
    with pytest.raises(RuntimeError, match="(?s)failing ended with .*the cause"):
        progress.follow([waiting, failing], events, lambda job, kind: None)
    assert waiting._process.poll() is not None, "the other job must not outlive the failure"


def test_results_survive_json_bit_for_bit():
    losses = torch.randn(100, generator=torch.Generator().manual_seed(1)).exp().tolist()
    assert json.loads(json.dumps(losses)) == losses
