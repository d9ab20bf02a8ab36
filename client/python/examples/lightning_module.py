"""A LightningModule over a 4-bit base: what configure_optimizers returns, and a run that goes on from a checkpoint.

    python lightning_module.py OUT [--steps 50] [--resume OUT/last.ckpt]

A frozen backbone in pages with a trained head and trained low-rank additions, on numbers made up here. Needs lightning.
"""

from __future__ import annotations

import argparse
import os

import bitpager
import lightning
import torch
import torch.nn.functional as F

WIDTH = 128


class Adapted(torch.nn.Module):
    """A frozen layer with a low-rank addition that trains."""

    def __init__(self, layer: torch.nn.Linear, rank: int):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, layer.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Regression(lightning.LightningModule):
    """Learns the sign of a fixed projection of its input."""

    def __init__(self, lr=1e-2):
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        backbone = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH))
        bitpager.nn.quantize_(backbone, compute_dtype=torch.float32)
        backbone.requires_grad_(False)
        self.model = torch.nn.Sequential(
            Adapted(backbone[0], 8), backbone[1], Adapted(backbone[2], 8), torch.nn.Linear(WIDTH, 2)
        )

    def training_step(self, batch, index):
        x, label = batch
        loss = F.cross_entropy(self.model(x), label)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        """Named, so that messages name parameters; a scheduler that rewrites the learning rate at every step."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = bitpager.optim.PagedAdamW8bit(trained, lr=self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches(count=64, size=16):
    """Equal at every call."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, WIDTH, generator=generator)
    label = (x @ torch.randn(WIDTH, generator=generator) > 0).long()
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, label), batch_size=size)


def main(arguments=None):
    """Trains; returns the last loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--resume", help="a checkpoint to go on from")
    said = parser.parse_args(arguments)
    trainer = lightning.Trainer(
        default_root_dir=said.out,
        max_steps=said.steps,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Regression(), batches(), ckpt_path=said.resume)
    trainer.save_checkpoint(os.path.join(said.out, "last.ckpt"))
    print(bitpager.memory_summary())
    return trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    main()
