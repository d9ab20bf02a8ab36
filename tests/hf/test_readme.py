"""The README's blocks: Python is run with tiny stand-ins, from top to bottom; its C++ is what tests/client builds."""

from __future__ import annotations

import pathlib

import bitpager
import guide
import pytest
import tiny

pytest.importorskip("peft")
ROOT = pathlib.Path(__file__).resolve().parents[2]
# What the README takes for granted, and what a test has no time for.
RULES = [
    ("range(10)", "range(3)"),
    (
        'TrainingArguments("out", ',
        'TrainingArguments("out", max_steps=2, use_cpu=True, disable_tqdm=True, report_to=[], ',
    ),
]


@pytest.fixture
def page():
    made = guide.Page(ROOT / "README.md")
    made.rules = RULES
    assert not made.idle_rules()
    return made


def test_python_blocks_run(page, session, shared_daemon, models, tmp_path, monkeypatch):
    bitpager.disconnect()
    monkeypatch.setenv("BITPAGER_SOCKET", shared_daemon.socket)
    monkeypatch.setenv("BITPAGER_JOB", "readme")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in page.blocks if block.kind == guide.RUN]
    assert len(blocks) == 2
    first = guide.run_python(page, blocks[0], page.substituted(blocks[0].code, {}), {"__name__": "__main__"})
    assert "readme" in first  # the summary that it prints
    given = {"__name__": "__main__", "name": models("llama"), "data": tiny.Windows(8, 32)}
    printed = guide.run_python(page, blocks[1], page.substituted(blocks[1].code, {}), given)
    assert "[pass] layers" in printed and "[pass] adapters" in printed and "[FAIL]" not in printed
    assert given["model"].get_base_model().config.quantization_config.double_quant


def test_the_first_program_of_cplusplus_is_the_one_that_is_built(page):
    block = next(block for block in page.blocks if block.kind == "cpp" and "int main" in block.code)
    built = (ROOT / "tests" / "client" / "consumer_project" / "step.cc").read_text()
    lines = [line.strip() for line in block.code.splitlines() if line.strip()]
    for line in lines:
        if "return" not in line:  # there the test says more
            assert line in built, line
