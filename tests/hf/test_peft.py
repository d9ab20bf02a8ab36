"""LoRA and DoRA of PEFT over layers in pages: what trains, what is saved, what merging gives."""

from __future__ import annotations

import pytest
import tiny
import torch

pytest.importorskip("peft")
import bitpager  # noqa: E402
import peft  # noqa: E402
from bitpager.hf import BitpagerConfig  # noqa: E402
from bitpager.nn import Linear4bit  # noqa: E402
from bitpager.peft import LoraConfig, LoraLinear4bit, adopt, load_adapter, lora_config  # noqa: E402

LORA = dict(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)


def load(models, name="llama", **keywords):
    return tiny.CLASSES[name].from_pretrained(
        models(name), quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map="auto", **keywords
    )


def stir(model):
    """Adapters as after some training: B is zero and A random when they are new."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(0, 0.05)
    return model.eval()


def logits(model, name="llama"):
    with torch.no_grad():
        return model(**tiny.inputs(name)).logits.float()


def base_layers(model):
    return [m for m in model.modules() if isinstance(m, Linear4bit)]


@pytest.mark.parametrize("name", ("llama", "mistral", "bert", "t5"))
def test_stock_lora_trains_over_pages(session, models, name, capsys):
    model = load(models, name)
    before = [layer.weight.packed() for layer in base_layers(model)]
    model = peft.prepare_model_for_kbit_training(model)
    assert model.is_gradient_checkpointing
    kind = {"t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}.get(name, "CAUSAL_LM")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=kind, **LORA))
    plain = peft.get_peft_model(
        tiny.CLASSES[name].from_pretrained(models(name)), peft.LoraConfig(task_type=kind, **LORA)
    )
    assert model.get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()
    assert model.num_parameters() == plain.num_parameters()
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = bitpager.optim.PagedAdamW8bit(trained, lr=5e-3)
    inputs = tiny.inputs(name)
    if name == "bert":
        inputs["labels"] = torch.tensor([0, 1])
    elif name == "t5":
        inputs["labels"] = inputs.pop("decoder_input_ids").contiguous()
    else:
        inputs["labels"] = inputs["input_ids"]
    losses = []
    for _ in range(8):
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(layer.weight.packed(), bits) for layer, bits in zip(base_layers(model), before))


def test_adapters_save_and_load_without_us(session, models, tmp_path):
    model = stir(peft.get_peft_model(load(models), LoraConfig(task_type="CAUSAL_LM", **LORA)))
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size < 4 * 4 * sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert "bitpager" not in (tmp_path / "adapter_config.json").read_text()
    assert torch.equal(logits(load_adapter(load(models), tmp_path)), wanted)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(load(models), tmp_path)), wanted)


@pytest.mark.parametrize("how", ("ours", "adopted", "loaded", "dora"))
def test_merging_adds_the_adapter_and_quantizes_again(session, models, how, tmp_path):
    keywords = dict(task_type="CAUSAL_LM", **LORA)
    if how == "adopted":
        model = peft.get_peft_model(load(models), peft.LoraConfig(**keywords))
    else:
        model = peft.get_peft_model(load(models), LoraConfig(use_dora=how == "dora", **keywords))
    stir(model)
    if how == "loaded":
        model.save_pretrained(tmp_path)
        model = load_adapter(load(models), tmp_path)
    if how == "adopted":
        adopt(model)
    wrapped = {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear4bit)}
    assert len(wrapped) == 14
    before = logits(model)
    name, one = next(iter(wrapped.items()))
    delta = one.get_delta_weight("default").float()
    base = one.base_layer.dequantize().float()
    merged = model.merge_and_unload(safe_merge=True)
    layers = base_layers(merged)
    assert len(layers) == 14 and not any(isinstance(m, LoraLinear4bit) for m in merged.modules())
    if how != "dora":
        wanted = bitpager.functional.quantize_4bit(
            (base + delta).to(torch.bfloat16), quant_type="nf4", compress_statistics=True
        )[0]
        assert torch.equal(merged.get_submodule(name.removeprefix("base_model.model.")).weight.packed(), wanted)
    after = logits(merged)
    plain = logits(load(models))
    # Merged outputs are nearer to base plus adapter than the base alone is; what is left is rounding to 4 bits.
    assert (after - before).norm() < 0.7 * (plain - before).norm()
    merged.save_pretrained(tmp_path / "merged")
    again = tiny.CLASSES["llama"].from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), after)


def test_merging_can_be_undone_within_rounding(session, models):
    model = stir(peft.get_peft_model(load(models), LoraConfig(task_type="CAUSAL_LM", **LORA)))
    before = logits(model)
    model.merge_adapter()
    with model.disable_adapter():  # takes the merged adapter off again
        pass
    model.unmerge_adapter()
    assert (logits(model) - before).norm() < 0.5 * before.norm()


def test_stock_lora_does_not_merge_silently_into_codes(session, models):
    model = stir(peft.get_peft_model(load(models), peft.LoraConfig(task_type="CAUSAL_LM", **LORA)))
    before = [layer.weight.packed() for layer in base_layers(model)]
    with pytest.raises(bitpager.UnsupportedError, match=r"bitpager\.peft\.LoraConfig.*bitpager\.peft\.adopt\(model\)"):
        model.merge_and_unload()
    assert all(torch.equal(layer.weight.packed(), bits) for layer, bits in zip(base_layers(model), before))


@pytest.mark.parametrize("dropout", (0.0, 0.1))
def test_dora_equals_dora_over_the_dequantized_model(session, models, dropout):
    keywords = dict(LORA, task_type="CAUSAL_LM", use_dora=True, lora_dropout=dropout)
    model = peft.get_peft_model(load(models), LoraConfig(**keywords))
    plain = peft.get_peft_model(load(models).dequantize(), peft.LoraConfig(**keywords))
    results = []
    for made in (model, plain):
        stir(made).train()
        torch.manual_seed(9)
        loss = made(**tiny.inputs("llama"), labels=tiny.inputs("llama")["input_ids"]).loss
        loss.backward()
        results.append((loss.item(), {n: p.grad.float() for n, p in made.named_parameters() if p.requires_grad}))
    assert abs(results[0][0] - results[1][0]) < 2e-2 * abs(results[1][0])
    assert results[0][1].keys() == results[1][1].keys() and any("magnitude" in name for name in results[0][1])
    for name, grad in results[1][1].items():
        assert (results[0][1][name] - grad).norm() <= 0.1 * grad.norm() + 1e-4, name


def test_several_adapters_and_switching(session, models):
    model = peft.get_peft_model(load(models), LoraConfig(task_type="CAUSAL_LM", **LORA))
    stir(model)
    first = logits(model)
    model.add_adapter("second", lora_config(peft.LoraConfig(task_type="CAUSAL_LM", **LORA)))
    model.set_adapter("second")
    assert not torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(load(models)))
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_bad_use_is_refused_in_words():
    with pytest.raises(ValueError, match="either a config or its arguments"):
        lora_config(peft.LoraConfig(), r=4)
