"""Says what the other tests of this folder need and do not find; without transformers they are not collected at all."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("name", ("transformers", "peft", "accelerate", "trl", "datasets"))
def test_installed(name):
    pytest.importorskip(name, reason=f"{name} is not installed: tests/hf runs in part or not at all")
