"""The examples run as they are, on tiny models. (lightning_module.py: tests/python/test_lightning.py.)"""

from __future__ import annotations

import importlib.util
import pathlib
import textwrap

import pytest

pytest.importorskip("peft")
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples"
TESTED = {"full_finetune", "lightning_module", "plain_torch", "qlora", "shared_jobs"}


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == TESTED


def test_qlora(session, models, tmp_path, capsys):
    example = load("qlora")
    arguments = [models("llama"), textwrap.__file__, str(tmp_path / "out"), "--context", "48"]
    first = example.main([*arguments, "--steps", "4"])
    again = example.main([*arguments, "--steps", "6"])  # goes on from the newest checkpoint
    said = capsys.readouterr().out
    assert 0 < again < 8 and 0 < first < 8
    for words in ("parameters", "trainable params", "[pass] layers", "job hf"):
        assert words in said, words
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_full_finetune_goes_on_bit_for_bit(session, models, tmp_path, capsys):
    from safetensors.torch import load_file

    example = load("full_finetune")
    arguments = [models("llama"), textwrap.__file__]
    example.main([*arguments, str(tmp_path / "whole"), "--context", "48", "--steps", "8"])
    said = capsys.readouterr().out
    assert "may leave the GPU" in said and "job hf" in said
    whole = tmp_path / "whole"
    for late in ("checkpoint-6", "checkpoint-8"):  # as if it had been stopped after step 4
        (whole / late).rename(tmp_path / late)
    (whole / "model").rename(tmp_path / "model")
    example.main([*arguments, str(whole), "--context", "48", "--steps", "8"])
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, whole))
    assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    start = load_file(pathlib.Path(models("llama")) / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    assert not one[key].equal(start[key])


def test_plain_torch(session, tmp_path, capsys):
    import torch

    example = load("plain_torch")
    whole = example.main([str(tmp_path / "whole"), "--steps", "40"])
    example.main([str(tmp_path / "parts"), "--steps", "25"])
    parts = example.main([str(tmp_path / "parts"), "--steps", "40"])
    assert whole == parts < 0.6
    one, two = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    assert "steps 25 to 40" in capsys.readouterr().out


def test_shared_jobs(tmp_path, capsys):
    report = load("shared_jobs").main(["--steps", "6"])
    assert report["equal to a run alone, bit for bit"]
    for job in ("first", "second"):
        figures = report[job]
        assert figures["loaded_bytes"] > 0 and figures["stored_bytes"] > 0  # there was not room for all
        assert figures["resident_state_bytes"] < figures["state_bytes"]
