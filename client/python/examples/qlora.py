"""QLoRA on a text file: a 4-bit base in pages, LoRA adapters, 8-bit paged AdamW.

    python qlora.py MODEL TEXT OUT [--steps 100]

MODEL: a folder or a name that transformers knows, with its tokenizer. TEXT: a plain text file. OUT: where adapters and
checkpoints go; a run that was stopped goes on from its newest checkpoint. Needs bitpager[hf].
"""

from __future__ import annotations

import argparse
import os

import bitpager
import peft
import torch
from bitpager.hf import BitpagerConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Windows(torch.utils.data.Dataset):
    """Neighbouring windows of `length` tokens of one text."""

    def __init__(self, tokenizer, path, length):
        with open(path, encoding="utf-8") as file:
            tokens = tokenizer(file.read(), return_tensors="pt").input_ids[0]
        self.rows = tokens[: len(tokens) // length * length].view(-1, length)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main(arguments=None):
    """Trains, saves the adapter, and prints what the job took. Returns the last loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--context", type=int, default=256)
    said = parser.parse_args(arguments)

    print(bitpager.hf.plan(AutoConfig.from_pretrained(said.model), batch=4, context=said.context))
    model = AutoModelForCausalLM.from_pretrained(
        said.model, quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map="auto"
    )
    model = peft.prepare_model_for_kbit_training(model)
    lora = bitpager.peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    model.print_trainable_parameters()

    data = Windows(AutoTokenizer.from_pretrained(said.model), said.text, said.context)
    args = TrainingArguments(
        said.out,
        optim="paged_adamw_8bit",
        max_steps=said.steps,
        per_device_train_batch_size=4,
        learning_rate=2e-4,
        logging_steps=10,
        save_steps=max(1, said.steps // 4),
        report_to=[],
    )
    trainer = bitpager.hf.Trainer(model, args, train_dataset=data)
    checkpoint = get_last_checkpoint(said.out) if os.path.isdir(said.out) else None
    result = trainer.train(resume_from_checkpoint=checkpoint)
    bitpager.hf.audit(model, trainer.optimizer)
    trainer.save_model(os.path.join(said.out, "adapter"))
    print(bitpager.memory_summary())
    return result.training_loss


if __name__ == "__main__":
    main()
