"""Job (a): all parameters of the model, trained with PagedAdamW8bit on Python sources.

usage: full.py SOCKET JOB [BASE_FILE]. With BASE_FILE the model as it is after settings.BASE_STEP is saved there.
"""

from __future__ import annotations

import os
import sys

import bitpager
import settings
import text
import torch
from model import ByteModel, Shape
from quality import perplexities
from trainer import PageCounter, digest, settle, state_bytes, tell, train


def save_base(model: ByteModel, path: str) -> None:
    """Whole or not at all, since the other job waits for it."""
    torch.save(model.state_dict(), path + ".part")
    os.replace(path + ".part", path)
    tell("base")


def optimizer_of(model: ByteModel, session):
    """Of all parameters; the ends (embeddings, norm, head) have a learning rate of their own."""
    blocks = list(model.blocks.parameters())
    inside = {id(p) for p in blocks}
    ends = [p for p in model.parameters() if id(p) not in inside]
    return bitpager.optim.PagedAdamW8bit(
        [{"params": blocks, "lr": settings.FULL_LR_BLOCKS}, {"params": ends, "lr": settings.FULL_LR_ENDS}],
        betas=(0.9, 0.95),
        weight_decay=0.01,
        session=session,
    )


def main(socket: str, job: str, base_file: str | None) -> None:
    settle(settings.SEED)
    session = bitpager.connect(socket=socket, job=job, spawn=False)
    page_bytes = session.info()["page_bytes"]
    model = ByteModel(Shape(context=settings.CONTEXT))
    optimizer = optimizer_of(model, session).prepare()

    # A step visits every page once; those that stayed since the last step need no move.
    counter = PageCounter(session, lambda usage: usage["pages"] - usage["resident_bytes"] / page_bytes)

    def after(step: int) -> None:
        counter.after_step()
        if base_file and step == settings.BASE_STEP:
            save_base(model, base_file)

    words = text.code()
    outcome = train(model, optimizer, words, settings.FULL_STEPS, after)
    moved = counter.summary(page_bytes)
    tell(
        "result",
        parameters=sum(p.numel() for p in model.parameters()),
        code_bytes=state_bytes(model.parameters()),
        unigram=text.unigram_entropy(words.heldout),
        sha256=digest(model),
        perplexity=None if base_file else perplexities(model, words.heldout, session),
        **moved,
        **outcome.report(),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
