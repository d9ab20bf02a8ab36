"""transformers, PEFT and Trainer on a GPU: a tiny model loaded from disk in 4 bits, trained, resumed, compared."""

from __future__ import annotations

import os
import pathlib
import sys
import warnings

import gpu_daemon
import gpu_training
import pytest
import torch

pytest.importorskip("transformers")
os.environ["HF_HUB_OFFLINE"] = "1"
DEVICE = gpu_training.DEVICE
HIDDEN, VOCABULARY = 256, 512


@pytest.fixture
def job(make_daemon):
    """The default session of the test, with room for everything."""
    import bitpager

    daemon = make_daemon("--device-budget", "1GiB", "--host-budget", "1GiB")
    bitpager.disconnect()
    with gpu_daemon.connect(daemon, "train", default=True) as session:
        yield session
    bitpager.disconnect()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


class Windows(torch.utils.data.Dataset):
    """Sequences that can be learned."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        row = (torch.arange(48) * (1 + index % 3)) % 100 + 3
        return {"input_ids": row, "labels": row}


def loaded(checkpoint):
    from bitpager.hf import BitpagerConfig
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map={"": DEVICE}
    )


def test_a_loaded_model_is_in_pages_on_the_gpu(job, checkpoint):
    from bitpager.nn import Linear4bit

    model = loaded(checkpoint)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 21 and all(layer.weight.device == torch.device(DEVICE) for layer in layers)
    assert job.memory_stats()["weight_bytes"] > 0
    ids = torch.arange(3, 35, device=DEVICE)[None]
    loss = model(input_ids=ids, labels=ids).loss
    assert bool(loss.isfinite())
    said = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert said.shape == (1, 36)


def test_qlora_with_trainer_learns_and_resumes(job, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    import bitpager
    from transformers import TrainingArguments

    def trainer_of(folder, steps):
        torch.manual_seed(1)
        model = peft.prepare_model_for_kbit_training(loaded(checkpoint))
        lora = bitpager.peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
        args = TrainingArguments(
            str(folder), optim="paged_adamw_8bit", max_steps=steps, per_device_train_batch_size=8, learning_rate=3e-3,
            logging_steps=1, save_steps=10, report_to=[], seed=3, lr_scheduler_type="constant",
        )  # fmt: skip
        return bitpager.hf.Trainer(model, args, train_dataset=Windows())

    trainer = trainer_of(tmp_path / "whole", 20)
    with bitpager.hints.attach(trainer.model, trainer.create_optimizer()) as hooks:
        trainer.train()
        assert hooks.phase == "idle"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0], losses
    whole = {k: v.cpu() for k, v in peft.get_peft_model_state_dict(trainer.model).items()}
    del trainer, hooks
    again = trainer_of(tmp_path / "whole", 20)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    resumed = peft.get_peft_model_state_dict(again.model)
    for key, value in whole.items():
        assert (resumed[key].cpu().float() - value.float()).abs().mean() < 2e-3, key


def test_a_guarded_training_step_of_trainer(job, checkpoint, tmp_path):
    pytest.importorskip("accelerate")
    peft = pytest.importorskip("peft")
    import bitpager
    from transformers import TrainingArguments

    def weights_of(fails):
        torch.manual_seed(1)
        model = peft.get_peft_model(
            loaded(checkpoint),
            peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1),
        )
        args = TrainingArguments(
            str(tmp_path / "out"), optim="paged_adamw_8bit", max_steps=4, per_device_train_batch_size=4,
            gradient_accumulation_steps=2, learning_rate=1e-3, save_strategy="no", report_to=[], seed=3,
        )  # fmt: skip
        trainer = bitpager.hf.Trainer(model, args, train_dataset=Windows())
        optimizer = trainer.create_optimizer()
        real, calls = trainer.training_step, []

        def step(*arguments, **keywords):
            calls.append(1)
            loss = real(*arguments, **keywords)
            if fails and len(calls) in (2, 5):
                torch.empty(1 << 46, dtype=torch.uint8, device=DEVICE)
            return loss

        trainer.training_step = bitpager.guard(step, model, optimizer)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.train()
        finally:
            torch.use_deterministic_algorithms(False)
        assert trainer.training_step.guard.retried == (2 if fails else 0)
        return [p.detach().cpu().clone() for p in model.parameters() if p.requires_grad]

    plain, guarded = weights_of(False), weights_of(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, guarded))


def test_the_benchmarks_model_trains(job):
    """What gpu-train builds, of no size, on the GPU."""
    root = pathlib.Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "tools" / "benchmarks")]
    import bitpager
    import gpu_llama

    shape = gpu_llama.replace(gpu_llama.TINY, hidden=256, inner=512, context=64)
    model = gpu_llama.model_of(shape, DEVICE, gpu_llama.ours(job))
    params = gpu_llama.adapt(model, DEVICE)
    optimizer = bitpager.optim.PagedAdamW8bit(params, lr=1e-2, session=job)
    iteration = gpu_llama.plain_iteration(model, optimizer, gpu_llama.tokens_of(shape, DEVICE))
    losses = [float(iteration()) for _ in range(12)]
    job.synchronize()
    assert losses[-1] < losses[0], losses
