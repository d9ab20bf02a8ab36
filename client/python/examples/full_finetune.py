"""Training of every parameter on a text file, with 8-bit paged AdamW: 2 bytes of states a parameter in the place of 8,
which may leave the GPU.

    python full_finetune.py MODEL TEXT OUT [--steps 100] [--dtype bfloat16]

MODEL: a folder or a name that transformers knows, with its tokenizer. TEXT: a plain text file. OUT: where checkpoints
and the model go; a run that was stopped goes on from its newest checkpoint. Parameters in bfloat16 do not see updates
that are smaller than 1/512 of them; with --dtype float32 they do, for twice the bytes. Needs bitpager[hf].
"""

from __future__ import annotations

import argparse
import os

import bitpager
from bitpager.hf import Trainer, plan
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def windows(tokenizer, path, length):
    """Neighbouring windows of `length` tokens of one text."""
    with open(path, encoding="utf-8") as file:
        tokens = tokenizer(file.read(), return_tensors="pt").input_ids[0]
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    return [{"input_ids": row, "labels": row} for row in rows]


def main(arguments=None):
    """Trains, saves the model, and prints what the job took. Returns the mean loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    said = parser.parse_args(arguments)

    config = AutoConfig.from_pretrained(said.model)
    scheme = next(row for row in plan(config, batch=4, context=said.context).schemes if "8bit" in row.name)
    print(f"planned: {scheme.total:,} bytes, of which {scheme.host:,} may leave the GPU")
    model = AutoModelForCausalLM.from_pretrained(said.model, dtype=said.dtype)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()

    tokenizer = AutoTokenizer.from_pretrained(said.model)
    args = TrainingArguments(
        said.out,
        optim="paged_adamw_8bit",
        max_steps=said.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        logging_steps=10,
        save_steps=max(1, said.steps // 4),
        report_to=[],
    )
    trainer = Trainer(model, args, train_dataset=windows(tokenizer, said.text, said.context))
    checkpoint = get_last_checkpoint(said.out) if os.path.isdir(said.out) else None
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(os.path.join(said.out, "model"))
    print(bitpager.memory_summary())
    return result.training_loss


if __name__ == "__main__":
    main()
