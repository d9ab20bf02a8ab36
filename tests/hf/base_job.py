"""One of several QLoRA jobs on one base model (test_shared_base.py): loads MODEL quantized, says so, waits for a line
from stdin, trains adapters, decodes, writes its numbers to OUT. The daemon and the job come from the environment.

usage: base_job.py MODEL OUT
"""

from __future__ import annotations

import json
import sys

import bitpager
import tiny
import torch
from bitpager.hf import BitpagerConfig

folder, out = sys.argv[1:3]
torch.set_num_threads(1)
bitpager.connect(spawn=False)

import peft  # noqa: E402

model = tiny.CLASSES["llama"].from_pretrained(folder, quantization_config=BitpagerConfig(), dtype=torch.bfloat16)
print(json.dumps(bitpager.memory_stats()), flush=True)
sys.stdin.readline()
torch.manual_seed(2)
model = peft.get_peft_model(model, bitpager.peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = bitpager.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-2)
rows = tiny.windows(8, 32)
losses = []
for step in range(3):
    loss = model(input_ids=rows[2 * step : 2 * step + 2], labels=rows[2 * step : 2 * step + 2]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
with torch.no_grad():
    tokens = model.generate(input_ids=rows[:1, :8], max_new_tokens=8, do_sample=False)
torch.save({"losses": losses, "tokens": tokens}, out)
print(json.dumps(bitpager.memory_stats()), flush=True)
sys.stdin.readline()
