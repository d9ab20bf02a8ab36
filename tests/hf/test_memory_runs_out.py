"""guard() and phase hints in transformers' Trainer: gradient checkpointing, accumulation, the same numbers."""

from __future__ import annotations

import warnings

import bitpager
import pytest
import tiny
import torch
from transformers import TrainingArguments

peft = pytest.importorskip("peft")
STEPS = 3


def trainer_of(models, folder, dropout=0.1):
    from bitpager.hf import BitpagerConfig
    from transformers import AutoModelForCausalLM

    path = models("llama")  # made at the first call, with random numbers of its own
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=BitpagerConfig())
    model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = bitpager.peft.LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    args = TrainingArguments(
        str(folder), optim="paged_adamw_8bit", max_steps=STEPS, per_device_train_batch_size=2, seed=3,
        gradient_accumulation_steps=2, learning_rate=1e-3, save_strategy="no", report_to=[], use_cpu=True,
    )  # fmt: skip
    return bitpager.hf.Trainer(model, args, train_dataset=tiny.Windows(16, 24))


def trained(trainer):
    trainer.train()
    found = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    trainer.optimizer.optimizer.drop()
    return found


@pytest.fixture
def expected(session, models, tmp_path):
    return trained(trainer_of(models, tmp_path))


def test_hints_in_a_trainer(session, models, tmp_path, expected, monkeypatch):
    told = []
    real = session.hint_phase
    monkeypatch.setattr(session, "hint_phase", lambda phase: told.append(phase) or real(phase))
    trainer = trainer_of(models, tmp_path)
    optimizer = trainer.create_optimizer()
    with bitpager.hints.attach(trainer.model, optimizer, session=session):
        found = trained(trainer)
    assert told == ["forward", "backward"] * 2 + ["step", "idle"] + ["forward", "backward", "step", "idle"] * (
        STEPS - 1
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_guarded_training_step(session, models, tmp_path, expected):
    """Memory runs out in the middle of a forward pass, and behind a backward pass."""
    trainer = trainer_of(models, tmp_path)
    optimizer = trainer.create_optimizer()
    real, calls = trainer.training_step, []

    def step(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            layer = trainer.model.get_base_model().model.layers[1]
            hook = layer.register_forward_pre_hook(run_out)
            try:
                return real(*arguments, **keywords)
            finally:
                hook.remove()
        loss = real(*arguments, **keywords)
        if len(calls) == 5:
            run_out()
        return loss

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    trainer.training_step = bitpager.guard(step, trainer.model, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a training step ran out of memory")
        found = trained(trainer)
    assert trainer.training_step.guard.retried == 2 and len(calls) == 2 * STEPS + 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
