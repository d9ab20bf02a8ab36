"""FourBitParameter: the `weight` of a 4-bit layer.

Before quantization an ordinary float parameter. Afterwards its values are in the daemon's pages (or, on a GPU and when
asked for, in tensors of this process) and the tensor itself is a one-element placeholder seen in the packed shape:
shape, dtype and device read as those of the packed tensor, reading values exports the packed bytes, and writing in
place is refused. Two counts go by what they are asked for: numel() is that of the weight that was quantized (how many
parameters a model has), nelement() * element_size() are the bytes that it takes with its statistics (how much memory).
"""

from __future__ import annotations

import contextlib
import re
import warnings

import torch

from .. import dtypes, errors
from ..functional import get_4bit_type, packed_bytes
from ..quant_state import QuantState
from ..session import session_for
from ..weight import Weight
from .local_weight import LocalWeight

_VALUE_GETTERS = {"T", "mT", "H", "mH", "data", "real", "imag"}
_STATISTICS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_METADATA_METHODS = {
    "dim",
    "size",
    "ndimension",
    "stride",
    "storage_offset",
    "element_size",
    "get_device",
    "has_names",
    "is_complex",
    "is_contiguous",
    "is_floating_point",
    "is_inference",
    "is_pinned",
    "is_shared",
    "is_signed",
    "register_hook",
    "requires_grad_",
    "type",
    "__hash__",
    "__len__",
}


class PagedQuantState(QuantState):
    """The QuantState of a Weight: shape, dtype, code, kind at once; statistics are exported when they are read."""

    def __init__(self, pages: Weight):
        self._pages = pages
        self.shape = pages.shape
        self.dtype = pages.dtype
        self.blocksize = pages.blocksize
        self.quant_type = pages.quant_type
        self.code = get_4bit_type(pages.quant_type)

    @property
    def absmax(self):
        """As QuantState.absmax; a fresh copy at each reading."""
        return self._pages.export()[1].absmax

    @property
    def offset(self):
        """As QuantState.offset."""
        return self._pages.export()[1].offset if self.nested else None

    @property
    def state2(self):
        """As QuantState.state2."""
        return self._pages.export()[1].state2 if self.nested else None

    @property
    def nested(self) -> bool:
        """True with double quantization."""
        return self._pages.nested

    def as_dict(self, packed: bool = False) -> dict:
        """As QuantState.as_dict."""
        return self._pages.export()[1].as_dict(packed)

    def to(self, device):
        """The pages stay where they are; refuses another kind of device."""
        dtypes.require_device(torch.empty(0, device=device), "the quantization state", self._pages.device.type)
        return self

    def __deepcopy__(self, memo):
        return self._pages.export()[1]

    def __reduce__(self):
        return (QuantState.from_dict, (self.as_dict(packed=True),))


class FourBitParameter(torch.nn.Parameter):
    """See the file's top. `pages` is the Weight, or None before quantization; requires_grad is False."""

    def __new__(cls, data=None, pages=None, quant_storage=torch.uint8):
        if pages is not None:
            data = _placeholder(pages.elements, quant_storage, getattr(pages, "device", None))
        elif data is None:
            data = torch.empty(0)
        self = torch.Tensor._make_subclass(cls, data, False)
        self.pages = pages
        self.quant_storage = quant_storage
        return self

    @property
    def quant_state(self):
        """The QuantState, or None before quantization."""
        if isinstance(self.pages, LocalWeight):
            return self.pages.state
        return None if self.pages is None else PagedQuantState(self.pages)

    def nelement(self) -> int:
        """Elements of this dtype that hold the packed bytes and their statistics; see the file's top. numel() before
        quantization."""
        return self.numel() if self.pages is None else -(-self.pages.packed_bytes // self.element_size())

    def __getattr__(self, name):
        """Statistics under their names in state dicts, for torch.distributed.checkpoint, which looks keys up so."""
        if name in _STATISTICS and self.__dict__.get("pages") is not None:
            statistics = self.quant_state.as_dict(packed=True)
            if name in statistics:
                return statistics[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def packed(self) -> torch.Tensor:
        """The packed bytes, a copy in the interchange layout."""
        return self.pages.export(self.quant_storage)[0]

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        if self.pages is None:
            twin = FourBitParameter(_plain(self).clone(), quant_storage=self.quant_storage)
        elif isinstance(self.pages, LocalWeight):
            twin = FourBitParameter(pages=self.pages.copy(), quant_storage=self.quant_storage)
        else:
            name, session = self.pages.name + "-copy", self.pages.session
            twin = _restore(*self.pages.export(self.quant_storage), name, session, False, _placed(self.pages))
        memo[id(self)] = twin
        return twin

    def __reduce_ex__(self, protocol):
        if self.pages is None:
            return (FourBitParameter, (_plain(self).clone(), None, self.quant_storage))
        packed, state = self.pages.export(self.quant_storage)
        local = isinstance(self.pages, LocalWeight)
        placed = {} if local else _placed(self.pages)
        return (_unpickle, (packed, state.as_dict(packed=True), self.pages.name, local, placed))

    def __repr__(self, **_):
        if self.pages is None:
            return f"FourBitParameter({_plain(self)!r})"
        return f"FourBitParameter({self.pages!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if _is_paged(args[0] if args else None) and _asks_for_gradients(func, name, args, kwargs):
                raise errors.UnsupportedError(
                    "a 4-bit weight in pages does not train. Hint: adapters do, over the frozen weight: "
                    "peft.get_peft_model(model, bitpager.peft.LoraConfig(...)); or load without quantization and train "
                    "with 8-bit states.",
                    45,
                    "UNSUPPORTED",
                )
            if not _touches_pages(args, kwargs) or _is_metadata(func, name):
                return func(*args, **kwargs)
            if name == "numel":
                return args[0].pages.elements
            if name == "__set__":
                return _set(func, args)
            if name.endswith("_") and not name.endswith("__"):
                raise TypeError(
                    f"{name}() would write into a quantized weight. Hint: quantize new values with "
                    "layer.quantize_(tensor), or load a state dict."
                )
            with _clashes_explained(name):
                made = func(*(_materialised(a) for a in args), **{k: _materialised(v) for k, v in kwargs.items()})
            # What PEFT's own layers read of a base before they calculate with it.
            is_read = name in ("to", "clone") or getattr(getattr(func, "__self__", None), "__name__", "") == "data"
            return made.as_subclass(PackedBytes) if is_read else made


class PackedBytes(torch.Tensor):
    """Packed bytes that were read of a weight in pages (`weight.data`, `weight.to(...)`, `weight.clone()`): an ordinary
    tensor, but that whoever takes it for the matrix, whose shape it does not have, is told so. Results are plain."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            with _clashes_explained(name):
                made = func(*args, **(kwargs or {}))
            return made.as_subclass(cls) if name in ("to", "clone", "detach") else made

    def __reduce_ex__(self, protocol):
        return _plain(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), _plain(self).clone())


@contextlib.contextmanager
def _clashes_explained(name: str):
    """Turns torch's RuntimeError about shapes that do not go together into UnsupportedError with a hint."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError or not re.search("shape|size|dimension", str(error)):
            raise  # ours, out of memory, a device's
        raise errors.UnsupportedError(
            f"{name.strip('_')}() of a 4-bit weight works on its packed bytes, which have not the matrix's shape: "
            f"{error}. Hint: merging and DoRA over pages take bitpager.peft.LoraConfig in the place of peft's, "
            "bitpager.peft.load_adapter in the place of PeftModel.from_pretrained, or, before merging, "
            "bitpager.peft.adopt(model); layer.dequantize() gives the matrix.",
            45,
            "UNSUPPORTED",
        ) from error


def warn_of_frozen(parameters, stacklevel) -> None:
    """Warns an optimizer's user when 4-bit weights are among `parameters` and all others train: a quantized model
    without adapters. With adapters the model's norms and embeddings are frozen too."""
    others = [p for p in parameters if not isinstance(p, FourBitParameter)]
    count = len(parameters) - len(others)
    if count and all(p.requires_grad for p in others):
        warnings.warn(
            f"{count} of the optimizer's parameters are 4-bit weights, which do not train; what trains are "
            f"{sum(p.numel() for p in others):,} numbers beside them: embeddings, norms, biases. Hint: add adapters, "
            "peft.get_peft_model(model, bitpager.peft.LoraConfig(...)), or give the optimizer what is to train alone.",
            stacklevel=stacklevel,
        )


def _placeholder(elements: int, dtype: torch.dtype, device=None) -> torch.Tensor:
    """A tensor of the packed shape over one element of memory. Not a view: torch.compile asks views for their base."""
    one = torch.zeros(1, dtype=dtype, device=device)
    rows = packed_bytes(elements, dtype) // one.element_size()
    return torch.empty(0, dtype=dtype, device=device).set_(one.untyped_storage(), 0, (rows, 1), (0, 1))


def _asks_for_gradients(func, name: str, args, kwargs) -> bool:
    """weight.requires_grad_() and weight.requires_grad = True."""
    if name == "requires_grad_":
        return bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    is_flag = name == "__set__" and getattr(getattr(func, "__self__", None), "__name__", "") == "requires_grad"
    return is_flag and bool(args[1])


def _is_metadata(func, name: str) -> bool:
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _VALUE_GETTERS
    return name in _METADATA_METHODS


def _touches_pages(args, kwargs) -> bool:
    return any(_is_paged(a) for a in args) or any(_is_paged(v) for v in kwargs.values()) or _in_list(args)


def _in_list(args) -> bool:
    return any(isinstance(a, (list, tuple)) and any(_is_paged(item) for item in a) for a in args)


def _is_paged(value) -> bool:
    return isinstance(value, FourBitParameter) and value.__dict__.get("pages") is not None


def _materialised(value):
    if _is_paged(value):
        return value.packed()
    if isinstance(value, (list, tuple)) and any(_is_paged(item) for item in value):
        return type(value)(_materialised(item) for item in value)
    return value


def _set(func, args):
    """Setting .data: equal sizes take the bytes over; .grad and requires_grad pass."""
    owner, value = args[0], args[1]
    if getattr(func.__self__, "__name__", "") != "data" or not _is_paged(owner):
        return func(*args)
    packed = _materialised(value)
    if packed.shape != owner.shape or packed.dtype != owner.dtype:
        raise TypeError(
            f"cannot set the data of a quantized weight of shape {tuple(owner.shape)} and dtype {owner.dtype} to "
            f"{tuple(packed.shape)} and {packed.dtype}. Hint: layer.quantize_(tensor) takes new float values."
        )
    owner.pages.import_packed(packed, owner.pages.export()[1])
    return None


def _plain(parameter) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return parameter.detach().as_subclass(torch.Tensor)


def _placed(pages: Weight) -> dict:
    """How the pages are kept, for a copy of them."""
    return {"offload": pages.offload, "share": pages.share}


def _restore(packed, state, name, session, local, placed) -> FourBitParameter:
    pages = pages_of(packed, state, name, session, local, **placed)
    return FourBitParameter(pages=pages, quant_storage=packed.dtype)


def pages_of(packed, state, name=None, session=None, local=False, **placed):
    """A weight with these bytes and statistics where `packed` is: in the pages of `session` (None: the default one of
    that device), offloaded and shared as Weight's arguments `placed` say, or, with `local` and on a GPU, in this
    process."""
    if local and packed.is_cuda:
        return LocalWeight(packed, state.to(packed.device), name)
    return Weight.from_packed(packed, state, name=name, session=session or session_for(packed.device), **placed)


def _unpickle(packed, state, name, local=False, placed=None) -> FourBitParameter:
    return _restore(packed, QuantState.from_dict(state), name, None, local, placed or {})
