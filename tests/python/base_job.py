"""A QLoRA-like job: frozen 4-bit layers, low-rank adapters trained by a paged optimizer. Says "loaded" and goes on at a
line from stdin, twice: before it trains and before it ends. Prints its figures as JSON and writes its numbers to OUT.

usage: base_job.py OUT LAYERS WIDTH
"""

from __future__ import annotations

import json
import sys

import bitpager
import torch
from bitpager import nn

out, layers, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(5)
bitpager.connect(spawn=False)


def say(**what):
    print(json.dumps(what), flush=True)
    sys.stdin.readline()


class Adapted(torch.nn.Module):
    """x W^T + x A B, W in pages."""

    def __init__(self, index):
        super().__init__()
        dense = torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16)
        kind, nested = ("nf4", True) if index % 2 == 0 else ("fp4", False)
        self.base = nn.Linear4bit.from_linear(dense, quant_type=kind, compress_statistics=nested)
        self.a = torch.nn.Parameter(torch.randn(width, 2) / width**0.5)
        self.b = torch.nn.Parameter(torch.zeros(2, width))

    def forward(self, x):
        return torch.nn.functional.relu(self.base(x.bfloat16()).float() + x @ self.a @ self.b) + 0.1 * x


model = torch.nn.Sequential(*(Adapted(i) for i in range(layers)))
say(event="loaded", stats=bitpager.memory_stats())
adapters = [p for p in model.parameters() if p.requires_grad]
optimizer = bitpager.optim.PagedAdamW8bit(adapters, lr=1e-2)
inputs = torch.randn(4, width)
losses = []
for _ in range(4):
    loss = (model(inputs) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
torch.save({"losses": losses, "adapters": [p.detach() for p in adapters]}, out)
say(event="trained", stats=bitpager.memory_stats())
