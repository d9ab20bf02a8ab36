"""Which arena holds the states of which parameter, and where the daemon finds the parameter itself."""

from __future__ import annotations

import warnings
import weakref

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

    @property
    def on_gpu(self) -> bool:
        """Its steps run on a CUDA stream."""
        return self.arena.session.device_kind == "cuda"


class Registry:
    """Arenas of one optimizer. Every call to admit() makes at most one arena per width. describe, report: bound methods
    of the optimizer, which is not kept alive: with its last reference it goes, and its parameters' memory with it."""

    def __init__(self, rule: int, evictable: bool, name: str, describe, report):
        self.rule = rule
        self.evictable = evictable
        self.name = name  # of the arenas; those made after a step get "+1", "+2" ...
        self._describe = weakref.WeakMethod(describe)
        self._report = weakref.WeakMethod(report)  # (arena, _lib.Finished): a step on a stream left blocks out
        self.arenas = []
        self.slots = {}
        self._generation = 0
        self._warned = False

    def describe(self, parameter) -> str:
        """Its name for messages."""
        return self._describe()(parameter)

    def extents(self):
        """Handles of all arenas."""
        return [arena.handle for arena in self.arenas]

    def admit(self, session_of, parameters, bits_of, resume_step=None) -> None:
        """Makes arenas for parameters that have none, one for each device and width. session_of: torch.device ->
        Session; bits_of: parameter -> 8 or 32. All or nothing."""
        new = [p for p in parameters if p not in self.slots and p.numel()]
        for parameter in new:
            require_parameter(parameter, self.describe(parameter))
        self._require_apart(new)
        name = self.name if self._generation == 0 else f"{self.name}+{self._generation}"
        made = []
        try:
            for place, device in enumerate(dict.fromkeys(p.device for p in new)):
                session = session_of(device)
                of_device = name if place == 0 else f"{name}@{place}"
                for bits in (8, 32):
                    members = [p for p in new if p.device == device and bits_of(p) == bits]
                    if members:
                        shapes = [tuple(p.shape) for p in members]
                        arena = Arena(session, self.rule, bits, self.evictable, of_device, shapes, resume_step)
                        made.append((arena, members))
        except BaseException:
            for arena, _ in made:
                arena.drop()
            raise
        for arena, members in made:
            arena.on_nonfinite = self._teller(arena)
            self.arenas.append(arena)
            self.slots.update((p, Slot(arena, index)) for index, p in enumerate(members))
        self._generation += bool(made)

    def _teller(self, arena):
        """What `arena` calls when a step on a stream left blocks out. Keeps neither alive."""
        report, reference = self._report, weakref.ref(arena)

        def tell(finished):
            method = report()
            if method is not None:
                method(reference(), finished)

        return tell

    def parameter_at(self, arena, tensor: int):
        """The parameter of an arena's tensor; None when there is none."""
        return next((p for p, slot in self.slots.items() if slot.arena is arena and slot.tensor == tensor), None)

    def drop(self) -> None:
        """Gives all pages back and forgets every slot."""
        for arena in self.arenas:
            arena.drop()
        self.arenas.clear()
        self.slots.clear()
        self._generation = 0

    def locate(self, parameter, slot) -> None:
        """Brings the slot's place up to date: in shared memory, or its address in a GPU."""
        if slot.address == parameter.data_ptr() and slot.storage == parameter.untyped_storage()._cdata:
            if slot.shape == parameter.shape and slot.stride == parameter.stride():
                return
        self._refresh(parameter, slot)

    def _refresh(self, parameter, slot) -> None:
        name = self.describe(parameter)
        if parameter.numel() != slot.arena.elements[slot.tensor]:
            raise ValueError(
                f"{name} now has shape {tuple(parameter.shape)}; its states were made for "
                f"{slot.arena.elements[slot.tensor]} elements. Hint: make a new optimizer after resizing parameters."
            )
        require_parameter(parameter, name)
        if parameter.is_cuda != slot.on_gpu:
            raise ValueError(
                f"{name} is now on {parameter.device}; its states are for {slot.arena.session.device_uuid}. Hint: move "
                "parameters before the first step, or save state_dict() and load it into a new optimizer."
            )
        slot.storage = parameter.untyped_storage()._cdata
        slot.address = parameter.data_ptr()
        slot.buffer = slot.offset = 0
        slot.dtype = dtypes.CODES[parameter.dtype]
        slot.shape = parameter.shape
        slot.stride = parameter.stride()
        if not slot.on_gpu:
            self._share(parameter, slot, name)

    def _share(self, parameter, slot, name) -> None:
        place = shared.locate(slot.arena.session, parameter)
        if place.reason and not self._warned:
            self._warned = True
            warnings.warn(
                f"{name} stays in private memory because {place.reason}. It, and others like it, are copied to the "
                "daemon and back at every step. Hint: p.data = p.data.clone(), or a larger /dev/shm.",
                stacklevel=4,
            )
        slot.address = parameter.data_ptr()  # sharing may have moved it
        slot.storage = parameter.untyped_storage()._cdata
        slot.buffer = place.buffer
        slot.offset = parameter.storage_offset() * parameter.element_size() if place.buffer else 0

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
    require_dense_float(parameter, name)
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
    require_dense_float(grad, f"the gradient of {name}")


def require_dense_float(tensor: torch.Tensor, name: str) -> None:
    """Refuses what neither the processor nor a GPU steps."""
    if tensor.is_cuda and tensor.layout == torch.strided and tensor.dtype in dtypes.FLOATS:
        return
    dtypes.require_float(tensor, name)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter's gradient as a dense tensor in the parameter's element order."""
    grad = parameter.grad
    if grad.is_neg() or not dtypes.same_order(grad, parameter):
        return torch.empty_like(parameter, dtype=grad.dtype, requires_grad=False).copy_(grad)
    return grad
