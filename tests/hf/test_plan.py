"""plan(): what it recommends, whole encoder-decoders, configs on the hub."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import transformers
from bitpager.plan import main, plan, shape_of

LLAMA_70B = dict(
    model_type="llama",
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=32000,
)


@pytest.mark.parametrize(
    "vram, wanted",
    (
        ("48G", "NF4, double quantization + LoRA"),  # plain NF4 fits as well
        ("20G", "NF4, double quantization + LoRA"),  # both do with pages on the host
        ("192G", "16-bit + LoRA"),
    ),
)
def test_double_quantization_is_recommended_before_plain_nf4(vram, wanted):
    made = plan(LLAMA_70B, vram=vram)
    by_name = {scheme.name: made.verdict(scheme) for scheme in made.schemes}
    assert by_name["NF4 + LoRA"] == by_name["NF4, double quantization + LoRA"] != "too large"
    assert made.recommend().startswith(f"Adapters: {wanted}, "), made.recommend()


def bart(**changes):
    sizes = dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    sizes |= dict(encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=tiny.BYTES + 2, max_position_embeddings=128)
    return transformers.BartConfig(**sizes, **changes)


@pytest.mark.parametrize(
    "architectures, kind",
    (
        (None, transformers.BartForConditionalGeneration),
        (["BartForConditionalGeneration"], transformers.BartForConditionalGeneration),
        (["BartForCausalLM"], transformers.BartForCausalLM),  # said is said
        (["NobodysModel"], transformers.BartForConditionalGeneration),
    ),
)
def test_encoder_and_decoder_are_counted(architectures, kind):
    config = bart(architectures=architectures)
    model = kind(config)
    shape = shape_of(config.to_dict())
    assert shape.parameters == model.num_parameters()
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear and m is not head]
    assert shape.quantized == sum(m.weight.numel() for m in linears)


def test_a_name_on_the_hub_is_fetched_by_transformers(monkeypatch, capsys):
    asked = []

    def fetch(name, **_):
        asked.append(name)
        return tiny.config("llama")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fetch)
    assert main(["some-org/llama-3.1", "--json"]) == 0
    assert asked == ["some-org/llama-3.1"]
    assert json.loads(capsys.readouterr().out)["parameters"] == tiny.make("llama").num_parameters()


def test_without_a_network_the_hub_is_said_to_be_out_of_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["some-org/no-such-model"]) == 2
    said = capsys.readouterr().err
    assert "some-org/no-such-model is no folder here" in said and "cannot fetch it from the hub" in said
    assert "Hint: a folder with config.json" in said and said.count("\n") == 1


def test_a_local_folder_comes_before_the_hub(models, tmp_path, monkeypatch):
    (tmp_path / "some-org").mkdir()
    (tmp_path / "some-org" / "model").symlink_to(models("llama"))
    monkeypatch.chdir(tmp_path)
    assert plan("some-org/model").parameters == tiny.make("llama").num_parameters()


def test_without_transformers_the_hub_says_what_to_install(run_python):
    source = "import sys; sys.modules['transformers'] = None\nimport bitpager.plan as p; p.plan('some-org/model')"
    done = run_python(source)
    assert done.returncode != 0 and 'pip install "bitpager[hf]"' in done.stderr
