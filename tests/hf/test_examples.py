"""The examples run as they are, on a tiny model."""

from __future__ import annotations

import importlib.util
import pathlib
import textwrap

import pytest

pytest.importorskip("peft")
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples"


def test_qlora(session, models, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("qlora_example", FOLDER / "qlora.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    arguments = [models("llama"), textwrap.__file__, str(tmp_path / "out"), "--context", "48"]
    first = example.main([*arguments, "--steps", "4"])
    again = example.main([*arguments, "--steps", "6"])  # goes on from the newest checkpoint
    said = capsys.readouterr().out
    assert 0 < again < 8 and 0 < first < 8
    for words in ("parameters", "trainable params", "[pass] layers", "job hf"):
        assert words in said, words
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
