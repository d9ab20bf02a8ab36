"""Common mistakes: each is answered where it is made, with what to do."""

from __future__ import annotations

import gc
import importlib
import os
import sys

import pytest
import tiny
import torch
import transformers

pytest.importorskip("accelerate")
pytest.importorskip("peft")
import bitpager  # noqa: E402
import peft  # noqa: E402
from bitpager import machine  # noqa: E402
from bitpager.hf import BitpagerConfig, Trainer, audit, room  # noqa: E402
from bitpager.nn import Linear4bit  # noqa: E402
from bitpager.sizes import print_bytes  # noqa: E402


def load(folder, **changes):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitpagerConfig(**changes), dtype=torch.bfloat16
    )


def arguments(folder, **changes):
    said = dict(max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
    return transformers.TrainingArguments(str(folder), optim="paged_adamw_8bit", **{**said, **changes})


def adapted(folder):
    model = peft.prepare_model_for_kbit_training(load(folder))
    torch.manual_seed(0)
    lora = bitpager.peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora)


# ---- memory ----


@pytest.mark.parametrize("packed", (False, True))
def test_no_room_for_a_model_is_said_once_and_in_bytes(session, make_daemon, models, tmp_path, packed):
    """What the daemon refuses comes out of from_pretrained itself, with what the whole model takes."""
    folder = models("llama")
    if packed:
        load(folder, double_quant=False).save_pretrained(tmp_path)
        folder = tmp_path
    bitpager.disconnect()
    sizes = ("--page-size", "16KiB", "--window-pages", "1", "--windows-in-flight", "2")
    daemon = make_daemon("--device", "cpu", "--device-budget", "1MiB", "--host-budget", "128KiB", *sizes)
    here = bitpager.connect(socket=daemon.socket, job="small", linger=0)
    with pytest.raises(bitpager.BudgetError) as caught:
        if packed:
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        else:
            load(folder, double_quant=False)
    whole, blocks = 86_016, 86_016 // 64
    said = str(caught.value)
    assert "--host-budget" in said and "All 14 quantized layers" in said
    assert f"take {print_bytes(whole // 2 + 4 * blocks)}" in said
    assert f"double_quant=True would save {print_bytes(3 * blocks - 4 * -(-blocks // 256))} of it" in said
    on_disk = f"up to {print_bytes(whole // 2 + 4 * blocks)} of it: bitpagerd --disk-folder PATH"
    assert on_disk in said and 'and "disk" for modules in device_map' in said
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    del caught
    gc.collect()
    here.noop()
    assert here.memory_stats()["weight_bytes"] == 0


def test_memory_that_runs_out_in_training_says_what_would_help(session, models, tmp_path, monkeypatch):
    model = adapted(models("llama"))
    trainer = Trainer(model, arguments(tmp_path), train_dataset=tiny.Windows(16))

    def fail(*_, **__):
        raise room.TorchOutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model.base_model.model.model.norm, "forward", fail)
    with pytest.raises(room.TorchOutOfMemory) as caught:
        trainer.train()
    said = str(caught.value)
    resident = print_bytes(session.memory_stats()["resident_bytes"])
    assert said.startswith("CUDA out of memory") and f"{resident} by pages leave" in said and "1,024 tokens" in said


# ---- numbers ----


def test_nan_in_training_names_tensor_and_step(session, models, tmp_path):
    """By the model's own names, although Trainer gives parameters without them and clips, which spreads NaN to all."""
    model = adapted(models("llama"))
    trainer = Trainer(model, arguments(tmp_path, max_steps=5, max_grad_norm=0.5), train_dataset=tiny.Windows(32))
    names = [name for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name]
    calls = 0

    def poison(grad):
        nonlocal calls
        calls += 1
        return grad * float("nan") if calls == 3 else grad

    dict(model.named_parameters())[names[0]].register_hook(poison)
    with pytest.raises(bitpager.NonFiniteError) as caught:
        trainer.train()
    assert caught.value.tensors == (names[0],) and names[0] in str(caught.value)
    assert "step 3:" in str(caught.value) and "clip gradients" in str(caught.value)


def test_nan_without_names_says_how_to_get_them(session):
    p = torch.nn.Parameter(torch.ones(300))
    optimizer = bitpager.optim.PagedAdamW8bit([p])
    p.grad = torch.full((300,), float("inf"))
    with pytest.raises(bitpager.NonFiniteError, match=r"param_group 0, parameter 0 .*model\.named_parameters\(\)"):
        optimizer.step()
    optimizer.name_parameters([("head.weight", p), ("other", torch.nn.Parameter(torch.ones(2)))])
    with pytest.raises(bitpager.NonFiniteError, match=r"in head\.weight\.") as caught:
        optimizer.step()
    assert "named_parameters" not in str(caught.value)


# ---- what is computed in what, and what trains ----


def test_no_compute_dtype_under_float32_inputs_is_warned_of_once(session, recwarn):
    layer = Linear4bit.from_linear(torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="float32, which is slow.*compute_dtype=torch.bfloat16"):
        layer(torch.ones(2, 64))
    recwarn.clear()
    layer(torch.ones(2, 64))
    said = Linear4bit.from_linear(torch.nn.Linear(64, 64, dtype=torch.bfloat16), compute_dtype=torch.bfloat16)
    said(torch.ones(2, 64))
    Linear4bit.from_linear(torch.nn.Linear(64, 64))(torch.ones(2, 64))
    Linear4bit.from_linear(torch.nn.Linear(64, 64, dtype=torch.bfloat16))(torch.ones(2, 64, dtype=torch.bfloat16))
    assert not [w for w in recwarn if "compute_dtype" in str(w.message)]


def test_loading_says_the_compute_dtype(session, models):
    """BitpagerConfig without one takes the model's: nobody gets float32 products by saying nothing."""
    layers = [m for m in load(models("llama")).modules() if isinstance(m, Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


def test_double_quantization_is_missed_in_large_models_alone(session, models, monkeypatch):
    model = load(models("llama"), double_quant=False)
    assert audit(model, print_lines=False)["double quantization"].passed is None
    monkeypatch.setattr(sys.modules["bitpager.hf.audit"], "_LARGE", 50_000)
    line = audit(model, print_lines=False)["double quantization"]
    saved = room.saved_by_double_quantization(room.layers_of(model))
    assert line.passed is False and print_bytes(saved) in line.text and line.fix == "double_quant=True"
    twice = load(models("llama"))
    assert room.packed_bytes_of(room.layers_of(model)) - room.packed_bytes_of(room.layers_of(twice)) == pytest.approx(
        saved,
        abs=14 * 8,  # an offset and a group's rest for each layer
    )


@pytest.mark.parametrize("storage", ("uint8", "bfloat16"))
def test_four_bit_weights_refuse_to_train(session, models, tmp_path, storage):
    model = load(models("llama"), quant_storage=storage)
    weight = model.model.layers[0].mlp.up_proj.weight
    for ask in (weight.requires_grad_, lambda: setattr(weight, "requires_grad", True), model.requires_grad_):
        with pytest.raises(bitpager.UnsupportedError, match="does not train. Hint: adapters"):
            ask()
    weight.requires_grad_(False)
    weight.requires_grad = False
    assert not weight.requires_grad
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(model, arguments(tmp_path), train_dataset=tiny.Windows(8))


# ---- the machine ----


def gpu(tmp_path, driver=None, node="nvidia0"):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / node).touch()
    (tmp_path / "dev" / "nvidiactl").touch()
    if driver:
        folder = tmp_path / "proc" / "driver" / "nvidia"
        folder.mkdir(parents=True)
        (folder / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sun May 1 2026\n")
    return tmp_path


@pytest.mark.parametrize(
    "cuda, driver, node, words, fix",
    (
        (None, "580.65.06", "nvidia0", "has no CUDA, and this machine has a GPU", "download.pytorch.org/whl/cu"),
        (None, None, "dxg", "has no CUDA, and this machine has a GPU", "pip install torch"),
        ("13.0", "570.12", "nvidia0", "the driver is 570.12, CUDA 13 needs 580", "release 580 or newer"),
        ("12.8", "470.1.2", "nvidia1", "the driver is 470.1.2, CUDA 12 needs 525", "release 580 or newer"),
        ("12.8", "580.65.06", "nvidia0", "does not start here, under driver 580.65.06", "CUDA_VISIBLE_DEVICES"),
        ("12.8", None, "nvidia0", "of unknown release", "nvidia-smi"),
    ),
)
def test_a_gpu_that_torch_cannot_use(monkeypatch, tmp_path, cuda, driver, node, words, fix):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = machine.gpu_verdict(gpu(tmp_path, driver, node))
    assert found.passed is False and words in found.text and fix in found.fix


def test_no_gpu_is_nothing_to_mend(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert machine.gpu_verdict(tmp_path).passed is None
    assert machine.gpu_verdict(tmp_path / "nothing").passed is None


@pytest.mark.parametrize(
    "capability, driver, words, fix",
    (
        ((7, 0), "580.1", "is too old", "7.5 or newer"),
        ((9, 0), "550.54.15", "kernels say no", "580 or newer; this one is 550.54.15"),
        ((9, 0), "580.1", "kernels say no", "bitpager doctor"),
        ((9, 0), None, None, ""),
    ),
)
def test_a_gpu_that_torch_uses(monkeypatch, tmp_path, capability, driver, words, fix):
    from bitpager import cuda_local

    def refuse(device):
        if words is not None:
            raise bitpager.UnsupportedError("kernels say no", 45, "UNSUPPORTED")
        return torch.no_grad()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU")
    monkeypatch.setattr(cuda_local, "current_on", refuse)
    found = machine.gpu_verdict(gpu(tmp_path, driver))
    assert found.passed is (words is None) and (words or "GPU (9.0)") in found.text and fix in found.fix


def test_a_gpu_out_of_torchs_reach_is_said_where_one_looks(session, shared_daemon, models, monkeypatch, capsys):
    """When a model is loaded, by the audit, and by `python -m bitpager`."""
    verification = importlib.import_module("bitpager.__main__")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blind = machine.Verdict(False, "torch has no CUDA, and this machine has a GPU", "install torch for CUDA")
    for name in ("bitpager.machine", "bitpager.hf.quantizer", "bitpager.__main__"):
        monkeypatch.setattr(sys.modules[name], "gpu_verdict", lambda: blind)
    with pytest.warns(UserWarning, match="this machine has a GPU. Fix: install torch for CUDA"):
        model = load(models("llama"))
    line = audit(model, print_lines=False)["torch"]
    assert line.passed is False and line.fix == "install torch for CUDA"
    monkeypatch.delenv("BITPAGER_SOCKET", raising=False)
    assert verification.main(["--socket", shared_daemon.socket]) == 0
    said = capsys.readouterr().out
    assert "[note] GPU: torch has no CUDA" in said and said.strip().endswith("bitpager works.")
