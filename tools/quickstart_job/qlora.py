"""Job (b): QLoRA on a frozen NF4, double-quantized copy of the model, taught the Unicode character names.

usage: qlora.py SOCKET JOB BASE_FILE
"""

from __future__ import annotations

import sys

import bitpager
import settings
import text
import torch
from model import ByteModel, Shape, wrap_linears
from torch import nn
from trainer import PageCounter, digest, settle, state_bytes, tell, train


def quantized(linear: nn.Linear) -> nn.Linear:
    """A frozen NF4 layer with the values of `linear`, whose own memory is given up with it."""
    return bitpager.nn.Linear4bit.from_linear(
        linear, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )


def main(socket: str, job: str, base_file: str) -> None:
    settle(settings.SEED)
    session = bitpager.connect(socket=socket, job=job, spawn=False)
    page_bytes = session.info()["page_bytes"]
    model = ByteModel(Shape(context=settings.CONTEXT))
    model.load_state_dict(torch.load(base_file, weights_only=True))
    frozen = sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 2)
    frozen += model.head.weight.numel()
    wrap_linears(model, quantized, settings.RANK, settings.ALPHA)
    adapters = [p for p in model.parameters() if p.requires_grad]
    weight_pages = session.memory_stats()["pages"]
    optimizer = bitpager.optim.PagedAdamW8bit(
        adapters, lr=settings.QLORA_LR, betas=(0.9, 0.95), weight_decay=0.0, session=session
    ).prepare()
    state_pages = session.memory_stats()["pages"] - weight_pages

    def passes(usage: dict) -> float:
        """Weights are visited twice a step (forward, and backward the other way round), states once."""
        weights = weight_pages - usage["resident_weight_bytes"] / page_bytes
        states = state_pages - usage["resident_state_bytes"] / page_bytes
        return 2 * weights + states

    counter = PageCounter(session, passes)
    outcome = train(model, optimizer, text.names(), settings.QLORA_STEPS, lambda step: counter.after_step())
    tell(
        "result",
        parameters=sum(p.numel() for p in adapters),
        code_bytes=state_bytes(adapters),
        frozen=frozen,
        sha256=digest(model),
        **counter.summary(page_bytes),
        **outcome.report(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
