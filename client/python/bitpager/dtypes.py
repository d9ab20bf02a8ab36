"""How torch's dtypes and tensors cross the C ABI: dtype codes, pointers, and what is refused."""

from __future__ import annotations

import torch

from . import _lib, errors

CODES = {torch.float32: _lib.F32, torch.float16: _lib.F16, torch.bfloat16: _lib.BF16, torch.uint8: _lib.U8}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).rpartition(".")[2]


def parse(name: str) -> torch.dtype:
    """torch.float32 for `float32`; ValueError when torch has no such dtype."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not the name of a torch dtype")
    return dtype


def require_float(tensor: torch.Tensor, what: str) -> int:
    """The dtype code of a dense float tensor in CPU memory; a clear error otherwise."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} is sparse ({tensor.layout}); dense tensors are needed. Hint: use sparse=False.")
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{what} has dtype {name_of(tensor.dtype)}; supported are float32, float16 and bfloat16")
    require_cpu(tensor, what)
    return CODES[tensor.dtype]


def require_cpu(tensor: torch.Tensor, what: str) -> None:
    """Refuses tensors of devices that this build has no code for."""
    kind = tensor.device.type
    if kind == "cpu":
        return
    if kind == "meta":
        raise ValueError(f"{what} is on the meta device and has no data. Hint: materialise it first.")
    if kind == "cuda":
        raise errors.UnsupportedError(
            f"{what} is on {tensor.device}, but the CUDA device is not in this build. Hint: keep it on the CPU.",
            45,
            "UNSUPPORTED",
        )
    raise errors.UnsupportedError(f"{what} is on {tensor.device}; supported is the CPU.", 45, "UNSUPPORTED")


def is_dense(tensor: torch.Tensor) -> bool:
    """True when the elements fill one stretch of memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    pairs = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride()) if size != 1)
    for stride, size in pairs:
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True when equally shaped, dense a and b keep their elements in the same order."""
    if a.stride() == b.stride():
        return True
    return all(x == y for x, y, size in zip(a.stride(), b.stride(), a.shape) if size != 1)
