"""Weight: a quantized tensor that lives in the daemon's pages."""

from __future__ import annotations

import ctypes
import itertools

import torch

from . import _lib, dtypes
from .functional import BLOCKSIZES_4BIT, NESTED_BLOCKSIZE, create_dynamic_map, get_4bit_type, packed_bytes
from .quant_state import QUANT_TYPES, QuantState
from .session import default_session
from .shared import drop_later

_names = itertools.count()


class Weight:
    """A 4-bit tensor of `shape` in pages of the session's job; its pages go back when the object does.

    shape: of the tensor; dtype: what dequantize() returns by default, and the dtype recorded for interchange;
    quant_type: "nf4" or "fp4"; blocksize: 32, 64 ... 4096; nested: double quantization; name: shown to operators;
    session: None for the default one. Raises QuotaError or BudgetError with the bytes that are missing.
    """

    def __init__(
        self,
        shape,
        dtype=torch.float32,
        quant_type="nf4",
        blocksize=64,
        nested=True,
        name=None,
        session=None,
    ):
        if quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type must be 'nf4' or 'fp4'; got {quant_type!r}")
        if blocksize not in BLOCKSIZES_4BIT:
            raise ValueError(f"blocksize must be one of {BLOCKSIZES_4BIT}; got {blocksize!r}")
        if dtype not in dtypes.FLOATS:
            raise ValueError(f"dtype must be float32, float16 or bfloat16; got {dtype}")
        self.shape = torch.Size(shape)
        self.elements = self.shape.numel()
        self.dtype = dtype
        self.quant_type = quant_type
        self.blocksize = blocksize
        self.nested = bool(nested)
        self.name = name or f"weight-{next(_names)}"
        self.session = session or default_session()
        options = _lib.sized(_lib.WeightOptions)
        options.quant_type = _lib.QUANT_TYPES[quant_type]
        options.blocksize = blocksize
        options.nested = int(self.nested)
        options.elements = self.elements
        options.name = self.name.encode()
        handle = ctypes.c_uint64()
        _lib.check(_lib.lib().bp_weight_create(self.session.handle, ctypes.byref(options), ctypes.byref(handle)))
        self.handle = handle.value
        self._finalizer = drop_later(self, self.session, "bp_weight_drop", self.handle)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, **options) -> Weight:
        """A weight of the tensor's shape and dtype, holding its quantized values."""
        dtypes.require_float(tensor, "tensor")
        return cls(tensor.shape, dtype=tensor.dtype, **options).quantize_(tensor)

    @classmethod
    def from_packed(cls, packed: torch.Tensor, state: QuantState, **options) -> Weight:
        """A weight with exactly the bytes and statistics of a packed tensor."""
        weight = cls(
            state.shape,
            dtype=state.dtype,
            quant_type=state.quant_type,
            blocksize=state.blocksize,
            nested=state.nested,
            **options,
        )
        return weight.import_packed(packed, state)

    def extents(self):
        """The weight's handle, for prefetch."""
        return [self.handle]

    def quantize_(self, tensor: torch.Tensor) -> Weight:
        """Quantizes a float tensor of this shape into the pages. Returns itself."""
        code = dtypes.require_float(tensor, "tensor")
        if tensor.shape != self.shape:
            raise ValueError(f"tensor has shape {tuple(tensor.shape)}, the weight {tuple(self.shape)}")
        source = tensor.detach().contiguous()
        _lib.check_idempotent(
            _lib.lib().bp_weight_quantize, self.session.handle, self.handle, code, source.data_ptr(), 0, 0
        )
        return self

    def dequantize(self, dtype=None, out=None, path="auto") -> torch.Tensor:
        """The tensor, in `dtype` (None: the weight's), into `out` when given.

        path: "auto" (lease when resident, else a request), "request" (the daemon decodes) or "lease" (this process
        reads the frames in place; BusyError or NotResidentError when it cannot)."""
        if path not in _lib.PATHS:
            raise ValueError(f"path must be one of {', '.join(_lib.PATHS)}; got {path!r}")
        if out is None:
            out = torch.empty(self.shape, dtype=self.dtype if dtype is None else dtype)
        code = dtypes.require_float(out, "out")
        if out.shape != self.shape or not out.is_contiguous():
            raise ValueError(f"out must be contiguous and of shape {tuple(self.shape)}")
        _lib.check_idempotent(
            _lib.lib().bp_weight_dequantize,
            self.session.handle,
            self.handle,
            code,
            out.data_ptr(),
            0,
            0,
            _lib.PATHS[path],
            None,
        )
        return out

    def export(self, quant_storage=torch.uint8):
        """(packed, QuantState): copies in the interchange layout, packed of shape [bytes in quant_storage, 1]."""
        blocks = (self.elements + self.blocksize - 1) // self.blocksize
        groups = (blocks + NESTED_BLOCKSIZE - 1) // NESTED_BLOCKSIZE
        packed = torch.zeros(packed_bytes(self.elements, quant_storage), dtype=torch.uint8)
        absmax = torch.empty(blocks, dtype=torch.uint8 if self.nested else torch.float32)
        absmax2 = torch.empty(groups if self.nested else 0, dtype=torch.float32)
        offset = ctypes.c_float()
        _lib.check_idempotent(
            _lib.lib().bp_weight_export,
            self.session.handle,
            self.handle,
            packed.data_ptr(),
            absmax.data_ptr(),
            absmax2.data_ptr() if self.nested else None,
            ctypes.byref(offset) if self.nested else None,
        )
        return packed.view(quant_storage).reshape(-1, 1), self._state(absmax, absmax2, offset.value)

    def _state(self, absmax, absmax2, offset) -> QuantState:
        state = QuantState(
            absmax=absmax,
            shape=self.shape,
            code=get_4bit_type(self.quant_type),
            blocksize=self.blocksize,
            quant_type=self.quant_type,
            dtype=self.dtype,
        )
        if self.nested:
            state.offset = torch.tensor(offset, dtype=torch.float32)
            state.state2 = QuantState(
                absmax=absmax2, code=create_dynamic_map(), blocksize=NESTED_BLOCKSIZE, dtype=torch.float32
            )
        return state

    def import_packed(self, packed: torch.Tensor, state: QuantState) -> Weight:
        """Takes over bytes and statistics as they are; ValueError when they do not fit this weight. Returns itself."""
        self._require_fit(packed, state)
        packed = packed.detach().contiguous()
        absmax = state.absmax.detach().contiguous()
        absmax2 = state.state2.absmax.detach().float().contiguous() if self.nested else None
        _lib.check_idempotent(
            _lib.lib().bp_weight_import,
            self.session.handle,
            self.handle,
            packed.data_ptr(),
            absmax.data_ptr(),
            absmax2.data_ptr() if self.nested else None,
            float(state.offset) if self.nested else 0.0,
        )
        return self

    def _require_fit(self, packed, state):
        wanted = (self.shape, self.quant_type, self.blocksize, self.nested)
        given = (torch.Size(state.shape), state.quant_type, state.blocksize, state.nested)
        if wanted != given:
            raise ValueError(f"the packed tensor is {given}, the weight {wanted} (shape, type, block size, nested)")
        dtypes.require_cpu(packed, "packed")
        if packed.numel() * packed.element_size() < (self.elements + 1) // 2:
            raise ValueError(f"packed holds too few bytes for {self.elements} elements")
        blocks = (self.elements + self.blocksize - 1) // self.blocksize
        scale_dtype = torch.uint8 if self.nested else torch.float32
        if state.absmax.numel() != blocks or state.absmax.dtype != scale_dtype:
            raise ValueError(f"absmax must hold {blocks} entries of {dtypes.name_of(scale_dtype)}")
        if not torch.allclose(state.code.float().cpu(), get_4bit_type(self.quant_type), atol=1e-6):
            raise ValueError(f"the packed tensor's map is not that of {self.quant_type}")
        if self.nested:
            groups = (blocks + NESTED_BLOCKSIZE - 1) // NESTED_BLOCKSIZE
            standard = torch.allclose(state.state2.code.float().cpu(), create_dynamic_map(), atol=1e-6)
            if state.state2.blocksize != NESTED_BLOCKSIZE or state.state2.absmax.numel() != groups or not standard:
                raise ValueError(f"nested statistics must be dynamic 8-bit in blocks of {NESTED_BLOCKSIZE}")

    def drop(self) -> None:
        """Gives the pages back now."""
        if self._finalizer.detach() is not None and not self.session.closed:
            _lib.check_idempotent(_lib.lib().bp_weight_drop, self.session.handle, self.handle)

    def __repr__(self):
        kind = f"{self.quant_type}, blocksize {self.blocksize}" + (", nested" if self.nested else "")
        return f"<bitpager.Weight {self.name!r} {tuple(self.shape)} {kind}>"
