"""LocalWeight: a quantized tensor that lives in this process as ordinary CUDA tensors, with the interface of Weight."""

from __future__ import annotations

import itertools

import torch

from .. import cuda_local
from .. import functional as quantization
from ..quant_state import QuantState

_names = itertools.count()


class LocalWeight:
    """A 4-bit tensor as packed bytes and a QuantState on one GPU. Arguments and methods as bitpager.Weight's; nothing
    goes through a daemon, and everything is enqueued on torch's current stream."""

    session = None

    def __init__(self, packed: torch.Tensor, state: QuantState, name=None):
        self.packed = packed.detach().contiguous()
        self.state = state
        self.shape = torch.Size(state.shape)
        self.elements = self.shape.numel()
        self.dtype = state.dtype
        self.quant_type = state.quant_type
        self.blocksize = state.blocksize
        self.nested = state.nested
        self._multiplier = None  # of these very tensors
        self.name = name or f"local-weight-{next(_names)}"

    @classmethod
    def from_tensor(cls, tensor, quant_type="nf4", blocksize=64, nested=True, name=None) -> LocalWeight:
        """A weight of the CUDA tensor's shape and dtype, holding its quantized values."""
        packed, state = quantization.quantize_4bit(
            tensor.detach(), blocksize=blocksize, compress_statistics=nested, quant_type=quant_type
        )
        return cls(packed, state, name)

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.packed.device

    @property
    def packed_bytes(self) -> int:
        """Bytes of the codes and of their statistics."""
        return quantization.whole_bytes(self.elements, self.blocksize, self.nested)

    def extents(self):
        """No pages of the daemon's."""
        return []

    def dequantize(self, dtype=None, out=None) -> torch.Tensor:
        """The tensor, in `dtype` (None: the weight's), into `out` when given."""
        if out is not None:
            return out.copy_(self.dequantize(out.dtype)) if out.dtype != self.dtype else self._decode(out)
        matrix = self._decode(None)
        return matrix if dtype in (None, self.dtype) else matrix.to(dtype)

    def _decode(self, out):
        return quantization.dequantize_4bit(self.packed.view(torch.uint8).reshape(-1, 1), self.state, out=out)

    def multiply(self, x: torch.Tensor, bias=None):
        """x W^T + bias by the kernel that reads the 4-bit weight once, or None where it does not apply: for more than
        cuda_local.MULTIPLY_ROWS rows, fp32, or blocks that lie in two rows."""
        x = x.contiguous()
        if len(self.shape) != 2 or x.device != self.device:
            return None
        if not cuda_local.has_product(x, self.shape[1], self.blocksize) or self.packed.data_ptr() % 16 != 0:
            return None
        if self._multiplier is None:
            state = quantization.cuda_statistics(self.state, self.device)
            self._multiplier = cuda_local.Multiplier(self.packed, state)
        out = self._multiplier(x)
        return out if bias is None else out.add_(bias)

    def export(self, quant_storage=torch.uint8):
        """(packed, QuantState): the tensors themselves, packed of shape [bytes in quant_storage, 1]."""
        return self.packed.view(torch.uint8).flatten().view(quant_storage).reshape(-1, 1), self.state

    def import_packed(self, packed: torch.Tensor, state: QuantState) -> LocalWeight:
        """Takes over bytes and statistics; ValueError when they do not fit this weight. Returns itself."""
        given = (torch.Size(state.shape), state.quant_type, state.blocksize, state.nested)
        wanted = (self.shape, self.quant_type, self.blocksize, self.nested)
        if given != wanted:
            raise ValueError(f"the packed tensor is {given}, the weight {wanted} (shape, type, block size, nested)")
        self.packed.view(torch.uint8).flatten().copy_(packed.detach().contiguous().view(torch.uint8).flatten())
        self.state = state.to(self.device)
        self._multiplier = None
        return self

    def to(self, device) -> LocalWeight:
        """Moves bytes and statistics to `device`, in place. Returns itself."""
        self.packed = self.packed.to(device)
        self.state.to(device)
        self._multiplier = None
        return self

    def copy(self) -> LocalWeight:
        """A weight of its own with equal values."""
        packed, state = self.packed.clone(), QuantState.from_dict(self.state.as_dict(packed=True), self.device)
        tensors = {"absmax": state.absmax.clone(), "code": state.code.clone()}
        for key, value in tensors.items():
            setattr(state, key, value)
        if state.nested:
            state.state2.absmax = state.state2.absmax.clone()
        return LocalWeight(packed, state, self.name + "-copy")

    def __repr__(self):
        kind = f"{self.quant_type}, blocksize {self.blocksize}" + (", nested" if self.nested else "")
        return f"<bitpager.nn.LocalWeight {self.name!r} {tuple(self.shape)} {kind} on {self.device}>"
