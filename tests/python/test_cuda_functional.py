"""Quantization and Linear4bit on a GPU, in process, against the CPU functions bit for bit. Skipped without a GPU or
without libbitpager_cuda.so."""

from __future__ import annotations

import copy

import bitpager
import bitpager.functional as F
import pytest
import torch
from bitpager import cuda_local, errors


def _why_not():
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    try:
        cuda_local.library_path()
    except errors.LibraryError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample(count, dtype, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(0.05).to(dtype)


def same(a, b):
    """Bitwise but for NaN."""
    a, b = a.cpu(), b.cpu()
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocksize", [32, 64, 256, 512, 4096])
@pytest.mark.parametrize("count", [1, 4097, 100003])
def test_four_bit_equals_the_cpu(dtype, kind, nested, blocksize, count):
    x = sample(count, dtype, count)
    packed, state = F.quantize_4bit(x, blocksize=blocksize, compress_statistics=nested, quant_type=kind)
    ours, ours_state = F.quantize_4bit(x.cuda(), blocksize=blocksize, compress_statistics=nested, quant_type=kind)
    assert ours.is_cuda and torch.equal(ours.cpu(), packed)
    assert same(ours_state.absmax, state.absmax) and ours_state.nested == nested
    if nested:
        assert same(ours_state.offset, state.offset) and same(ours_state.state2.absmax, state.state2.absmax)
    result = F.dequantize_4bit(ours, ours_state)
    assert result.is_cuda and same(result, F.dequantize_4bit(packed, state))
    assert same(F.dequantize_4bit(packed.cuda(), copy.deepcopy(state).to("cuda")), F.dequantize_4bit(packed, state))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [64, 256, 4096])
@pytest.mark.parametrize("given", [False, True])
def test_blockwise_equals_the_cpu(dtype, blocksize, given):
    x = sample(50001, dtype)
    x[100] = float("nan")
    x[300:600] = 0
    code = torch.linspace(-1, 1, 256) if given else None
    codes, state = F.quantize_blockwise(x, code=code, blocksize=blocksize)
    moved = code.cuda() if given else None
    ours, ours_state = F.quantize_blockwise(x.cuda(), code=moved, blocksize=blocksize)
    assert torch.equal(ours.cpu(), codes) and same(ours_state.absmax, state.absmax)
    assert same(F.dequantize_blockwise(ours, ours_state), F.dequantize_blockwise(codes, state))


def test_views_at_odd_places_work():
    base = sample(5000, torch.bfloat16).cuda()
    x = base[3:4100]
    packed, state = F.quantize_nf4(x)
    reference = F.dequantize_nf4(*F.quantize_nf4(x.cpu()))
    assert same(F.dequantize_nf4(packed, state), reference)
    out = torch.full((4100,), 7.0, dtype=torch.bfloat16, device="cuda")
    F.dequantize_nf4(packed, state, out=out[1:4098])
    assert same(out[1:4098], reference) and out[0] == 7 and bool((out[4098:] == 7).all())


def test_the_current_stream_is_used_and_nothing_waits():
    x = sample(1 << 20, torch.bfloat16).cuda()
    expected = F.dequantize_nf4(*F.quantize_nf4(x))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.zeros_like(x)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        result = F.dequantize_nf4(*F.quantize_nf4(late))
        assert not stream.query()
    stream.synchronize()
    assert same(result, expected)


def test_tensors_on_two_devices_are_refused():
    packed, state = F.quantize_nf4(sample(256, torch.float32).cuda())
    with pytest.raises(ValueError, match="absmax is on"):
        F.dequantize_nf4(packed, copy.deepcopy(state).to("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 32, 64])
@pytest.mark.parametrize("shape", [(192, 256), (65, 320)])
def test_linear4bit_multiplies_the_decoded_weight(dtype, nested, batch, shape):
    layer = torch.nn.Linear(shape[1], shape[0], device="cuda", dtype=dtype)
    quantized = bitpager.nn.Linear4bit.from_linear(layer, compress_statistics=nested, in_process=True)
    assert quantized.weight.is_cuda and quantized.is_quantized
    x = torch.randn(batch, shape[1], device="cuda", dtype=dtype, requires_grad=True)
    y = quantized(x)
    matrix = quantized.dequantize().double()
    exact = x.double() @ matrix.t() + layer.bias.double()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
    assert (y.double() - exact).norm() / exact.norm() < tolerance
    grad = torch.randn_like(y)
    y.backward(grad)
    exact_grad = grad.double() @ matrix
    assert (x.grad.double() - exact_grad).norm() / exact_grad.norm() < tolerance


def test_linear4bit_saves_loads_moves_and_copies():
    layer = bitpager.nn.Linear4bit.from_linear(
        torch.nn.Linear(256, 64, device="cuda", dtype=torch.bfloat16), in_process=True
    )
    x = torch.randn(2, 256, device="cuda", dtype=torch.bfloat16)
    saved = layer.state_dict()
    other = bitpager.nn.Linear4bit(256, 64, device="cuda", in_process=True)
    other.load_state_dict(saved)
    other.to(torch.bfloat16)
    assert same(other(x), layer(x)) and same(copy.deepcopy(layer)(x), layer(x))
    assert layer.state_dict()["weight"].is_cuda
