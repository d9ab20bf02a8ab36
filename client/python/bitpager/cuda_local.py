"""Quantization and 4-bit products on CUDA tensors in this process, through libbitpager_cuda.so (the C ABI of
kernels/cuda/bitpager_cuda.h) by ctypes.

Everything is enqueued on the tensor's device and torch's current stream, and returns without waiting; outputs come from
torch's caching allocator. The library is loaded at first use and needs no daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from ctypes import c_char_p, c_int, c_uint32, c_uint64, c_void_p

import torch

from . import _lib, errors

ABI_VERSION = 1
SIGNED_DYNAMIC, UNSIGNED_DYNAMIC, GIVEN_MAP = 0, 1, 2
MULTIPLY_ROWS = 32  # most rows of x that multiply_4bit takes
MULTIPLY_PAGES = 480  # most pages of a weight that bp_cuda_multiply_leased takes
_CODES = {torch.float32: _lib.F32, torch.float16: _lib.F16, torch.bfloat16: _lib.BF16}

_ARGUMENTS = {  # of functions that return a bp_code
    "bp_cuda_check_device": (),
    "bp_cuda_quantize_4bit": (
        (c_void_p, c_int, c_int, c_void_p, c_uint64, c_uint32) + (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
    ),
    "bp_cuda_dequantize_4bit": (
        (c_void_p, c_int, c_int) + (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p) + (c_uint64, c_uint32, c_void_p)
    ),
    "bp_cuda_quantize_blockwise": (
        (c_void_p, c_int, c_void_p, c_int, c_void_p, c_uint64, c_uint32, c_void_p, c_void_p)
    ),
    "bp_cuda_dequantize_blockwise": (
        (c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint32, c_void_p)
    ),
    "bp_cuda_multiply_4bit": (
        (c_void_p, c_int, c_int, c_void_p, c_uint32, c_uint32, c_uint32, c_uint32)
        + (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
    ),
}
_SIGNATURES = {
    "bp_cuda_last_error": (c_char_p, ()),
    **{name: (c_int, arguments) for name, arguments in _ARGUMENTS.items()},
}


class DequantizeCall(ctypes.Structure):
    """bp_cuda_dequantize_call: what bp_cuda_dequantize_leased takes beside the pages."""

    _fields_ = [
        ("stream", c_void_p),
        ("quant_type", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("n", c_uint64),
        ("first", c_uint64),
        ("count", c_uint64),
        ("out", c_void_p),
    ]


class MultiplyCall(ctypes.Structure):
    """bp_cuda_multiply_call."""

    _fields_ = [
        ("stream", c_void_p),
        ("quant_type", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("x", c_void_p),
        ("batch", c_uint32),
        ("rows", c_uint32),
        ("columns", c_uint32),
        ("reserved", c_uint32),
        ("y", c_void_p),
    ]


_lock = threading.Lock()
_library = None
_checked_devices = set()
_launches = {}  # name -> address


def library_path():
    """The library to load: BITPAGER_CUDA_LIBRARY, or the one beside libbitpager.so. LibraryError when there is none."""
    named = os.environ.get("BITPAGER_CUDA_LIBRARY")
    if named:
        return named
    places = [_lib.native_folder()] + [folder / "lib" for folder in _lib.build_folders()]
    for place in places:
        for name in ("libbitpager_cuda.so.1", "libbitpager_cuda.so"):
            if (place / name).is_file():
                return str(place / name)
    raise errors.LibraryError(
        f"cannot find libbitpager_cuda.so (looked at {', '.join(map(str, places))}); CUDA tensors need it. Hint: this "
        "build has no CUDA part; install one that has, build with -DBITPAGER_CUDA=ON, or keep the tensors on the CPU."
    )


def _loaded():
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = _lib.load(library_path(), "bp_cuda_abi_version", ABI_VERSION, _SIGNATURES)
    return _library


def _check(code: int) -> None:
    if code != _lib.OK:
        text = (_library.bp_cuda_last_error() or b"").decode(errors="replace")
        raise errors.from_code(code, f"code {code}", text)


class _Elsewhere:
    """The device while another one is current, and whether this one was looked at."""

    def __init__(self, device):
        self._guard = torch.cuda.device(device)
        self._device = device

    def __enter__(self):
        self._guard.__enter__()
        _check_device(self._device)

    def __exit__(self, *why):
        return self._guard.__exit__(*why)


_HERE = contextlib.nullcontext()


def _check_device(device: torch.device) -> None:
    """Once for each device, which is current: that the library has code for it."""
    if device.index not in _checked_devices:
        library = _loaded()
        torch.cuda.current_stream(device).query()  # torch makes the context
        _check(library.bp_cuda_check_device())
        _checked_devices.add(device.index)


def current_on(device: torch.device):
    """A context in which `device` is current and known to work; cheap when it is already."""
    if device.index in _checked_devices and torch._C._cuda_getDevice() == device.index:
        return _HERE
    return _Elsewhere(device)


def stream_of(device: torch.device) -> int:
    """The handle of torch's current stream."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def _call(tensor: torch.Tensor, name: str, *arguments) -> None:
    """Calls a function on the tensor's device and current stream."""
    library = _loaded()
    device = tensor.device
    with current_on(device):
        _check(getattr(library, name)(stream_of(device), *arguments))


def read_leased(weight, device: torch.device, name: str, call) -> int:
    """Launches `name` (bp_cuda_dequantize_leased, bp_cuda_multiply_leased) with `call` on the pages of a
    bitpager.Weight, on torch's current stream. Returns the code of bp_weight_read_leased; what the launch itself found
    is raised."""
    launch = _launches.get(name)
    if launch is None:
        launch = _launches[name] = ctypes.cast(getattr(_loaded(), name), c_void_p)
    launched = c_int()
    with current_on(device):
        call.stream = stream_of(device)
        while True:
            code = _lib.lib().bp_weight_read_leased(
                weight.session.handle,
                weight.handle,
                call.stream,
                launch,
                ctypes.byref(call),
                ctypes.byref(launched),
            )
            if launched.value != _lib.OK:
                _check(launched.value)
            if code != _lib.INTERRUPTED:
                return code


def require_float(tensor: torch.Tensor, what: str) -> int:
    """The dtype code of a dense float tensor on a GPU; ValueError otherwise."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} is sparse ({tensor.layout}); dense tensors are needed. Hint: use sparse=False.")
    if tensor.dtype not in _CODES:
        name = str(tensor.dtype).rpartition(".")[2]
        raise ValueError(f"{what} has dtype {name}; supported are float32, float16 and bfloat16")
    return _CODES[tensor.dtype]


def require_same_device(tensor: torch.Tensor, device: torch.device, what: str) -> None:
    """ValueError when the tensor is not on `device`."""
    if tensor.device != device:
        raise ValueError(f"{what} is on {tensor.device}, the codes are on {device}. Hint: QuantState.to(device).")


def _pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def quantize_4bit(source, quant_type, blocksize, packed, absmax, codes=None, absmax2=None, offset=None) -> None:
    """Contiguous `source` to packed bytes and absmax (fp32, one a block); with `codes` (uint8, one a block) also to
    double-quantized absmaxes: absmax2 (fp32, one for 256 blocks) and offset (fp32, one)."""
    _call(
        source,
        "bp_cuda_quantize_4bit",
        _lib.QUANT_TYPES[quant_type],
        _CODES[source.dtype],
        source.data_ptr(),
        source.numel(),
        blocksize,
        packed.data_ptr(),
        absmax.data_ptr(),
        _pointer(codes),
        _pointer(absmax2),
        _pointer(offset),
    )


def _statistics(state):
    """(absmax, codes, absmax2, offset) of a 4-bit QuantState, each None when it has none."""
    if state.nested:
        return None, state.absmax, state.state2.absmax, state.offset
    return state.absmax, None, None, None


def dequantize_4bit(packed, state, target) -> None:
    """Contiguous packed bytes to `target`; the statistics are on the same device, fp32 (uint8 codes when nested)."""
    _call(
        target,
        "bp_cuda_dequantize_4bit",
        _lib.QUANT_TYPES[state.quant_type],
        _CODES[target.dtype],
        packed.data_ptr(),
        *map(_pointer, _statistics(state)),
        target.numel(),
        state.blocksize,
        target.data_ptr(),
    )


class Multiplier:
    """The product of few rows with one weight [rows, columns] of this process, whose tensors must not move.

    packed: 16-byte aligned; state: with statistics as cuda_statistics() gives them."""

    def __init__(self, packed, state):
        rows, columns = state.shape
        self._kept = (packed, state)
        self._type = _lib.QUANT_TYPES[state.quant_type]
        self._rows, self._columns = rows, columns
        self._weight = (rows, columns, state.blocksize, packed.data_ptr(), *map(_pointer, _statistics(state)))
        self._function = _loaded().bp_cuda_multiply_4bit

    def __call__(self, x):
        """x W^T of a contiguous x for which has_product() holds."""
        out = x.new_empty((*x.shape[:-1], self._rows))
        device, batch = x.device, x.numel() // self._columns
        with current_on(device):
            _check(
                self._function(
                    stream_of(device),
                    self._type,
                    _CODES[x.dtype],
                    x.data_ptr(),
                    batch,
                    *self._weight,
                    out.data_ptr(),
                )
            )
        return out


def has_product(x, columns: int, blocksize: int) -> bool:
    """True when a Multiplier or a leased weight takes the contiguous x: few rows, 16-bit elements, aligned, and no
    block of the weight across two of its rows."""
    return (
        0 < x.numel() <= MULTIPLY_ROWS * columns
        and (x.dtype is torch.bfloat16 or x.dtype is torch.float16)
        and columns % blocksize == 0
        and x.data_ptr() % 16 == 0
        and _capability(x.device.index) >= (8, 0)
    )


@functools.cache
def _capability(index: int):
    return torch.cuda.get_device_capability(index)


def quantize_blockwise(source, map_kind, code, blocksize, codes, absmax) -> None:
    """Contiguous `source` to uint8 codes and absmax (fp32, one a block). `code`: 256 ascending fp32 values on the same
    device for GIVEN_MAP, else unused."""
    _call(
        source,
        "bp_cuda_quantize_blockwise",
        map_kind,
        _pointer(code),
        _CODES[source.dtype],
        source.data_ptr(),
        source.numel(),
        blocksize,
        codes.data_ptr(),
        absmax.data_ptr(),
    )


def dequantize_blockwise(codes, map_kind, code, absmax, blocksize, target) -> None:
    """The inverse of quantize_blockwise, to `target`; `code` in any order."""
    _call(
        target,
        "bp_cuda_dequantize_blockwise",
        map_kind,
        _pointer(code),
        _CODES[target.dtype],
        codes.data_ptr(),
        absmax.data_ptr(),
        codes.numel(),
        blocksize,
        target.data_ptr(),
    )


__all__ = ["Multiplier", "dequantize_4bit", "dequantize_blockwise", "has_product", "quantize_4bit"]
