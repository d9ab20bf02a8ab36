"""from_pretrained and save_pretrained: what is quantized, with which numbers, and what comes back."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import shutil
import tempfile
import warnings

import bitpager
import pytest
import tiny
import torch
import transformers
from bitpager import functional
from bitpager.hf import BitpagerConfig
from bitpager.nn import Linear4bit
from bitpager.sizes import print_bytes

ARCHITECTURES = ("llama", "mistral", "bert", "t5", "gpt2")


def load(folder, name="llama", quantization=None, **keywords):
    keywords.setdefault("quantization_config", quantization or BitpagerConfig())
    keywords.setdefault("device_map", "auto")
    return tiny.CLASSES[name].from_pretrained(folder, **keywords).eval()


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def logits(model, name="llama"):
    with torch.no_grad():
        return model(**tiny.inputs(name)).logits


def same_bits(a, b):
    one, two = a.state_dict(), b.state_dict()
    assert list(one) == list(two)
    for key in one:
        assert one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loads_what_quantizing_by_hand_gives(session, models, name):
    plain = tiny.CLASSES[name].from_pretrained(models(name), dtype=torch.bfloat16)
    model = load(models(name), name, dtype=torch.bfloat16)
    layers = layers_of(model)
    assert layers and all(layer.is_quantized for layer in layers.values())
    for key, layer in layers.items():
        source = plain.get_submodule(key).weight.detach()
        source = source.T.contiguous() if name == "gpt2" else source
        packed, state = functional.quantize_4bit(source, quant_type="nf4", compress_statistics=True)
        assert torch.equal(layer.weight.packed(), packed), key
        assert torch.equal(layer.weight.quant_state.absmax, state.absmax), key
        assert layer.compute_dtype == torch.bfloat16 and layer.weight.quant_state.dtype == torch.bfloat16
    head = model.get_output_embeddings()
    assert head is None or not isinstance(head, Linear4bit)
    # The model computes what the same model with dequantized weights does.
    for key, layer in layers.items():
        twin = plain.get_submodule(key)
        with torch.no_grad():
            twin.weight.copy_(layer.dequantize().T if name == "gpt2" else layer.dequantize())
    wanted, got = logits(plain.eval(), name), logits(model, name)
    assert (wanted - got).abs().max() <= 0.02 * wanted.abs().max()
    assert model.num_parameters() == plain.num_parameters()


def test_t5_keeps_its_float32_modules(session, models):
    model = load(models("t5"), "t5", dtype=torch.float16)
    kept = [m for n, m in model.named_modules() if n.endswith(".wo")]
    assert kept and all(type(m) is torch.nn.Linear and m.weight.dtype == torch.float32 for m in kept)
    assert torch.isfinite(logits(model, "t5")).all()


@pytest.mark.parametrize("name", ("llama", "t5"))
@pytest.mark.parametrize("kind, double", (("nf4", True), ("nf4", False), ("fp4", True)))
def test_saves_and_loads_every_bit(session, models, tmp_path, name, kind, double):
    model = load(models(name), name, BitpagerConfig(quant_type=kind, double_quant=double), dtype=torch.bfloat16)
    before = logits(model, name)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "bitpager" and not any(key.startswith("load_in") for key in saved)
    again = tiny.CLASSES[name].from_pretrained(tmp_path, device_map="auto").eval()
    same_bits(model, again)
    assert torch.equal(logits(again, name), before)
    again.save_pretrained(tmp_path / "twice")
    same_bits(model, tiny.CLASSES[name].from_pretrained(tmp_path / "twice"))


def test_tied_embeddings_stay_tied(session, models, tmp_path):
    model = load(models("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    same_bits(model, again)


def test_named_modules_are_skipped(session, models):
    model = load(models("llama"), quantization=BitpagerConfig(llm_int8_skip_modules=["q_proj", "model.layers.1.mlp"]))
    names = set(layers_of(model))
    assert "model.layers.0.mlp.up_proj" in names and "model.layers.1.mlp.up_proj" not in names
    assert not any(name.endswith("q_proj") for name in names) and "lm_head" in names  # as with the peer: said is said


def test_counts_and_footprint(session, models):
    plain = transformers.AutoModelForCausalLM.from_pretrained(models("llama"), dtype=torch.bfloat16)
    model = load(models("llama"))
    weights = sum(m.in_features * m.out_features for m in layers_of(model).values())
    rest = plain.get_memory_footprint() - 2 * weights
    per_weight = BitpagerConfig().bits_per_weight / 8
    assert abs(model.get_memory_footprint() - rest - per_weight * weights) < 64 * len(layers_of(model))
    assert session.memory_stats()["weight_bytes"] >= per_weight * weights


def test_generate_copy_cast_and_dequantize(session, models):
    model = load(models("llama"))
    tokens = tiny.inputs("llama")["input_ids"]
    made = model.generate(tokens, max_new_tokens=5, do_sample=False)
    assert made.shape == (2, 17)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(tokens, max_new_tokens=5, do_sample=False), made)
    absmax = layers_of(model)["model.layers.0.mlp.up_proj"].weight.quant_state.absmax
    model.to(torch.float32)
    assert model.model.norm.weight.dtype == torch.float32
    assert torch.equal(layers_of(model)["model.layers.0.mlp.up_proj"].weight.quant_state.absmax, absmax)
    before = logits(twin)
    assert session.memory_stats()["shared_bytes"] > 0  # the copy holds the same, once
    plain = twin.dequantize()
    assert not layers_of(plain) and not plain.is_quantized and plain.dtype == torch.bfloat16
    assert torch.allclose(logits(plain), before, atol=0.05 * before.abs().max().item())
    assert session.memory_stats()["shared_bytes"] == 0 < session.memory_stats()["weight_bytes"]  # and let it go
    assert not hasattr(plain.config, "quantization_config")


def test_only_one_tensor_is_ever_held_as_floats(session, models, monkeypatch):
    """Quantizing goes tensor by tensor: when one is quantized, the floats of those before are gone."""
    import gc
    import weakref

    alive, most = [], 0
    quantize = Linear4bit.quantize_

    def spy(self, tensor=None, name=None):
        nonlocal most
        alive.append(weakref.ref(tensor))
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))
        return quantize(self, tensor, name)

    monkeypatch.setattr(Linear4bit, "quantize_", spy)
    load(models("llama"))
    assert len(alive) == 14 and most <= 2


def test_offloaded_blocks_are_pages_and_the_rest_is_offloaded(session, models, tmp_path):
    """A small max_memory sends modules to disk; those with quantized layers stay where the model runs."""
    whole = logits(load(models("llama")))
    for size in range(70, 140, 10):  # how much a module is taken for differs between versions of transformers
        model = load(models("llama"), max_memory={"cpu": f"{size}KB"}, offload_folder=str(tmp_path))
        places = getattr(model, "hf_device_map", {})
        if len(set(places.values())) > 1:
            break
    assert set(places.values()) == {"cpu", "disk"}, places
    assert all(layer.is_quantized for layer in layers_of(model).values()) and len(layers_of(model)) == 14
    assert torch.equal(logits(model), whole)
    chosen = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    chosen["model.rotary_emb"] = "cpu"
    model = load(models("llama"), device_map=chosen, offload_folder=str(tmp_path))
    assert all(layer.is_quantized for layer in layers_of(model).values())
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize("packed", (False, True))
def test_blocks_offloaded_to_disk_lie_on_the_daemons_disk(make_daemon, session, models, tmp_path, packed):
    """device_map's "disk", where the daemon has one: no host memory for those weights, the same numbers."""
    whole = load(models("llama"))
    numbers = logits(whole)
    source, options = models("llama"), {"quantization_config": BitpagerConfig()}
    if packed:
        whole.save_pretrained(tmp_path / "packed")
        source, options = tmp_path / "packed", {}
    disk = pathlib.Path(tempfile.mkdtemp(prefix=".disk-", dir=pathlib.Path(__file__).resolve().parents[2] / "build"))
    try:
        flags = ("--page-size", "16KiB", "--device-budget", "1MiB", "--host-budget", "64MiB", "--disk-budget", "64MiB")
        flags += ("--window-pages", "8")
        daemon = make_daemon(*flags, "--disk-folder", str(disk))
        bitpager.disconnect()
        other = bitpager.connect(socket=daemon.socket, job="hf", linger=0)
        names = ("embed_tokens", "norm", "rotary_emb")
        chosen = {"model.layers": "disk", "lm_head": "cpu", **{f"model.{name}": "cpu" for name in names}}
        options |= {"device_map": chosen, "offload_folder": str(tmp_path)}
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **options).eval()
        assert {layer.weight.pages.offload for layer in layers_of(model).values()} == {"disk"}
        stats = other.memory_stats()
        assert stats["disk_bytes"] == stats["weight_bytes"] > 0
        assert torch.equal(logits(model), numbers)
    finally:
        shutil.rmtree(disk, ignore_errors=True)


def test_without_a_disk_the_offloaded_blocks_say_that_they_lie_in_host_memory(session, models, tmp_path):
    chosen = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    chosen["model.rotary_emb"] = "cpu"
    with pytest.warns(UserWarning, match="--disk-folder"):
        model = load(models("llama"), device_map=chosen, offload_folder=str(tmp_path))
    assert {layer.weight.pages.offload for layer in layers_of(model).values()} == {None}


def test_packed_tensors_are_read_one_by_one(session, models, tmp_path, monkeypatch):
    """When one is taken over, at most the next tensors of the same layer have been read."""
    from transformers import core_model_loading

    load(models("llama")).save_pretrained(tmp_path)
    read, ahead = 0, []
    copy_tensor, take = core_model_loading._materialize_copy, Linear4bit.take_packed_

    def reading(*arguments, **keywords):
        nonlocal read
        read += 1
        return copy_tensor(*arguments, **keywords)

    def taking(self, *arguments, **keywords):
        ahead.append(read)
        return take(self, *arguments, **keywords)

    monkeypatch.setattr(core_model_loading, "_materialize_copy", reading)
    monkeypatch.setattr(Linear4bit, "take_packed_", taking)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(ahead) == 14 and ahead[0] <= 12 and all(two - one <= 12 for one, two in zip(ahead, ahead[1:]))
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


@pytest.mark.parametrize("device_map", ("auto", {"": "cpu"}, None))
@pytest.mark.parametrize("packed", (False, True))
def test_nothing_is_reserved_in_torch_for_what_goes_into_pages(
    session, models, tmp_path, monkeypatch, device_map, packed
):
    """Before it reads weights, transformers reserves GPU memory for their sizes: those in pages must count nothing.
    When it gives modules their places, they must count."""
    from transformers import modeling_utils
    from transformers.integrations import accelerate as places

    folder = models("llama")
    if packed:
        load(folder).save_pretrained(tmp_path)
        folder = tmp_path
    seen = {}
    warm_up, modules = modeling_utils.caching_allocator_warmup, places.compute_module_sizes

    def reserving(model, expanded, quantizer):
        count = modeling_utils.get_total_byte_count(model, dict.fromkeys(expanded, "gpu"), quantizer)
        seen["reserved"] = count["gpu"]
        return warm_up(model, expanded, quantizer)

    def placing(model, quantizer=None, *arguments, **keywords):
        sizes = modules(model, quantizer, *arguments, **keywords)
        seen.setdefault("placed", sizes[0][""])
        return sizes

    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", reserving)
    monkeypatch.setattr(places, "compute_module_sizes", placing)
    said = {} if packed else {"quantization_config": BitpagerConfig()}
    model = tiny.CLASSES["llama"].from_pretrained(folder, device_map=device_map, dtype=torch.bfloat16, **said)
    rest = sum(2 * p.numel() for p in model.parameters() if not isinstance(p, bitpager.nn.FourBitParameter))
    buffers = 64 * 256
    assert rest <= seen["reserved"] <= rest + buffers
    if device_map == "auto":
        in_pages = sum(p.nelement() for p in model.parameters() if isinstance(p, bitpager.nn.FourBitParameter))
        assert rest + 0.9 * in_pages <= seen["placed"] <= rest + 1.1 * in_pages + buffers


def test_without_the_plug_in_loading_fails_loudly(session, models, tmp_path, run_python):
    """What is on screen leads to config.json's quantization_config, which says what to import."""
    load(models("llama")).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["load_with"].startswith("import bitpager.hf")
    source = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    done = run_python(source, tmp_path, timeout=120)
    assert done.returncode != 0 and "mismatch" in (done.stderr + done.stdout).lower()
    assert "Unknown quantization type, got bitpager" in done.stderr + done.stdout
    assert "quantization_config attribute in config.json" in done.stderr + done.stdout
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_importing_bitpager_imports_no_transformers(run_python):
    source = "import sys, bitpager; sys.exit(any(name in sys.modules for name in ('transformers', 'peft', 'trl')))"
    assert run_python(source).returncode == 0


@pytest.mark.parametrize("setup, words", (
    ("sys.modules['transformers'] = None", "not installed"),
    ("sys.modules['transformers'] = types.SimpleNamespace(__version__='4.57.1')", "5.0 or newer"),
))
def test_missing_or_old_transformers_is_said(run_python, setup, words):
    done = run_python(f"import sys, types\n{setup}\nimport bitpager.hf")
    assert done.returncode != 0 and words in done.stderr and "Hint: pip install" in done.stderr


def test_config_takes_both_kinds_of_names():
    config = BitpagerConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype="bfloat16",
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_threshold=6.0,
    )
    assert (config.quant_type, config.double_quant, config.compute_dtype) == ("fp4", False, torch.bfloat16)
    assert BitpagerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert json.loads(config.to_json_string())["compute_dtype"] == "bfloat16"
    assert BitpagerConfig().to_dict()["quant_type"] == "nf4" and BitpagerConfig().double_quant
    assert BitpagerConfig(compute_dtype=None).compute_dtype is None


def test_config_takes_the_peers_whole_dictionary():
    peer = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16", llm_int8_skip_modules=["head"]
    )
    for given in (peer.to_dict(), peer.to_diff_dict(), dict(_load_in_4bit=True, _load_in_8bit=False)):
        assert BitpagerConfig(**given).quant_type == "nf4"
    config = BitpagerConfig(**peer.to_dict())
    assert (config.double_quant, config.skip_modules) == (False, ["head"])
    names = ("quant_type", "use_double_quant", "compute_dtype", "quant_storage")
    for name in ("load_in_4bit", "load_in_8bit", *(f"bnb_4bit_{name}" for name in names)):
        assert getattr(config, name) == getattr(peer, name), name
        with pytest.raises(AttributeError):
            setattr(config, name, getattr(peer, name))
    assert BitpagerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert not any("bnb" in key or "load_in" in key for key in config.to_dict())
    with pytest.raises(bitpager.UnsupportedError, match="8-bit weights are not there yet"):
        BitpagerConfig(**transformers.BitsAndBytesConfig(load_in_8bit=True).to_dict())
    with pytest.raises(TypeError, match="blocksize, load_in_4bit, load_in_8bit"):
        BitpagerConfig(block_size=64)


@pytest.mark.parametrize("keywords, kind, words", (
    (dict(load_in_8bit=True), bitpager.UnsupportedError, "8-bit weights are not there yet"),
    (dict(load_in_4bit=False), ValueError, "leave quantization_config out"),
    (dict(bnb_4bit_quant_typ="nf4"), TypeError, "bnb_4bit_quant_typ"),
    (dict(quant_type="int4"), ValueError, "nf4, fp4"),
    (dict(blocksize=48), ValueError, "blocksize"),
    (dict(compute_dtype="bflot16"), ValueError, "compute_dtype"),
    (dict(compute_dtype=torch.int8), ValueError, "compute_dtype"),
    (dict(skip_modules="lm_head"), ValueError, "list of module names"),
    (dict(bnb_4bit_use_double_quant="yes"), ValueError, "True or False"),
))
def test_bad_settings_are_refused_in_words(keywords, kind, words):
    with pytest.raises(kind, match=words):
        BitpagerConfig(**keywords)


@pytest.mark.parametrize(
    "computed, own, hint",
    (
        ("float16", "bfloat16", "dtype=torch.float16), with TRL model_init_kwargs={'dtype': 'float16'}, or leave"),
        ("bfloat16", "float32", "dtype=torch.bfloat16), with TRL model_init_kwargs={'dtype': 'bfloat16'}."),
        ("float32", "bfloat16", "Hint: leave compute_dtype out."),
    ),
)
def test_other_compute_dtype_is_warned_of(session, models, computed, own, hint):
    """The hint never leads to float32 products."""
    with pytest.warns(UserWarning, match=f"compute_dtype is {computed}, the model's dtype {own}") as caught:
        load(models("llama"), quantization=BitpagerConfig(compute_dtype=computed), dtype=own)
    assert hint in str(caught[0].message)


def test_large_weights_that_stay_floats_are_said_once(session, models, tmp_path):
    """Experts in one parameter of three dimensions; a dense model's embeddings and head are not spoken of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(models("mixtral"))
        load(models("llama"))
    said = [str(w.message) for w in caught if "no plain linear layers" in str(w.message)]
    size = sum(2 * p.numel() for name, p in model.named_parameters() if ".mlp." in name)
    assert len(said) == 1 and said[0].startswith(print_bytes(size)) and "mlp.experts.gate_up_proj (" in said[0]
    assert "embed_tokens" not in said[0] and "lm_head" not in said[0]
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no plain linear layers"):
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    same_bits(model, again)


def test_a_missing_head_is_initialised(session, models):
    """A classifier on a base model without one: its own layers are new and float, the base is quantized."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        models("llama"), quantization_config=BitpagerConfig(), num_labels=3
    )
    assert not isinstance(model.score, Linear4bit) and layers_of(model)
    assert torch.isfinite(model(**tiny.inputs("llama")).logits).all()


def test_damaged_checkpoints_are_refused(session, models, tmp_path):
    from safetensors.torch import load_file, save_file

    load(models("llama")).save_pretrained(tmp_path)
    path = pathlib.Path(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if not k.startswith(key + ".")}, path, {"format": "pt"})
    with pytest.raises((RuntimeError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
