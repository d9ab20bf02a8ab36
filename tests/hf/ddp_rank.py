"""One rank of test_ddp: a LoRA model over pages under DistributedDataParallel on the CPU. The job's name, the daemon
and the rank come from the environment. Writes its adapters to OUT.

usage: ddp_rank.py MODEL OUT
"""

from __future__ import annotations

import os
import sys

import bitpager
import tiny
import torch
import torch.distributed as dist
from bitpager.hf import BitpagerConfig

folder, out = sys.argv[1:3]
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
dist.init_process_group("gloo")
bitpager.connect(rank=rank, spawn=False)

import peft  # noqa: E402

model = tiny.CLASSES["llama"].from_pretrained(folder, quantization_config=BitpagerConfig(), dtype=torch.bfloat16)
torch.manual_seed(2)
model = peft.get_peft_model(model, bitpager.peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
optimizer = bitpager.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-2)
rows = tiny.windows(16, 32)
for step in range(4):
    batch = rows[4 * step : 4 * step + 4]
    mine = batch[rank * 4 // world : (rank + 1) * 4 // world]
    parallel(input_ids=mine, labels=mine).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if world > 1:
    dist.barrier()  # all have opened their sessions, and none has closed it
job = bitpager.default_session().info()["job_name"]
status = bitpager.telemetry.status()
torch.save(
    {
        "adapters": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "sessions": {s["rank"]: s["pid"] for s in status["sessions"] if s["job"] == job},
        "sessions_of_job": [j["sessions"] for j in status["jobs"] if j["name"] == job],
        "pid": os.getpid(),
        "job": job,
        "packed": model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.packed(),
    },
    out,
)
if world > 1:
    dist.barrier()
dist.destroy_process_group()
