"""The guide out-of-memory.md: its blocks run from top to bottom in one interpreter; those that need a GPU compile."""

from __future__ import annotations

import pathlib
import re
import warnings

import bitpager

PAGE = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "docs" / "out-of-memory.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_its_blocks_run(session, capsys):
    bitpager.session._offer_default(session)
    namespace = {"__name__": "__main__"}
    run = 0
    for block in blocks():
        code = compile(block, PAGE.name, "exec")
        if block.startswith("# needs a GPU"):
            continue  # tests/gpu runs what it shows
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            exec(code, namespace)
        run += 1
    said = capsys.readouterr().out
    assert run == 3 and "0 steps were tried again" in said
    assert namespace["hooks"].phase == "idle"


def test_every_name_exists():
    for name in set(re.findall(r"bitpager\.([\w.]+)\(", PAGE.read_text())):
        thing = bitpager
        for part in name.split("."):
            thing = getattr(thing, part)
    assert "BITPAGER_GUARD_ALLOCATOR" == bitpager.allocator.SWITCH and bitpager.allocator.SWITCH in PAGE.read_text()
    assert bitpager.BudgetError and "BudgetError" in PAGE.read_text()
