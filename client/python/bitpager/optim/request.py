"""Request: what one step asks of one arena."""

from __future__ import annotations

import torch

from .. import _lib
from .packed import PackedStep

GRAD_CODES = {torch.float32: _lib.F32, torch.float16: _lib.F16, torch.bfloat16: _lib.BF16}


class Request:
    """What one step asks of one arena. Holds the gradients, which must live until the step has been submitted."""

    __slots__ = ("table", "parameters", "plain", "_rows", "_gradients", "_states", "_groups", "_group_count")

    def __init__(self, groups: int):
        self._group_count = groups
        self.plain = True  # every parameter with its group's settings and its own gradient
        self.table = {}  # settings -> their index
        self.parameters = []
        self._rows, self._gradients, self._states, self._groups = [], [], [], []

    def add(self, slot, parameter, gradient, state, settings, group, overridden) -> None:
        """One parameter of the group numbered `group`; `slot` is up to date, `state` its dict with the count of steps
        so far. overridden: the settings are not its group's."""
        self.plain = self.plain and not overridden and gradient is parameter.grad
        place = self.table.setdefault(settings, len(self.table))
        self.parameters.append(parameter)
        self._gradients.append(gradient)
        self._states.append(state)
        self._groups.append(group)
        self._rows.append(
            (
                slot.tensor,
                place,
                state.get("step", 0) + 1,
                slot.dtype,
                GRAD_CODES[gradient.dtype],
                slot.buffer,
                slot.offset,
                slot.address,
                0,
                0,
                gradient.data_ptr(),
            )
        )

    def entries(self):
        """Rows for Arena.step, ascending by tensor (groups may have been reordered since the arena was made)."""
        return sorted(self._rows)

    def pack(self, arena) -> PackedStep:
        """The same as a step on a CUDA stream. Its rows point to the optimizer's groups when it is plain, else into
        `table`."""
        for state in self._states:
            state.setdefault("step", 0)
        order = sorted(range(len(self._rows)), key=self._rows.__getitem__)
        rows = [self._rows[i] for i in order]
        groups = len(self.table)
        if self.plain:
            rows = [(row[0], self._groups[i], *row[2:]) for i, row in zip(order, rows)]
            groups = self._group_count
        parts = (self.parameters, self._gradients, self._states)
        return PackedStep(arena, rows, *([part[i] for i in order] for part in parts), groups)

    def count(self, change: int) -> None:
        """Adds to every parameter's count of steps."""
        for state in self._states:
            state["step"] = state.get("step", 0) + change


def settings_of(group, override):
    """(lr, beta1, beta2, eps, weight_decay) at this moment."""
    merged = {**group, **override} if override else group
    betas = merged["betas"]
    return (
        float(merged["lr"]),
        float(betas[0]),
        float(betas[1]),
        float(merged.get("eps", 0.0)),
        float(merged["weight_decay"]),
    )
