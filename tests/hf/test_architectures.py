"""Other architectures than Llama through whole paths: T5 by Seq2SeqTrainer, and saving, copying and merging of each."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers

pytest.importorskip("accelerate")
pytest.importorskip("peft")
import bitpager  # noqa: E402
import peft  # noqa: E402
from bitpager.hf import BitpagerConfig  # noqa: E402
from bitpager.nn import Linear4bit  # noqa: E402

KINDS = {"t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}


def load(folder, name, **keywords):
    return tiny.CLASSES[name].from_pretrained(
        folder, quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map="auto", **keywords
    )


def lora(name, **changes):
    said = dict(r=8, lora_alpha=16, target_modules="all-linear", task_type=KINDS.get(name, "CAUSAL_LM"))
    return bitpager.peft.LoraConfig(**{**said, **changes})


def logits(model, name):
    with torch.no_grad():
        return model.eval()(**tiny.inputs(name)).logits.float()


class Echo(torch.utils.data.Dataset):
    """For sequence to sequence: the target is the beginning of the source."""

    def __init__(self, count=32):
        self.rows = tiny.windows(count, 24)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index][:8]}


def test_seq2seq_by_its_own_trainer(session, models, tmp_path):
    """A Trainer class made by with_optimizers: LoRA over T5, a loss that falls, generation in evaluation, merging."""
    trainer_class = bitpager.hf.with_optimizers(transformers.Seq2SeqTrainer)
    torch.manual_seed(1)
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(load(models("t5"), "t5")), lora("t5"))
    said = transformers.Seq2SeqTrainingArguments(
        str(tmp_path),
        optim="paged_adamw_8bit",
        per_device_train_batch_size=8,
        max_steps=12,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        predict_with_generate=True,
        generation_max_length=6,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = trainer_class(model, said, train_dataset=Echo(), eval_dataset=Echo(8))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__ == "PagedAdamW8bit"
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    assert len(trainer.predict(Echo(8)).predictions) == 8
    model.save_pretrained(tmp_path / "adapter")
    base = peft.prepare_model_for_kbit_training(load(models("t5"), "t5"))  # float32 norms, as it was trained
    again = bitpager.peft.load_adapter(base, tmp_path / "adapter")
    wanted = logits(model, "t5")
    assert torch.allclose(logits(again, "t5"), wanted, atol=1e-4)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    final = tiny.CLASSES["t5"].from_pretrained(tmp_path / "merged")
    layers = {n: m.weight.packed() for n, m in merged.named_modules() if isinstance(m, Linear4bit)}
    assert layers and all(torch.equal(final.get_submodule(n).weight.packed(), bits) for n, bits in layers.items())
    plain = logits(load(models("t5"), "t5"), "t5")
    assert (logits(merged, "t5") - wanted).norm() < 0.7 * (plain - wanted).norm()


@pytest.mark.parametrize("name", ("mistral", "bert", "gpt2"))
def test_every_architecture_saves_and_loads_every_bit(session, models, tmp_path, name):
    model = load(models(name), name)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    again = tiny.CLASSES[name].from_pretrained(tmp_path)
    one, two = model.state_dict(), again.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(logits(again, name), logits(model, name))
    assert any(isinstance(m, Linear4bit) for m in again.modules())


@pytest.mark.parametrize("name", ("mistral", "bert"))
def test_every_architecture_trains_with_dora_and_merges(session, models, tmp_path, name):
    torch.manual_seed(4)
    model = peft.get_peft_model(load(models(name), name), lora(name, use_dora=True))
    inputs = tiny.inputs(name)
    inputs["labels"] = torch.tensor([0, 1]) if name == "bert" else inputs["input_ids"]
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = bitpager.optim.PagedAdamW8bit(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = logits(model, name)
    plain = logits(load(models(name), name), name) if name != "bert" else None  # its head trains as well
    merged = logits(model.merge_and_unload(), name)
    assert torch.isfinite(merged).all()
    if plain is not None:
        assert (merged - before).norm() < 0.8 * (plain - before).norm()


def test_loading_shows_the_usual_progress_bar(session, models, capfd):
    transformers.utils.logging.enable_progress_bar()
    load(models("llama"), "llama")
    shown = capfd.readouterr().err
    assert "Loading weights" in shown and "100%" in shown
