"""Blockwise quantization of CPU and CUDA tensors in this process, without a daemon. Argument names, shapes and packed
layout are those of bitsandbytes.functional, so that tensors and states can be exchanged with it. On CUDA everything is
enqueued on torch's current stream, and nothing waits.

4-bit: two elements a byte, the even one in the high nibble; packed shape [ceil(n / 2), 1]. 8-bit: one code an element.
Every block has its own absmax in fp32; a short last block too.
"""

from __future__ import annotations

from typing import Optional

import torch

from . import _lib, cuda_local, dtypes
from .code_maps import create_dynamic_map, dynamic_map, get_4bit_type
from .quant_state import QUANT_TYPES, QuantState

NESTED_BLOCKSIZE = 256  # blocks that share one absmax of their absmax, with double quantization
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STORAGES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def quantize_blockwise(
    A: torch.Tensor,
    code: Optional[torch.Tensor] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: int = 4096,
    nested: bool = False,
):
    """Quantizes a float32, float16 or bfloat16 tensor to 8 bits: the nearest entry of `code` (256 ascending fp32
    values; None: the signed dynamic map, which is the fastest on CUDA) to x / absmax of its block.

    Returns (uint8 tensor of A's shape, QuantState). out and absmax receive the results when given. nested: the absmax
    are quantized too, in blocks of the same size. Raises ValueError on other dtypes, shapes and block sizes."""
    dtype = _require_float(A, "A")
    _require_blocksize(blocksize)
    kind = cuda_local.SIGNED_DYNAMIC if code is None else cuda_local.GIVEN_MAP
    code = _code_or_dynamic(code, A.device)
    source = A.contiguous()
    codes = torch.empty(source.shape, dtype=torch.uint8, device=A.device)
    scales = torch.empty(_blocks(source.numel(), blocksize), dtype=torch.float32, device=A.device)
    if source.numel() and A.is_cuda:
        cuda_local.quantize_blockwise(source, kind, code, blocksize, codes, scales)
    elif source.numel():
        _lib.check(
            _lib.lib().bp_quantize_blockwise(
                code.data_ptr(),
                dtype,
                source.data_ptr(),
                source.numel(),
                blocksize,
                codes.data_ptr(),
                scales.data_ptr(),
                0,
            )
        )
    state = QuantState(absmax=scales, code=code.clone(), blocksize=blocksize, dtype=A.dtype)
    if nested:
        state.offset = _mean(scales)
        state.absmax, state.state2 = quantize_blockwise(scales - state.offset, blocksize=blocksize)
    return _deliver(codes, state, out, absmax)


def dequantize_blockwise(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    code: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> torch.Tensor:
    """The inverse of quantize_blockwise: code[A] * absmax of the block, in quant_state.dtype (float32 without one).

    Give quant_state, or absmax (with code and blocksize where they are not the defaults). out receives the result."""
    if quant_state is None:
        if absmax is None:
            raise ValueError("dequantize_blockwise needs quant_state or absmax")
        quant_state = QuantState(absmax=absmax, code=code, blocksize=blocksize, dtype=torch.float32)
    if A.dtype != torch.uint8:
        raise ValueError(f"A must hold uint8 codes; got {dtypes.name_of(A.dtype)}")
    _require_known_device(A, "A")
    _require_blocksize(quant_state.blocksize)
    kind = cuda_local.SIGNED_DYNAMIC if quant_state.code is None else cuda_local.GIVEN_MAP
    code = _code_or_dynamic(quant_state.code, A.device)
    codes = A.contiguous()
    scales = _plain_absmax(quant_state, codes.numel(), A.device)
    target, deliver = _target(out, A.shape, quant_state.dtype, A.device)
    if codes.numel() and A.is_cuda:
        cuda_local.dequantize_blockwise(codes, kind, code, scales, quant_state.blocksize, target)
    elif codes.numel():
        _lib.check(
            _lib.lib().bp_dequantize_blockwise(
                code.data_ptr(),
                dtypes.CODES[target.dtype],
                codes.data_ptr(),
                scales.data_ptr(),
                codes.numel(),
                quant_state.blocksize,
                target.data_ptr(),
                0,
            )
        )
    return deliver(target)


def quantize_4bit(
    A: torch.Tensor,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: Optional[int] = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
):
    """Quantizes a float32, float16 or bfloat16 tensor to 4 bits.

    blocksize: 32, 64 (default) ... 4096. compress_statistics: double quantization of the absmax. quant_type: "nf4" or
    "fp4". quant_storage: dtype that the packed bytes are seen as. Returns (packed, QuantState); packed has shape
    [ceil(n / 2) bytes in quant_storage elements, 1]. Raises ValueError on anything else."""
    blocksize = 64 if blocksize is None else blocksize
    _require_4bit(blocksize, quant_type)
    if quant_storage not in _STORAGES:
        raise ValueError(f"quant_storage must be uint8, float16, bfloat16 or float32; got {quant_storage}")
    dtype = _require_float(A, "A")
    source = A.contiguous()
    count = source.numel()
    if A.is_cuda and count:
        return _deliver(
            *_quantize_4bit_cuda(source, blocksize, compress_statistics, quant_type, quant_storage), out, absmax
        )
    packed = torch.zeros(packed_bytes(count, quant_storage), dtype=torch.uint8, device=A.device)
    scales = torch.empty(_blocks(count, blocksize), dtype=torch.float32, device=A.device)
    if count:
        _lib.check(
            _lib.lib().bp_quantize_4bit(
                _lib.QUANT_TYPES[quant_type],
                dtype,
                source.data_ptr(),
                count,
                blocksize,
                packed.data_ptr(),
                scales.data_ptr(),
                0,
            )
        )
    state = QuantState(
        absmax=scales,
        shape=A.shape,
        code=get_4bit_type(quant_type, A.device),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=A.dtype,
    )
    if compress_statistics:
        state.offset = _mean(scales)
        state.absmax, state.state2 = quantize_blockwise(scales - state.offset, blocksize=NESTED_BLOCKSIZE)
    return _deliver(packed.view(quant_storage).reshape(-1, 1), state, out, absmax)


def dequantize_4bit(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: Optional[int] = None,
    quant_type: str = "fp4",
) -> torch.Tensor:
    """The inverse of quantize_4bit: a tensor of quant_state's shape and dtype. Without quant_state, absmax and out are
    needed, and out says shape and dtype. A packed tensor in the transposed shape [1, k] gives the transposed result."""
    if quant_state is None:
        if absmax is None or out is None:
            raise ValueError("dequantize_4bit needs quant_state, or both absmax and out")
        quant_state = QuantState(
            absmax=absmax,
            shape=out.shape,
            dtype=out.dtype,
            blocksize=64 if blocksize is None else blocksize,
            quant_type=quant_type,
        )
    _require_4bit(quant_state.blocksize, quant_state.quant_type)
    _require_known_device(A, "A")
    shape = torch.Size(quant_state.shape)
    packed = A.contiguous()
    if packed.numel() * packed.element_size() < (shape.numel() + 1) // 2:
        raise ValueError(f"A holds {packed.numel() * packed.element_size()} bytes, too few for shape {tuple(shape)}")
    target, deliver = _target(out, shape, quant_state.dtype, A.device)
    if shape.numel() and A.is_cuda:
        cuda_local.dequantize_4bit(packed, cuda_statistics(quant_state, A.device), target)
    elif shape.numel():
        scales = _plain_absmax(quant_state, shape.numel(), A.device)
        _lib.check(
            _lib.lib().bp_dequantize_4bit(
                _lib.QUANT_TYPES[quant_state.quant_type],
                dtypes.CODES[target.dtype],
                packed.data_ptr(),
                scales.data_ptr(),
                shape.numel(),
                quant_state.blocksize,
                target.data_ptr(),
                0,
            )
        )
    result = deliver(target)
    return result.t() if A.dim() == 2 and A.shape[0] == 1 and A.shape[1] > 1 and result.dim() == 2 else result


def _quantize_4bit_cuda(source, blocksize, nested, quant_type, storage):
    """(packed, QuantState) of a contiguous, non-empty CUDA tensor."""
    device, blocks = source.device, _blocks(source.numel(), blocksize)
    packed = torch.empty(packed_bytes(source.numel(), storage), dtype=torch.uint8, device=device)
    packed[(source.numel() + 1) // 2 :].zero_()
    scales = torch.empty(blocks, dtype=torch.float32, device=device)
    state = QuantState(
        absmax=scales,
        shape=source.shape,
        code=get_4bit_type(quant_type, device),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=source.dtype,
    )
    if nested:
        state.absmax = torch.empty(blocks, dtype=torch.uint8, device=device)
        state.offset = torch.empty((), dtype=torch.float32, device=device)
        absmax2 = torch.empty(_blocks(blocks, NESTED_BLOCKSIZE), dtype=torch.float32, device=device)
        code = _code_or_dynamic(None, device).clone()
        state.state2 = QuantState(absmax=absmax2, code=code, blocksize=NESTED_BLOCKSIZE, dtype=torch.float32)
        state.native_nesting = True
        cuda_local.quantize_4bit(source, quant_type, blocksize, packed, scales, state.absmax, absmax2, state.offset)
    else:
        cuda_local.quantize_4bit(source, quant_type, blocksize, packed, scales)
    return packed.view(storage).reshape(-1, 1), state


def cuda_statistics(state: QuantState, device: torch.device) -> QuantState:
    """The state with statistics as the CUDA kernels read them: itself when they are native, else one with plain absmax.

    Raises ValueError when they are not on `device` or too few. A nested state of unknown origin is compared with the
    native form once, which waits for the device."""
    count = torch.Size(state.shape).numel()
    cuda_local.require_same_device(state.absmax, device, "absmax")
    if state.nested and _is_native_nesting(state, _blocks(count, state.blocksize), device):
        return state
    if not state.nested and _is_plain_absmax(state.absmax, _blocks(count, state.blocksize)):
        return state
    return QuantState(
        absmax=_plain_absmax(state, count, device),
        shape=state.shape,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )


def _is_plain_absmax(absmax: torch.Tensor, blocks: int) -> bool:
    return absmax.dtype == torch.float32 and absmax.is_contiguous() and absmax.numel() == blocks


def _is_native_nesting(state: QuantState, blocks: int, device: torch.device) -> bool:
    inner = state.state2
    fits = (
        state.absmax.dtype == torch.uint8
        and state.absmax.is_contiguous()
        and state.absmax.numel() == blocks
        and inner.blocksize == NESTED_BLOCKSIZE
        and not inner.nested
        and _is_plain_absmax(inner.absmax, _blocks(blocks, NESTED_BLOCKSIZE))
        and inner.absmax.device == device
        and state.offset.device == device
        and state.offset.dtype == torch.float32
    )
    if not fits:
        return False
    if state.native_nesting is None:
        own = _code_or_dynamic(None, inner.code.device)
        state.native_nesting = inner.code is None or torch.equal(inner.code.float().flatten(), own)
    return state.native_nesting


def quantize_nf4(A, absmax=None, out=None, blocksize=None, compress_statistics=False, quant_storage=torch.uint8):
    """quantize_4bit with quant_type="nf4"."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def quantize_fp4(A, absmax=None, out=None, blocksize=None, compress_statistics=False, quant_storage=torch.uint8):
    """quantize_4bit with quant_type="fp4"."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def dequantize_nf4(A, quant_state=None, absmax=None, out=None, blocksize=None):
    """dequantize_4bit with quant_type="nf4"."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "nf4")


def dequantize_fp4(A, quant_state=None, absmax=None, out=None, blocksize=None):
    """dequantize_4bit with quant_type="fp4"."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "fp4")


def packed_bytes(count: int, storage: torch.dtype = torch.uint8) -> int:
    """Bytes of `count` packed 4-bit elements, whole elements of `storage`."""
    item = torch.empty(0, dtype=storage).element_size()
    return ((count + 1) // 2 + item - 1) // item * item


def _require_float(tensor: torch.Tensor, what: str) -> int:
    return cuda_local.require_float(tensor, what) if tensor.is_cuda else dtypes.require_float(tensor, what)


def _require_device(tensor: torch.Tensor, device: torch.device, what: str) -> None:
    """Refuses a tensor that is not where the codes are."""
    if device.type == "cuda":
        cuda_local.require_same_device(tensor, device, what)
    else:
        dtypes.require_cpu(tensor, what)


def _require_known_device(tensor: torch.Tensor, what: str) -> None:
    if not tensor.is_cuda:
        dtypes.require_cpu(tensor, what)


def whole_bytes(count: int, blocksize: int, nested: bool) -> int:
    """Bytes of `count` packed 4-bit elements and their statistics, offset included."""
    blocks = _blocks(count, blocksize)
    return packed_bytes(count) + (blocks + 4 * _blocks(blocks, NESTED_BLOCKSIZE) + 4 if nested else 4 * blocks)


def _blocks(count: int, blocksize: int) -> int:
    return (count + blocksize - 1) // blocksize


def _mean(scales: torch.Tensor) -> torch.Tensor:
    """Mean in float64, rounded once: the order of the sum does not show."""
    if not scales.numel():
        return torch.zeros((), dtype=torch.float32, device=scales.device)
    return scales.double().mean().float()


def _require_blocksize(blocksize) -> None:
    if not isinstance(blocksize, int) or blocksize <= 0:
        raise ValueError(f"blocksize must be a positive integer; got {blocksize!r}")


def _require_4bit(blocksize, quant_type) -> None:
    if blocksize not in BLOCKSIZES_4BIT:
        raise ValueError(f"blocksize must be one of {BLOCKSIZES_4BIT}; got {blocksize!r}")
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"quant_type must be 'nf4' or 'fp4'; got {quant_type!r}")


def _code_or_dynamic(code, device) -> torch.Tensor:
    """256 contiguous fp32 values on `device`."""
    if code is None:
        return dynamic_map(device)
    if code.numel() != 256:
        raise ValueError(f"code must hold 256 values; got {code.numel()}")
    _require_device(code, device, "code")
    return code.to(torch.float32).contiguous()


def _plain_absmax(state: QuantState, count: int, device: torch.device) -> torch.Tensor:
    """The fp32 absmax of every block, double quantization undone."""
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2).float() + state.offset.float()
    _require_device(scales, device, "absmax")
    needed = _blocks(count, state.blocksize)
    if scales.numel() != needed:
        raise ValueError(f"absmax has {scales.numel()} entries, {needed} are needed for {count} elements")
    return scales.to(torch.float32).contiguous()


def _target(out, shape, dtype, device):
    """(contiguous tensor to write into, function that hands over the result)."""
    if dtype not in dtypes.FLOATS:
        raise ValueError(f"cannot dequantize to {dtype}; supported are float32, float16 and bfloat16")
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device), lambda target: target
    _require_device(out, device, "out")
    if out.shape != torch.Size(shape) or out.dtype != dtype:
        raise ValueError(
            f"out has shape {tuple(out.shape)} and dtype {dtypes.name_of(out.dtype)}; "
            f"{tuple(shape)} and {dtypes.name_of(dtype)} are needed"
        )
    if out.is_contiguous():
        return out, lambda target: target
    return torch.empty(shape, dtype=dtype, device=device), out.copy_


def _deliver(codes, state, out, absmax):
    if out is not None:
        codes = out.copy_(codes)
    if absmax is not None:
        state.absmax = absmax.copy_(state.absmax)
    return codes, state


__all__ = [
    "QuantState",
    "create_dynamic_map",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "get_4bit_type",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
]
