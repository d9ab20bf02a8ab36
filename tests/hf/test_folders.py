"""Folders of models: sharded floats, models that were quantized in place; and where a device map puts pages."""

from __future__ import annotations

import json

import bitpager
import pytest
import tiny
import torch
from bitpager.hf import BitpagerConfig
from bitpager.hf.quantizer import keep_pages_home
from bitpager.nn import Linear4bit


def load(folder, name="llama"):
    return tiny.CLASSES[name].from_pretrained(
        folder, quantization_config=BitpagerConfig(), device_map="auto", dtype=torch.bfloat16
    )


@pytest.mark.parametrize("name", ("llama", "t5", "gpt2"))
def test_sharded_floats_are_quantized_as_one_file_is(session, models, tmp_path, name):
    tiny.make(name).save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) > 2
    wanted, got = load(models(name), name).state_dict(), load(tmp_path, name).state_dict()
    assert list(got) == list(wanted) and any(key.endswith("weight.absmax") for key in got)
    for key, tensor in wanted.items():
        assert got[key].dtype == tensor.dtype and torch.equal(got[key], tensor), key


def test_a_model_quantized_in_place_loads_again_when_its_config_says_so(session, models, tmp_path):
    """As client/python/docs/formats.md has it."""
    model = tiny.CLASSES["llama"].from_pretrained(models("llama"), dtype=torch.bfloat16).eval()
    names = bitpager.nn.quantize_(model, skip=["lm_head"], compute_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "silent")
    assert "quantization_config" not in json.loads((tmp_path / "silent" / "config.json").read_text())
    with pytest.raises(RuntimeError, match="mismatch"):
        tiny.CLASSES["llama"].from_pretrained(tmp_path / "silent")
    model.config.quantization_config = BitpagerConfig(skip_modules=["lm_head"])
    model.save_pretrained(tmp_path / "said")
    again = tiny.CLASSES["llama"].from_pretrained(tmp_path / "said").eval()
    layers = {name for name, module in again.named_modules() if isinstance(module, Linear4bit)}
    assert layers == set(names)
    with torch.no_grad():
        logits = [made(**tiny.inputs("llama")).logits for made in (model, again)]
    assert torch.equal(*logits)


def test_what_a_device_map_sends_away_becomes_pages_of_its_first_gpu(session, models):
    """So max_memory caps no pages; see client/python/docs/several-jobs.md. Modules on other GPUs stay there."""
    model = load(models("llama"))
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": 1, "lm_head": 0}
    device_map["model.layers.1.self_attn"] = 0
    device_map["model.layers.1.mlp"] = 1
    keep_pages_home(model, device_map)
    assert device_map["model.layers.0"] == 1  # the first that the map names
    assert device_map["model.embed_tokens"] == "cpu"  # holds no quantized layer
    assert device_map["model.layers.1.self_attn"] == 0 and device_map["model.layers.1.mlp"] == 1
