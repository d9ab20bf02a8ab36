"""Which gradients hold NaN or inf, and how that is said.

Clipping by norm spreads one NaN over every gradient before the optimizer sees them. GradientNotes remembers how they
were before, without waiting for a GPU, and is read when a step has failed.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

_NAMES_SHOWN = 8
_STEPS_KEPT = 8  # a step on a stream is heard of some steps later
_CAUSE = (
    'Hint: check the loss, lower the learning rate or clip gradients; on_nonfinite="warn" goes on, "propagate" lets '
    "the values through."
)
_NAMES = " For names in their place give the optimizer model.named_parameters()."


class GradientNotes:
    """One number for each gradient, by step, which is finite as long as the gradient is (and its numbers are not so
    large that their squares are not)."""

    def __init__(self):
        self._by_step = OrderedDict()

    def take(self, step: int, parameters) -> None:
        """Notes the present gradients as those of `step`. One pass over them where they are; nothing is waited for."""
        groups = {}
        for p in parameters:
            if p.grad is None or hasattr(p.grad, "to_local"):  # a DTensor: the step will refuse it
                continue
            if p.grad.layout is torch.strided and p.grad.numel():
                groups.setdefault((p.grad.device, p.grad.dtype), []).append(p)
        found = []
        for members in groups.values():
            found.append((members, torch.stack(_witnesses([p.grad.detach() for p in members]))))
        self._by_step[step] = found
        while len(self._by_step) > _STEPS_KEPT:
            self._by_step.popitem(last=False)

    def broken(self, step: int) -> list:
        """Parameters whose gradients of that step held NaN or inf; [] when nothing was noted. Waits for a GPU."""
        return [
            p
            for members, witnesses in self._by_step.get(step, ())
            for p, finite in zip(members, torch.isfinite(witnesses).tolist())
            if not finite
        ]


def _witnesses(gradients) -> list:
    """Of gradients of one device and dtype; what is quick there. float16 would overflow in its own dtype."""
    is_half = gradients[0].dtype == torch.float16
    if gradients[0].is_cuda:
        return [g.norm(dtype=torch.float32) for g in gradients] if is_half else torch._foreach_norm(gradients, 2)
    return [g.sum(dtype=torch.float32) if is_half else g.sum() for g in gradients]


def broken_now(parameters) -> list:
    """Parameters whose gradients hold NaN or inf."""
    return [p for p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())]


def shown(names) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def message(step: int, blocks: int, where: str, has_names: bool) -> str:
    """blocks: how many were left out, 0 when unknown; where: "in a.weight, b.weight"."""
    return (
        f"step {step}: {blocks or 'some'} blocks hold NaN or inf gradients, {where}. These blocks were left untouched; "
        f"all other blocks are already updated. {_CAUSE}{'' if has_names else _NAMES}"
    )
