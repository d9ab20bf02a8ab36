"""torch alone: a frozen base in 4 bits, a head and a low-rank addition that train with 8-bit paged states, and a run
that goes on from its checkpoint.

    python plain_torch.py OUT [--steps 100]

The data are made up here. OUT: a folder for checkpoint.pt; a run that was stopped goes on from it. Needs only bitpager.
"""

from __future__ import annotations

import argparse
import os

import bitpager
import torch
import torch.nn.functional as F

WIDTH = 256


class Model(torch.nn.Module):
    """base(x) + up(down(x)), then a head. The base is frozen, in pages."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )
        self.down = torch.nn.Linear(WIDTH, 16, bias=False)
        self.up = torch.nn.Linear(16, WIDTH, bias=False)
        self.head = torch.nn.Linear(WIDTH, 2)
        torch.nn.init.zeros_(self.up.weight)
        self.base.requires_grad_(False)
        bitpager.nn.quantize_(self.base, quant_type="nf4", compute_dtype=torch.float32)

    def forward(self, x):
        return self.head(self.base(x) + self.up(self.down(x)))


def batch(step):
    """Always the same for one step: 64 vectors, and on which side of a plane they lie."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(64, WIDTH, generator=generator)
    return x, (x[:, :8].sum(1) > 0).long()


def main(arguments=None):
    """Trains; returns the last loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=100)
    said = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = Model()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = bitpager.optim.PagedAdamW8bit(trained, lr=3e-3)

    path, begin = os.path.join(said.out, "checkpoint.pt"), 0
    if os.path.exists(path):
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    loss = torch.tensor(float("nan"))
    for step in range(begin, said.steps):
        x, label = batch(step)
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        optimizer.note_gradients()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    os.makedirs(said.out, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": said.steps}, path)
    print(f"steps {begin} to {said.steps}: loss {loss.item():.3f}")
    print(bitpager.memory_summary())
    return loss.item()


if __name__ == "__main__":
    main()
