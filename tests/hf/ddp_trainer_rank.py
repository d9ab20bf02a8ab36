"""One rank of test_ddp under bitpager.hf.Trainer, started as torchrun starts it. Writes its adapters to OUT.

usage: ddp_trainer_rank.py MODEL OUT
"""

from __future__ import annotations

import os
import sys

import bitpager
import peft
import tiny
import torch
import transformers
from bitpager.hf import BitpagerConfig, Trainer

folder, out = sys.argv[1:3]
torch.set_num_threads(1)
bitpager.connect(spawn=False)  # its rank is in RANK
model = tiny.CLASSES["llama"].from_pretrained(folder, quantization_config=BitpagerConfig(), dtype=torch.bfloat16)
torch.manual_seed(2)
model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
model = peft.get_peft_model(model, bitpager.peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
args = transformers.TrainingArguments(
    os.path.dirname(out),
    optim="paged_adamw_8bit",
    max_steps=3,
    per_device_train_batch_size=2,
    ddp_backend="gloo",
    use_cpu=True,
    disable_tqdm=True,
    report_to=[],
    save_strategy="no",
)
trainer = Trainer(model, args, train_dataset=tiny.Windows(16, 32))
trainer.train()
assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"]) == 2
torch.save(
    {
        "adapters": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "job": bitpager.default_session().info()["job_name"],
    },
    out,
)
torch.distributed.destroy_process_group()
