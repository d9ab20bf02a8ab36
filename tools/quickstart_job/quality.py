"""What 4 bits cost the decoder that the quickstart has trained: its held-out perplexity in bfloat16 and in NF4 with
double quantization. Runs in the training process, once training is done."""

from __future__ import annotations

import copy
import math

import bitpager
import settings
import torch
import torch.nn.functional as F
from text import windows


def perplexity(model: torch.nn.Module, data: torch.Tensor) -> float:
    """exp of the mean loss (nats a byte) over fixed windows of `data`; the loss is taken in float32."""
    generator = torch.Generator().manual_seed(settings.SEED)
    total = 0.0
    for _ in range(settings.QUALITY_BATCHES):
        batch = windows(data, settings.HELDOUT_WINDOWS, settings.CONTEXT, generator)
        with torch.no_grad():
            logits = model(batch[:, :-1]).float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    return math.exp(total / settings.QUALITY_BATCHES)


def perplexities(model: torch.nn.Module, data: torch.Tensor, session) -> dict:
    """{"bf16": ..., "nf4": ...}, of copies of `model`; the second has every linear layer in pages."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = {"bf16": perplexity(half, data)}
    bitpager.nn.quantize_(half, quant_type="nf4", compress_statistics=True, session=session)
    return {**found, "nf4": perplexity(half, data)}
