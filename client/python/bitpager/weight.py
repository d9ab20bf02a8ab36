"""Weight: a quantized tensor that lives in the daemon's pages. In a session of a GPU, tensors are on that GPU and calls
are enqueued on torch's current stream; nothing waits but export and import."""

from __future__ import annotations

import ctypes
import itertools

import torch

from . import _lib, cuda_local, dtypes, errors
from .functional import BLOCKSIZES_4BIT, NESTED_BLOCKSIZE, create_dynamic_map, get_4bit_type, packed_bytes, whole_bytes
from .quant_state import QUANT_TYPES, QuantState
from .session import cuda_index, default_session, session_for
from .shared import drop_later

_names = itertools.count()
_NO_LEASE = (_lib.FULL, _lib.NOT_RESIDENT, _lib.UNSUPPORTED)


class Weight:
    """A 4-bit tensor of `shape` in pages of the session's job; its pages go back when the object does.

    shape: of the tensor; dtype: what dequantize() returns by default, and the dtype recorded for interchange;
    quant_type: "nf4" or "fp4"; blocksize: 32, 64 ... 4096; nested: double quantization; name: shown to operators;
    session: None for the default one; offload: "disk" for pages that lie on the daemon's disk instead of in host memory
    while they are not on the device (UnsupportedError where the daemon has no folder for them); share: its pages may be
    held once with those of equal weights of the same user's jobs (writing to it takes pages of its own); those on disk
    never are. Raises QuotaError or BudgetError with the bytes that are missing.
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
        offload=None,
        share=True,
    ):
        if offload not in (None, "disk"):
            raise ValueError(f'offload must be None or "disk"; got {offload!r}')
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
        self.offload, self.share = offload, bool(share)
        options = _lib.sized(_lib.WeightOptions)
        options.quant_type = _lib.QUANT_TYPES[quant_type]
        options.blocksize = blocksize
        options.nested = int(self.nested)
        options.elements = self.elements
        options.name = self.name.encode()
        options.on_disk = int(offload == "disk")
        options.unshared = int(not share)
        handle = ctypes.c_uint64()
        _lib.check(_lib.lib().bp_weight_create(self.session.handle, ctypes.byref(options), ctypes.byref(handle)))
        self.handle = handle.value
        self._page_bytes = self.session.info()["page_bytes"]
        self.device = torch.device("cpu")
        if self.session.device_kind == "cuda":
            self.device = torch.device("cuda", cuda_index(self.session.device_uuid))
        self._finalizer = drop_later(self, self.session, "bp_weight_drop_later", self.handle)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, **options) -> Weight:
        """A weight of the tensor's shape and dtype, holding its quantized values."""
        dtypes.require_float(tensor, "tensor", tensor.device.type if tensor.is_cuda else "cpu")
        if options.get("session") is None:
            options["session"] = session_for(tensor.device)
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

    @property
    def packed_bytes(self) -> int:
        """Bytes of the codes and of their statistics, without what whole pages add."""
        return whole_bytes(self.elements, self.blocksize, self.nested)

    def extents(self):
        """The weight's handle, for prefetch."""
        return [self.handle]

    def quantize_(self, tensor: torch.Tensor) -> Weight:
        """Quantizes a float tensor of this shape into the pages. Returns itself."""
        code = dtypes.require_float(tensor, "tensor", self._kind_of(tensor))
        if tensor.shape != self.shape:
            raise ValueError(f"tensor has shape {tuple(tensor.shape)}, the weight {tuple(self.shape)}")
        source = tensor.detach().contiguous()
        if source.is_cuda:
            self._on_stream(source, _lib.lib().bp_weight_quantize_async, code, source.data_ptr())
            return self
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
            out = torch.empty(self.shape, dtype=self.dtype if dtype is None else dtype, device=self.device)
        code = dtypes.require_float(out, "out", self._kind_of(out))
        if out.shape != self.shape or not out.is_contiguous():
            raise ValueError(f"out must be contiguous and of shape {tuple(self.shape)}")
        if out.is_cuda:
            return self._dequantize_on_stream(code, out, path)
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

    def _dequantize_on_stream(self, code: int, out: torch.Tensor, path: str) -> torch.Tensor:
        if path != "request":
            call = cuda_local.DequantizeCall()
            call.quant_type, call.dtype = _lib.QUANT_TYPES[self.quant_type], code
            call.n = call.count = self.elements
            call.out = out.data_ptr()
            if self._by_lease("bp_cuda_dequantize_leased", call, must=path == "lease"):
                return out
        self._on_stream(out, _lib.lib().bp_weight_dequantize_async, code, out.data_ptr(), 0, self.elements)
        return out

    def _by_lease(self, name: str, call, must: bool) -> bool:
        """False: no lease can be had now (with `must`, that is raised)."""
        code = cuda_local.read_leased(self, self.device, name, call)
        if code == _lib.OK:
            return True
        if must or code not in _NO_LEASE:
            raise _lib.error_of(code)
        return False

    def _on_stream(self, tensor: torch.Tensor, call, *arguments) -> None:
        _lib.settle(self.session.handle)
        with cuda_local.current_on(tensor.device):
            stream = torch.cuda.current_stream(tensor.device)
            tensor.record_stream(stream)  # the daemon works on it until the stream goes on
            _lib.check_idempotent(call, self.session.handle, self.handle, *arguments, stream.cuda_stream, None)

    def _kind_of(self, tensor: torch.Tensor) -> str:
        """The kind of device that `tensor` must be on: the session's, or the CPU."""
        if tensor.is_cuda and self.device.type == "cuda" and tensor.device != self.device:
            raise ValueError(f"the tensor is on {tensor.device}, the weight's session is for {self.device}")
        return self.device.type if tensor.is_cuda else "cpu"

    def multiply(self, x: torch.Tensor, bias=None):
        """x W^T + bias by the kernel that reads the 4-bit pages once, or None where it does not apply: on the CPU, for
        more than cuda_local.MULTIPLY_ROWS rows, fp32, blocks that lie in two rows, or when the pages cannot be leased
        now."""
        if self.device.type != "cuda" or len(self.shape) != 2:
            return None
        rows, columns = self.shape
        x = x.contiguous()
        fits = x.device == self.device and cuda_local.has_product(x, columns, self.blocksize)
        if not fits or self._pages > cuda_local.MULTIPLY_PAGES:
            return None
        out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=x.device)
        call = cuda_local.MultiplyCall()
        call.quant_type, call.dtype = _lib.QUANT_TYPES[self.quant_type], dtypes.CODES[x.dtype]
        call.x, call.y = x.data_ptr(), out.data_ptr()
        call.batch, call.rows, call.columns = x.numel() // columns, rows, columns
        if not self._by_lease("bp_cuda_multiply_leased", call, must=False):
            return None
        return out if bias is None else out.add_(bias)

    @property
    def _pages(self) -> int:
        """At least as many as the weight lies in."""
        # At most, in a page: between planes, for groups that two pages share, and behind the last block.
        unused = 1024 + self.blocksize
        return 1 + -(-self.packed_bytes // (self._page_bytes - unused))

    def export(self, quant_storage=torch.uint8):
        """(packed, QuantState): copies in the interchange layout, packed of shape [bytes in quant_storage, 1], on the
        device of the session. Waits."""
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
        state = self._state(absmax, absmax2, offset.value).to(self.device)
        return packed.to(self.device).view(quant_storage).reshape(-1, 1), state

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
        packed = packed.detach().cpu().contiguous()
        absmax = state.absmax.detach().cpu().contiguous()
        absmax2 = state.state2.absmax.detach().cpu().float().contiguous() if self.nested else None
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
        dtypes.require_device(packed, "packed", self._kind_of(packed))
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
        """Gives the pages back, behind what was asked of the session before, which it waits for."""
        try:
            if self._finalizer.alive and not self.session.closed:
                _lib.check_idempotent(_lib.lib().bp_weight_drop, self.session.handle, self.handle)
        except errors.Error:
            self._finalizer.detach()  # it is gone, or goes with its session
            raise
        self._finalizer.detach()

    def __repr__(self):
        kind = f"{self.quant_type}, blocksize {self.blocksize}" + (", nested" if self.nested else "")
        return f"<bitpager.Weight {self.name!r} {tuple(self.shape)} {kind}>"
