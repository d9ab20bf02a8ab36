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


def require_float(tensor: torch.Tensor, what: str, device: str = "cpu") -> int:
    """The dtype code of a dense float tensor in memory of `device` ("cpu", "cuda"); a clear error otherwise."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} is sparse ({tensor.layout}); dense tensors are needed. Hint: use sparse=False.")
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{what} has dtype {name_of(tensor.dtype)}; supported are float32, float16 and bfloat16")
    require_device(tensor, what, device)
    return CODES[tensor.dtype]


def require_cpu(tensor: torch.Tensor, what: str) -> None:
    """Refuses tensors that are not in CPU memory."""
    require_device(tensor, what, "cpu")


def require_device(tensor: torch.Tensor, what: str, device: str) -> None:
    """Refuses tensors of another kind of device than `device`, which is what the rest of the call is about."""
    kind = tensor.device.type
    if kind == device:
        return
    if kind == "meta":
        raise ValueError(f"{what} is on the meta device and has no data. Hint: materialise it first.")
    if kind in ("cpu", "cuda"):
        wanted = "CPU" if device == "cpu" else "GPU"
        raise errors.UnsupportedError(
            f"{what} is on {tensor.device}, but a tensor on the {wanted} is needed here. Hint: {what}.to('{device}'), "
            "or use a session of its device.",
            45,
            "UNSUPPORTED",
        )
    raise errors.UnsupportedError(f"{what} is on {tensor.device}; supported are the CPU and CUDA.", 45, "UNSUPPORTED")


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
