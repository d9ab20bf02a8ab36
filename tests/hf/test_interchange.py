"""Checkpoints between bitsandbytes and here. The recorded ones (tests/golden/bnb-llama: bitsandbytes 0.50.2 through
transformers 5.23, with what bitsandbytes dequantizes and computes) are enough; where bitsandbytes is installed, it
reads and writes itself."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import bitpager
import pytest
import tiny
import torch
import transformers
from bitpager.hf import BitpagerConfig, config_for, save_for_bitsandbytes
from bitpager.nn import Linear4bit
from safetensors.torch import load_file

RECORDED = pathlib.Path(__file__).resolve().parents[1] / "golden" / "bnb-llama"
KINDS = {"nf4": True, "fp4": False}
needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed; recorded files are tested"
)


def take_over(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, config=config_for(folder), device_map="auto")


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def same_files(one, two):
    """Tensor for tensor; what is JSON in a tensor is compared as JSON."""
    theirs, ours = load_file(one), load_file(two)
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        if "bitsandbytes__" in key:
            assert json.loads(bytes(tensor.tolist())) == json.loads(bytes(ours[key].tolist())), key
        else:
            assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("kind, double", KINDS.items())
def test_recorded_checkpoints_load_and_go_back_bit_for_bit(session, tmp_path, kind, double):
    model = take_over(RECORDED / kind)
    expected = load_file(RECORDED / kind / "expected.safetensors")
    layers = layers_of(model)
    assert len(layers) == 7
    for name, layer in layers.items():
        assert layer.quant_type == kind and layer.compress_statistics == double
        assert torch.equal(layer.dequantize(), expected[name]), name
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"]).logits
    assert (logits - expected["logits"]).abs().max() <= 0.02 * expected["logits"].abs().max()
    save_for_bitsandbytes(model, tmp_path)
    same_files(RECORDED / kind / "model.safetensors", tmp_path / "model.safetensors")
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    was = json.loads((RECORDED / kind / "config.json").read_text())["quantization_config"]
    for key in ("quant_method", "load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"):
        assert said[key] == was[key], key
    again = take_over(tmp_path)
    assert all(torch.equal(layer.dequantize(), expected[name]) for name, layer in layers_of(again).items())


def test_other_checkpoints_pass_or_are_refused(session, models, tmp_path):
    plain = config_for(models("llama"))
    assert getattr(plain, "quantization_config", None) is None
    config = json.loads((RECORDED / "nf4" / "config.json").read_text())
    config["quantization_config"] |= {"load_in_8bit": True, "load_in_4bit": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(bitpager.UnsupportedError, match="8-bit"):
        config_for(tmp_path)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(bitpager.UnsupportedError, match="gptq"):
        config_for(tmp_path)


def test_the_peers_checkpoint_with_our_config_says_how_to_take_it_over(session, models):
    """transformers alone would ask for the peer's config class."""
    with pytest.raises(ValueError, match=r"config=bitpager\.hf\.config_for\(path\)\), without quantization_config"):
        transformers.AutoModelForCausalLM.from_pretrained(RECORDED / "nf4", quantization_config=BitpagerConfig())
    peers = transformers.BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(ValueError, match="pass the same quantization config class"):
        transformers.AutoModelForCausalLM.from_pretrained(
            RECORDED / "nf4", config=config_for(RECORDED / "nf4"), quantization_config=peers
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(models("llama"), quantization_config=BitpagerConfig())
    assert layers_of(model)


def test_saving_for_the_peer_refuses_what_it_does_not_read(session, models, tmp_path):
    with pytest.raises(ValueError, match="no quantized layer"):
        save_for_bitsandbytes(tiny.make("llama"), tmp_path)
    wide = transformers.AutoModelForCausalLM.from_pretrained(
        models("llama"), quantization_config=BitpagerConfig(blocksize=128)
    )
    with pytest.raises(ValueError, match="block size 64"):
        save_for_bitsandbytes(wide, tmp_path)


@needs_peer
@pytest.mark.parametrize("kind, double", KINDS.items())
@pytest.mark.parametrize("name", ("llama", "t5"))
def test_the_peer_reads_ours_and_writes_the_same(session, models, tmp_path, name, kind, double):
    import bitsandbytes

    model = tiny.CLASSES[name].from_pretrained(
        models(name), quantization_config=BitpagerConfig(quant_type=kind, double_quant=double), dtype=torch.bfloat16
    )
    save_for_bitsandbytes(model, tmp_path / "ours")
    theirs = tiny.CLASSES[name].from_pretrained(tmp_path / "ours", device_map="cpu")
    read = {n: m for n, m in theirs.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert read.keys() == layers_of(model).keys()
    for key, layer in layers_of(model).items():
        weight = read[key].weight
        assert torch.equal(weight.data, layer.weight.packed()), key
        values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(values, layer.dequantize()), key
    fresh = tiny.CLASSES[name].from_pretrained(
        models(name),
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
        ),
        device_map="cpu",
        dtype=torch.bfloat16,
    )
    fresh.save_pretrained(tmp_path / "fresh")
    names = [load_file(tmp_path / folder / "model.safetensors").keys() for folder in ("fresh", "ours")]
    assert names[0] == names[1]
    taken = tiny.CLASSES[name].from_pretrained(tmp_path / "fresh", config=config_for(tmp_path / "fresh"))
    peers = dict(fresh.named_modules())
    for key, layer in layers_of(taken).items():
        weight = peers[key].weight
        assert torch.equal(weight.data, layer.weight.packed()), key
        values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(values, layer.dequantize()), key
    # Two quantizers of one model may part at near ties; FP4's two zeros are one value.
    pairs = [(layer.dequantize(), layers_of(model)[key].dequantize()) for key, layer in layers_of(taken).items()]
    differing = sum(int((one != two).sum()) for one, two in pairs)
    assert differing <= 0.004 * sum(one.numel() for one, _ in pairs)
