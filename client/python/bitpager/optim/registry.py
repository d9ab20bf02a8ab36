"""Which arena holds the states of which parameter, and where the daemon finds the parameter itself."""

from __future__ import annotations

import warnings

import torch

from .. import dtypes, errors, shared
from ..arena import Arena


class Slot:
    """Place of one parameter: `arena` and its index `tensor` there, and where the parameter was last found."""

    __slots__ = ("arena", "tensor", "storage", "address", "buffer", "offset", "dtype", "shape", "stride")

    def __init__(self, arena, tensor):
        self.arena = arena
        self.tensor = tensor
        self.storage = self.address = None


class Registry:
    """Arenas of one optimizer. Every call to admit() makes at most one arena per width."""

    def __init__(self, rule: int, evictable: bool, name: str, describe):
        self.rule = rule
        self.evictable = evictable
        self.name = name  # of the arenas; those made after a step get "+1", "+2" ...
        self.describe = describe  # parameter -> its name for messages
        self.arenas = []
        self.slots = {}
        self._generation = 0
        self._warned = False

    def extents(self):
        """Handles of all arenas."""
        return [arena.handle for arena in self.arenas]

    def admit(self, session, parameters, bits_of, resume_step=None) -> None:
        """Makes arenas for parameters that have none. bits_of: parameter -> 8 or 32. All or nothing."""
        new = [p for p in parameters if p not in self.slots and p.numel()]
        for parameter in new:
            require_parameter(parameter, self.describe(parameter))
        self._require_apart(new)
        name = self.name if self._generation == 0 else f"{self.name}+{self._generation}"
        made = []
        try:
            for bits in (8, 32):
                members = [p for p in new if bits_of(p) == bits]
                if members:
                    shapes = [tuple(p.shape) for p in members]
                    arena = Arena(session, self.rule, bits, self.evictable, name, shapes, resume_step)
                    made.append((arena, members))
        except BaseException:
            for arena, _ in made:
                arena.drop()
            raise
        for arena, members in made:
            self.arenas.append(arena)
            self.slots.update((p, Slot(arena, index)) for index, p in enumerate(members))
        self._generation += bool(made)

    def drop(self) -> None:
        """Gives all pages back and forgets every slot."""
        for arena in self.arenas:
            arena.drop()
        self.arenas.clear()
        self.slots.clear()
        self._generation = 0

    def locate(self, session, parameter, slot) -> None:
        """Brings the slot's place in shared memory up to date."""
        if slot.address == parameter.data_ptr() and slot.storage == parameter.untyped_storage()._cdata:
            if slot.shape == parameter.shape and slot.stride == parameter.stride():
                return
        self._refresh(session, parameter, slot)

    def _refresh(self, session, parameter, slot) -> None:
        name = self.describe(parameter)
        if parameter.numel() != slot.arena.elements[slot.tensor]:
            raise ValueError(
                f"{name} now has shape {tuple(parameter.shape)}; its states were made for "
                f"{slot.arena.elements[slot.tensor]} elements. Hint: make a new optimizer after resizing parameters."
            )
        require_parameter(parameter, name)
        place = shared.locate(session, parameter)
        if place.reason and not self._warned:
            self._warned = True
            warnings.warn(
                f"{name} stays in private memory because {place.reason}. It, and others like it, are copied to the "
                "daemon and back at every step. Hint: p.data = p.data.clone(), or a larger /dev/shm.",
                stacklevel=4,
            )
        slot.storage = parameter.untyped_storage()._cdata
        slot.address = parameter.data_ptr()
        slot.buffer = place.buffer
        slot.offset = parameter.storage_offset() * parameter.element_size() if place.buffer else 0
        slot.dtype = dtypes.CODES[parameter.dtype]
        slot.shape = parameter.shape
        slot.stride = parameter.stride()

    def _require_apart(self, new) -> None:
        """Two parameters over the same memory would be updated at once, in no order: refused."""
        ranges = []
        for parameter in list(self.slots) + new:
            if parameter.numel():
                start = parameter.data_ptr()
                ranges.append((start, start + parameter.numel() * parameter.element_size(), parameter))
        ranges.sort(key=lambda item: item[0])
        for (_, end, first), (start, _, second) in zip(ranges, ranges[1:]):
            if start < end:
                raise ValueError(
                    f"{self.describe(first)} and {self.describe(second)} share memory. Hint: tie weights by using one "
                    "Parameter object, and pass it once."
                )


def require_parameter(parameter: torch.Tensor, name: str) -> None:
    """Refuses parameters that a step cannot update in place."""
    if hasattr(parameter, "to_local"):
        raise errors.UnsupportedError(
            f"{name} is a DTensor. Hint: give the optimizer local tensors; sharded states are not supported yet.",
            45,
            "UNSUPPORTED",
        )
    if parameter.is_complex():
        raise ValueError(f"{name} is complex. Hint: optimize torch.view_as_real of it.")
    dtypes.require_float(parameter, name)
    if not dtypes.is_dense(parameter):
        raise ValueError(
            f"{name} has shape {tuple(parameter.shape)} and strides {parameter.stride()}: its elements overlap or have "
            "gaps. Hint: p.data = p.data.contiguous()."
        )


def refuse_gradient(parameter: torch.Tensor, name: str) -> None:
    """Says why the parameter's gradient cannot be stepped."""
    grad = parameter.grad
    if grad.layout is not torch.strided:
        raise ValueError(f"the gradient of {name} is sparse; bitpager steps dense gradients. Hint: use sparse=False.")
    require_parameter(parameter, name)
    dtypes.require_float(grad, f"the gradient of {name}")


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter's gradient as a dense tensor in the parameter's element order."""
    grad = parameter.grad
    if grad.is_neg() or not dtypes.same_order(grad, parameter):
        return torch.empty_like(parameter, dtype=grad.dtype, requires_grad=False).copy_(grad)
    return grad


def nonfinite_names(parameters, describe):
    """Names of the parameters whose gradients hold NaN or inf."""
    return [describe(p) for p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
