"""QuantState: what turns packed codes back into a tensor, and its interchange form (names and JSON as bitsandbytes
writes them)."""

from __future__ import annotations

import json

import torch

from . import dtypes

QUANT_TYPES = ("nf4", "fp4")
_PREFIX = "bitsandbytes__"
_KEYS = {
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state",
    "quant_type",
    "blocksize",
    "dtype",
    "shape",
    "nested_blocksize",
    "nested_dtype",
    "nested_offset",
}


class QuantState:
    """Statistics of a quantized tensor.

    absmax: fp32 of each block, or uint8 codes of it when nested; shape, dtype: of the tensor that was quantized; code:
    the values by code (16 or 256, fp32); blocksize: elements of a block; quant_type: "nf4", "fp4" or None (blockwise
    8-bit). Nested: offset (fp32 scalar, the mean that was subtracted) and state2 (the QuantState of absmax).
    """

    # Whether state2 is of the kind that the CUDA kernels read; None: not looked at yet.
    native_nesting = None

    def __init__(
        self,
        absmax,
        shape=None,
        code=None,
        blocksize=None,
        quant_type=None,
        dtype=None,
        offset=None,
        state2=None,
    ):
        self.absmax = absmax
        self.shape = shape
        self.code = code
        self.dtype = dtype
        self.blocksize = blocksize
        self.quant_type = quant_type
        self.offset = offset
        self.state2 = state2

    @property
    def nested(self) -> bool:
        """True with double quantization."""
        return self.state2 is not None

    def __getattr__(self, name):
        # Walkers of state dicts resolve "weight.quant_state.bitsandbytes__nf4" attribute by attribute.
        if name.startswith(_PREFIX):
            packed = self.as_dict(packed=True)
            if "quant_state." + name in packed:
                return packed["quant_state." + name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, index):
        """The list form of older code: [absmax, shape, dtype, blocksize, [offset, state2] or None, quant_type]."""
        compressed = [self.offset, self.state2] if self.nested else None
        return [self.absmax, self.shape, self.dtype, self.blocksize, compressed, self.quant_type][index]

    def as_dict(self, packed: bool = False) -> dict:
        """A dict of tensors and primitives; with packed=True of tensors alone (the primitives as JSON in a uint8
        tensor), fit for safetensors."""
        tensors = {"absmax": self.absmax, "quant_map": self.code}
        primitives = {
            "quant_type": self.quant_type,
            "blocksize": self.blocksize,
            "dtype": dtypes.name_of(self.dtype),
            "shape": None if self.shape is None else tuple(self.shape),
        }
        if self.nested:
            tensors["nested_absmax"] = self.state2.absmax
            tensors["nested_quant_map"] = self.state2.code.clone()  # safetensors refuses shared memory
            primitives["nested_blocksize"] = self.state2.blocksize
            primitives["nested_dtype"] = dtypes.name_of(self.state2.dtype)
            primitives["nested_offset"] = float(self.offset)
        if not packed or self.quant_type is None:
            return {**tensors, **primitives}
        text = json.dumps(primitives).encode()
        return {**tensors, f"quant_state.{_PREFIX}{self.quant_type}": torch.tensor(list(text), dtype=torch.uint8)}

    @classmethod
    def from_dict(cls, qs_dict: dict, device="cpu") -> QuantState:
        """The inverse of as_dict, packed or not; keys may carry prefixes up to the last dot. `qs_dict` is not changed.

        ValueError when entries are missing, unknown or contradict each other."""
        entries = {}
        for key, value in qs_dict.items():
            last = key.rpartition(".")[2]
            if last.startswith(_PREFIX):
                entries.update(_unpack(last, value))
            else:
                entries[last] = value
        unknown = set(entries) - _KEYS
        if unknown:
            raise ValueError(f"unknown entries in a quantization state: {', '.join(sorted(unknown))}")
        missing = {"quant_type", "absmax", "quant_map", "blocksize", "dtype"} - set(entries)
        if missing:
            raise ValueError(f"a quantization state lacks {', '.join(sorted(missing))}")
        state2 = offset = None
        if "nested_absmax" in entries:
            offset = torch.tensor(float(entries["nested_offset"]), dtype=torch.float32, device=device)
            state2 = cls(
                absmax=entries["nested_absmax"].to(device),
                code=entries["nested_quant_map"].to(device),
                blocksize=entries["nested_blocksize"],
                dtype=dtypes.parse(entries["nested_dtype"]),
            )
        shape = entries.get("shape")
        return cls(
            absmax=entries["absmax"].to(device),
            shape=None if shape is None else torch.Size(shape),
            code=entries["quant_map"].to(device),
            blocksize=entries["blocksize"],
            quant_type=entries["quant_type"],
            dtype=dtypes.parse(entries["dtype"]),
            offset=offset,
            state2=state2,
        )

    def to(self, device) -> QuantState:
        """Moves the statistics to `device`, in place; their dtypes never change. Returns itself."""
        device = torch.device(device) if not isinstance(device, torch.device) else device
        self.absmax = self.absmax.to(device)
        if self.code is not None:
            self.code = self.code.to(device)
        if self.nested:
            self.offset = self.offset.to(device)
            self.state2.to(device)
        return self

    def __eq__(self, other):
        if not isinstance(other, QuantState):
            return NotImplemented
        return (
            (self.shape, self.dtype, self.blocksize, self.quant_type)
            == (other.shape, other.dtype, other.blocksize, other.quant_type)
            and _close(self.absmax, other.absmax)
            and _close(self.code, other.code)
            and _close(self.offset, other.offset)
            and self.state2 == other.state2
        )

    __hash__ = None


def _close(a, b) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-6)


def _unpack(key: str, tensor) -> dict:
    quant_type = key[len(_PREFIX) :]
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"unknown kind of quantization {quant_type!r}; known are {', '.join(QUANT_TYPES)}")
    try:
        entries = json.loads(bytes(tensor.cpu().tolist()).decode())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{key} does not hold the JSON of a quantization state: {error}") from error
    if not isinstance(entries, dict) or entries.get("quant_type", quant_type) != quant_type:
        raise ValueError(f"{key} contradicts its contents")
    return {"quant_type": quant_type, **entries}
