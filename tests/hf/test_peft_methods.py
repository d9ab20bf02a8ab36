"""What of PEFT works over layers in pages, and what is refused in words, as docs/alternatives.md has it."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import pytest
import tiny
import torch

pytest.importorskip("peft")
import bitpager  # noqa: E402
import peft  # noqa: E402
from bitpager.hf import BitpagerConfig  # noqa: E402
from bitpager.nn import Linear4bit  # noqa: E402

KEYWORDS = dict(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
HINT = r"bitpager\.peft\.LoraConfig.*bitpager\.peft\.load_adapter.*bitpager\.peft\.adopt\(model\)"


def load(models):
    return tiny.CLASSES["llama"].from_pretrained(
        models("llama"), quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map="auto"
    )


def same_weights(model, before):
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    return all(torch.equal(layer.weight.packed(), bits) for layer, bits in zip(layers, before))


@pytest.mark.parametrize("how", ("merge_and_unload", "safe", "merge_adapter", "loaded"))
def test_merging_with_pefts_own_config_names_ours(session, models, tmp_path, how):
    model = peft.get_peft_model(load(models), peft.LoraConfig(**KEYWORDS))
    if how == "loaded":
        model.save_pretrained(tmp_path)
        model = peft.PeftModel.from_pretrained(load(models), tmp_path)
    before = [m.weight.packed() for m in model.modules() if isinstance(m, Linear4bit)]
    with pytest.raises(bitpager.UnsupportedError, match=HINT):
        if how == "merge_adapter":
            model.merge_adapter()
        else:
            model.merge_and_unload(safe_merge=how == "safe")
    assert same_weights(model, before)
    bitpager.peft.adopt(model).merge_and_unload()  # what it says works


@pytest.mark.parametrize("loaded", (False, True))
def test_dora_with_pefts_own_config_names_ours(session, models, tmp_path, loaded):
    base = load(models)
    if loaded:
        ours = bitpager.peft.LoraConfig(use_dora=True, **KEYWORDS)
        peft.get_peft_model(load(models), ours).save_pretrained(tmp_path)
    with pytest.raises(bitpager.UnsupportedError, match=HINT):
        if loaded:
            peft.PeftModel.from_pretrained(base, tmp_path)
        else:
            peft.get_peft_model(base, peft.LoraConfig(use_dora=True, **KEYWORDS))


def test_packed_bytes_that_were_read_are_an_ordinary_tensor_else(session):
    weight = Linear4bit(64, 32, compute_dtype=torch.float32).quantize_().weight
    read, packed = weight.data, weight.packed()
    for made in (read, read.clone(), weight.clone(), weight.to("cpu"), read.detach(), read.to(torch.uint8)):
        assert torch.equal(made, packed) and made.shape == packed.shape
    for made in (
        read + 1,
        read.float(),
        read[:4],
        read.view(-1),
        copy.deepcopy(read),
        pickle.loads(pickle.dumps(read)),
    ):
        assert type(made) is torch.Tensor
    with pytest.raises(bitpager.UnsupportedError, match="packed bytes.*dequantize"):
        torch.nn.functional.linear(torch.ones(1, 64), weight)
    with pytest.raises(bitpager.UnsupportedError, match="packed bytes.*dequantize"):
        read.clone().add_(torch.ones(32, 64))
    with pytest.raises(TypeError):  # no shapes: torch's own words
        torch.add(read)
    weight.data = read.clone()
    assert torch.equal(weight.packed(), packed)


WORKS = {
    "rsLoRA": lambda: peft.LoraConfig(use_rslora=True, **KEYWORDS),
    "OFT": lambda: peft.OFTConfig(**KEYWORDS),
    "BOFT": lambda: peft.BOFTConfig(**KEYWORDS),
    "VeRA": lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "FourierFT": lambda: peft.FourierFTConfig(**KEYWORDS),
    "VB-LoRA": lambda: peft.VBLoRAConfig(vector_length=16, num_vectors=8, **KEYWORDS),
    "prefixes": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]),
}


@pytest.mark.parametrize("name", WORKS)
def test_methods_give_what_they_give_over_the_dequantized_model(session, models, name):
    results = []
    for base in (load(models), load(models).dequantize()):
        torch.manual_seed(0)
        model = peft.get_peft_model(base, WORKS[name]()).eval()
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float32).to(parameter.dtype))
            adapted = model(**tiny.inputs("llama")).logits.float()
            with model.disable_adapter():
                plain = model(**tiny.inputs("llama")).logits.float()
        assert (adapted - plain).norm() > 1e-3 * plain.norm()
        results.append(adapted)
    assert (results[0] - results[1]).norm() <= 0.01 * results[1].norm()


PEER = importlib.util.find_spec("bitsandbytes") is not None
IA3 = dict(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
NOT_THERE = {
    "LoHa": lambda: peft.LoHaConfig(**KEYWORDS),
    "LoKr": lambda: peft.LoKrConfig(**KEYWORDS),
    "HRA": lambda: peft.HRAConfig(**KEYWORDS),
    "PiSSA": lambda: bitpager.peft.LoraConfig(init_lora_weights="pissa", **KEYWORDS),
    "OLoRA": lambda: bitpager.peft.LoraConfig(init_lora_weights="olora", **KEYWORDS),
    "CorDA": lambda: bitpager.peft.LoraConfig(init_lora_weights="corda", **KEYWORDS),
    "orthogonal": lambda: bitpager.peft.LoraConfig(init_lora_weights="orthogonal", **KEYWORDS),
}
if not PEER:
    NOT_THERE |= {
        "IA3": lambda: peft.IA3Config(**IA3),
        "AdaLoRA": lambda: peft.AdaLoraConfig(total_step=10, **KEYWORDS),
        "RandLoRA": lambda: peft.RandLoraConfig(**KEYWORDS),
    }


@pytest.mark.parametrize("name", NOT_THERE)
def test_methods_that_are_not_there_raise(session, models, name):
    model, inputs = load(models), tiny.inputs("llama")
    with pytest.raises(Exception) as raised:  # noqa: B017 - PEFT's own, of many kinds
        peft.get_peft_model(model, NOT_THERE[name]())(**inputs)
    # Of the method: a name that PEFT does not have would tell nothing.
    assert "module 'peft' has no attribute" not in str(raised.value), raised.value
