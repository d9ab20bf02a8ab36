"""What would help a step that does not fit, in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from . import errors
from .sizes import print_bytes


@dataclass
class Need:
    """What was wanted and where the GPU's memory is, in bytes; 0: nothing, or not known."""

    wanted: int = 0  # by the allocation that failed
    total: int = 0  # of the GPU
    free: int = 0
    tensors: int = 0  # of this process
    cached: int = 0  # by torch, without a tensor in it
    step: int = 0  # of the tensors: taken since the step began
    pages: int = 0  # of the job's, on the GPU
    nested: int = 0  # what double quantization would save of the job's weights
    checkpointing: bool | None = field(default=None)  # None: the model has no such thing

    @classmethod
    def of(cls, device, wanted, allocated_before, modules, sessions) -> Need:
        """As things are now on GPU `device` (None: there is none). allocated_before: {device: bytes at the step's
        begin}."""
        need = cls(wanted=wanted, nested=_saved_by_nesting(modules), checkpointing=_checkpointing(modules))
        if device is not None and torch.cuda.is_initialized():
            need.free, need.total = torch.cuda.mem_get_info(device)
            need.tensors = torch.cuda.memory_allocated(device)
            need.cached = torch.cuda.memory_reserved(device) - need.tensors
            peak = torch.cuda.max_memory_allocated(device)
            need.step = max(0, peak - allocated_before.get(device, peak))
        for session in sessions:
            try:
                need.pages += session.memory_stats()["resident_bytes"]
            except errors.Error:  # the figure is left out; the step's own error is what counts
                continue
        return need


def _saved_by_nesting(modules) -> int:
    """Four bytes a block become one, and four for every 256 blocks."""
    blocks = sum(
        math.ceil(pages.elements / pages.blocksize)
        for module in modules
        for pages in (getattr(p, "pages", None) for p in module.parameters())
        if pages is not None and not pages.nested
    )
    return 3 * blocks - 4 * math.ceil(blocks / 256) if blocks else 0


def is_checkpointing(module: torch.nn.Module):
    """True when transformers recomputes the module's activations, False when it does not; None: no such thing."""
    # transformers 5.23 renamed it, and warns of the older name.
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        found = getattr(module, name, None)
        if found is not None:
            return bool(found)
    return None


def _checkpointing(modules):
    found = [said for said in map(is_checkpointing, modules) if said is not None]
    return all(found) if found else None


def advice(need: Need) -> str:
    """Sentences for people: where memory is, then what would help, the largest first."""
    lines = ["bitpager.guard() undid the step, asked for room and tried it again, in vain."]
    if need.total:
        others = max(0, need.total - need.free - need.tensors - need.cached - need.pages)
        parts = [
            (need.tensors, "this process's tensors"),
            (need.cached, "torch's cache"),
            (need.pages, "pages of this job that cannot leave"),
            (others, "other jobs' pages, other processes, CUDA itself"),
            (need.free, "free"),
        ]
        lines.append(
            f"Of {print_bytes(need.total)}: " + ", ".join(f"{print_bytes(b)} {what}" for b, what in parts) + "."
        )
    helps = []
    if need.step:
        helps.append((need.step // 2, "half the batch, or half the context"))
        if need.checkpointing is False:
            helps.append((need.step * 2 // 3, "model.gradient_checkpointing_enable(), up to about"))
    helps += [
        (need.nested, "double quantization (compress_statistics=True)"),
        (need.cached, "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, up to"),
    ]
    said = [f"{print_bytes(size)} by {how}" for size, how in sorted(helps, reverse=True) if size > 0]
    if said:
        lines.append("What would help: " + "; ".join(said) + ".")
    else:
        lines.append("What would help: a smaller batch or context, gradient checkpointing, double quantization.")
    if need.wanted:
        lines.append(f"The allocation that failed wanted {print_bytes(need.wanted)}.")
    return "\n".join(lines)
