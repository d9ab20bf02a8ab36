"""audit() and plan(): what they find and say."""

from __future__ import annotations

import json
import math
import sys
import warnings

import bitpager
import pytest
import tiny
import torch
import transformers
from bitpager.hf import BitpagerConfig, audit
from bitpager.plan import main, plan, shape_of


def load(models, name="llama", shape=None, dtype=torch.bfloat16, **changes):
    return transformers.AutoModelForCausalLM.from_pretrained(
        models(name, **(shape or {})), quantization_config=BitpagerConfig(**changes), dtype=dtype
    )


DEEP = {"intermediate_size": 1024}  # most of the model is linear layers, as in a large one


def test_a_model_that_is_set_up_well_passes(session, models, capsys):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        peft.prepare_model_for_kbit_training(load(models, shape=DEEP)),
        bitpager.peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    optimizer = bitpager.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # names that transformers has given up are not read
        report = audit(model, optimizer)
    assert report.passed, str(report)
    names = [line.name for line in report.lines]
    for name in ("layers", "memory", "type", "double quantization", "training", "adapters", "numbers", "optimizer"):
        assert name in names and report[name].passed, name
    assert report["checkpointing"].passed
    line = report["compute dtype"]
    assert line.passed and line.text.startswith("bfloat16; the rest is float32, as prepare_model_for_kbit_training")
    room = bitpager.sizes.print_bytes(session.memory_stats()["resident_bytes"])
    assert room in report["room"].text and "1,024 tokens" in report["room"].text
    printed = capsys.readouterr().out
    assert printed.strip() == str(report) and printed.count("[pass]") >= 9


def test_mistakes_are_named_with_their_fix(session, models, capsys):
    plain = audit(tiny.make("llama"), print_lines=False)
    assert not plain.passed and "import bitpager.hf before" in plain["layers"].fix
    with pytest.warns(UserWarning, match="compute_dtype"):
        model = load(models, quant_type="fp4", double_quant=False, compute_dtype=torch.float16)
    model.train()
    report = audit(model, torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), print_lines=False)
    assert not capsys.readouterr().out
    assert 'quant_type="nf4"' in report["type"].fix and report["type"].passed is False
    assert report["compute dtype"].passed is False and "float16" in report["compute dtype"].text
    assert report["training"].passed is False and "get_peft_model" in report["training"].fix
    line = report["double quantization"]
    layers = [m for m in model.modules() if isinstance(m, bitpager.nn.Linear4bit)]
    weights = sum(m.in_features * m.out_features for m in layers)
    blocks = math.ceil(weights / 64)
    assert "by double quantization" in report["room"].text
    assert line.passed is None and bitpager.sizes.print_bytes(3 * blocks - 4 * math.ceil(blocks / 256)) in line.text
    assert report["optimizer"].passed is None
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    assert "model.norm.weight" in audit(model, print_lines=False)["numbers"].text
    layers[0].compute_dtype = None
    assert "not said" in audit(model, print_lines=False)["compute dtype"].text


def test_stock_adapters_are_noticed(session, models):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load(models), peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    report = audit(model, print_lines=False)
    line = report["adapters"]
    assert report.passed and line.passed is None  # they train
    assert "neither merge nor use DoRA" in line.text and "adopt" in line.fix
    bitpager.peft.adopt(model)
    assert audit(model, print_lines=False)["adapters"].passed


def test_memory_is_judged_by_the_whole_model(session, models):
    """Experts that stay in 16 bits fail; embeddings, and what was left out by name, are noted."""
    line = audit(load(models, shape=DEEP), print_lines=False)["memory"]
    assert line.passed and "of quantized weights" in line.text
    line = audit(load(models, shape={"vocab_size": 2000}), print_lines=False)["memory"]
    assert line.passed is None and "embeddings and output head" in line.text
    line = audit(load(models, shape=DEEP, skip_modules=["lm_head", "up_proj"]), print_lines=False)["memory"]
    assert line.passed is None and "left out by name: model.layers.*.mlp.up_proj.weight (256.0 KiB)" in line.text
    with pytest.warns(UserWarning, match="no plain linear layers"):
        model = load(models, "mixtral")
    line = audit(model, print_lines=False)["memory"]
    experts = [m for name, m in model.named_modules() if name.endswith("experts")]
    stacked = {p.numel() for m in experts for p in (m.gate_up_proj,)}
    assert line.passed is False and stacked == {4 * 2 * 160 * 64}
    assert f"experts.gate_up_proj ({bitpager.sizes.print_bytes(2 * 2 * stacked.pop())})" in line.text
    taken = model.get_memory_footprint(return_buffers=False)
    assert f"{taken / (2 * model.num_parameters()):.0%} of" in line.text


def test_adapters_are_not_counted_as_the_models_memory(session, models):
    peft = pytest.importorskip("peft")
    model = load(models, shape=DEEP)
    before = audit(model, print_lines=False)["memory"].text
    config = bitpager.peft.LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM")
    assert audit(peft.get_peft_model(model, config), print_lines=False)["memory"].text == before


def test_float32_products_do_not_pass(session, models, monkeypatch):
    """On a GPU they fail, and loading warns of them; on a CPU they are noted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = audit(load(models, dtype=torch.float32), print_lines=False)["compute dtype"]
    assert line.passed is None and line.text.startswith("float32") and "model_init_kwargs" in line.fix
    monkeypatch.setattr(sys.modules["bitpager.hf.room"], "on_gpu", lambda layers: True)
    with pytest.warns(UserWarning, match="compute in float32 on a GPU.*dtype=torch.bfloat16"):
        model = load(models, dtype=torch.float32)
    assert audit(model, print_lines=False)["compute dtype"].passed is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert audit(load(models), print_lines=False)["compute dtype"].passed


@pytest.mark.parametrize("name", ("llama", "mistral"))
@pytest.mark.parametrize("changes", ({}, {"tie_word_embeddings": True}, {"head_dim": 32}))
def test_plans_count_what_the_model_has(name, changes):
    config = tiny.config(name, **changes)
    model = tiny.CLASSES[name].from_config(config)
    shape = shape_of(config.to_dict())
    assert shape.parameters == model.num_parameters()
    linears = [m for n, m in model.named_modules() if type(m) is torch.nn.Linear and n != "lm_head"]
    assert shape.quantized == sum(m.weight.numel() for m in linears)
    assert shape.adapters(8) == sum(8 * (m.in_features + m.out_features) for m in linears)


@pytest.mark.parametrize("name", ("t5", "gpt2", "bert"))
def test_other_architectures_are_counted_by_transformers(name):
    config = tiny.config(name)
    counted = plan(config).parameters
    kind = {"t5": transformers.AutoModelForSeq2SeqLM, "gpt2": transformers.AutoModelForCausalLM}
    model = kind.get(name, transformers.AutoModelForCausalLM).from_config(config)
    assert counted == model.num_parameters()


def test_plan_equals_what_loading_takes(session, models):
    """The planned bytes of quantized weights are the footprint of the loaded model."""
    model = load(models)
    scheme = next(s for s in plan(models("llama")).schemes if s.name.startswith("NF4, double"))
    assert abs(scheme.weights - model.get_memory_footprint()) < 0.01 * scheme.weights


LLAMA_7B = dict(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32000,
)


def test_plan_of_seven_billion(capsys, tmp_path):
    made = plan(LLAMA_7B, vram="24GB")
    assert made.parameters == 6_738_415_616
    by_name = {scheme.name: scheme for scheme in made.schemes}
    assert by_name["16-bit + LoRA"].weights == 2 * made.parameters
    nested = by_name["NF4, double quantization + LoRA"]
    assert 3.7e9 < nested.weights < 3.9e9
    plain = by_name["NF4 + LoRA"]
    saved = plain.weights - nested.weights
    assert abs(saved - 6_476_005_376 * 0.373 / 8) < 2e6
    assert made.verdict(by_name["16-bit, AdamW"]) == "too large"
    assert made.verdict(nested) == "fits" and nested.least < nested.total
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    assert main([str(tmp_path), "--vram", "24G"]) == 0
    text = capsys.readouterr().out
    assert "6,738,415,616 parameters" in text and "Adapters:" in text and "fits" in text
    assert main([str(tmp_path), "--vram", "24G", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1 and all(isinstance(s["total_bytes"], int) for s in found["schemes"])
    assert "Nothing fits" in plan(LLAMA_7B, vram="1G").recommend()
    assert "pages out" in str(plan(LLAMA_7B, vram="4G", context=512))


@pytest.mark.parametrize("arguments, words", (
    (["nowhere"], "cannot read a model config"),
    (["CONFIG", "--vram", "many"], "not a size"),
    (["CONFIG", "--context", "0"], "positive whole number"),
))
def test_bad_plans_are_refused_in_words(tmp_path, capsys, arguments, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_7B))
    assert main([str(path) if a == "CONFIG" else a for a in arguments]) == 2
    assert words in capsys.readouterr().err
