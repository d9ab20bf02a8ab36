"""bitpager.functional against recorded results of bitsandbytes, and its errors."""

from __future__ import annotations

import bitpager
import bitpager.functional as F
import numpy as np
import oracle
import pytest
import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def four_bit_cases(tensors):
    """(key, input, kind, block size) of every recorded 4-bit quantization."""
    for key in sorted(tensors):
        parts = key.split(".")
        if parts[-1] == "packed" and "nested" not in parts:
            shape, dtype, kind, size, _ = parts
            yield key[: -len(".packed")], tensors[f"{shape}.{dtype}.x"], kind, int(size[2:])


def assert_packed_equal(ours, theirs, x, absmax, kind, blocksize):
    """Equal but for elements that lie on a midpoint, where adjacent codes are both right, and blocks of zeros, where
    every code is."""
    codes = [torch.stack((t.flatten() >> 4, t.flatten() & 15), 1).flatten()[: x.numel()] for t in (ours, theirs)]
    zero = (absmax == 0).repeat_interleave(blocksize)[: x.numel()]
    differ = ((codes[0] != codes[1]) & ~zero).nonzero().flatten()
    table = F.get_4bit_type(kind).double()
    for index in differ.tolist():
        value = x.flatten()[index].double() / absmax[index // blocksize].double()
        a, b = table[int(codes[0][index])], table[int(codes[1][index])]
        assert abs(value - (a + b) / 2) <= 1e-6 * max(1.0, abs(value)), (index, value, a, b)
    assert len(differ) <= x.numel() // 500


def test_four_bit_quantization_matches_golden(golden):
    tensors, _ = golden("quant4")
    count = 0
    for key, x, kind, blocksize in four_bit_cases(tensors):
        packed, state = F.quantize_4bit(x, blocksize=blocksize, quant_type=kind)
        assert packed.dtype == torch.uint8 and packed.shape == ((x.numel() + 1) // 2, 1)
        assert torch.equal(state.absmax, tensors[key + ".absmax"]), key
        assert_packed_equal(packed, tensors[key + ".packed"], x, state.absmax, kind, blocksize)
        count += 1
    assert count > 40


def test_four_bit_dequantization_matches_golden_bit_for_bit(golden):
    tensors, _ = golden("quant4")
    count = 0
    for key, x, kind, blocksize in four_bit_cases(tensors):
        if key + ".dequantized" not in tensors:
            continue
        state = bitpager.QuantState(
            absmax=tensors[key + ".absmax"],
            shape=x.shape,
            code=F.get_4bit_type(kind),
            blocksize=blocksize,
            quant_type=kind,
            dtype=x.dtype,
        )
        assert torch.equal(F.dequantize_4bit(tensors[key + ".packed"], state), tensors[key + ".dequantized"]), key
        count += 1
    assert count >= 12


def test_double_quantization_matches_golden(golden):
    tensors, _ = golden("quant4")
    keys = [key[: -len(".nested.packed")] for key in tensors if key.endswith(".nested.packed")]
    assert len(keys) >= 12
    for key in keys:
        shape, dtype, kind, size = key.split(".")
        x = tensors[f"{shape}.{dtype}.x"]
        packed, state = F.quantize_4bit(x, blocksize=int(size[2:]), quant_type=kind, compress_statistics=True)
        recorded = {name: tensors[f"{key}.nested.{name}"] for name in ("absmax", "absmax2", "offset", "dequantized")}
        assert torch.allclose(state.offset, recorded["offset"].squeeze(), rtol=1e-6)
        assert torch.allclose(state.state2.absmax, recorded["absmax2"], rtol=2e-6)
        distance = (state.absmax.int() - recorded["absmax"].int()).abs()
        assert distance.max() <= 1 and (distance > 0).sum() <= 2, key
        result = F.dequantize_4bit(packed, state)
        assert result.dtype == x.dtype and result.shape == x.shape
        scales = tensors[key + ".absmax"]
        full = (scales != 0).repeat_interleave(int(size[2:]))[: x.numel()]  # codes of zero blocks are arbitrary
        tolerance = 2e-2 if dtype == "bfloat16" else 2e-3
        pair = [values.flatten()[full].float() for values in (result, recorded["dequantized"])]
        assert torch.allclose(*pair, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("signed", [True, False])
def test_blockwise_matches_golden(golden, signed):
    tensors, _ = golden("quant8")
    name, x = ("signed", tensors["x"]) if signed else ("unsigned", tensors["x_abs"])
    code = F.create_dynamic_map(signed)
    for blocksize in (64, 128, 256, 512, 1024, 2048, 4096):
        codes, state = F.quantize_blockwise(x, code=code, blocksize=blocksize)
        key = f"{name}.bs{blocksize}"
        assert torch.equal(state.absmax, tensors[key + ".absmax"])
        differ = (codes != tensors[key + ".codes"]).nonzero().flatten()
        assert len(differ) <= 8
        for index in differ.tolist():
            pair = [float(code[int(c[index])]) for c in (codes, tensors[key + ".codes"])]
            value = float(x[index]) / float(state.absmax[index // blocksize])
            assert abs(value - sum(pair) / 2) <= 1e-6 * max(abs(value), 1e-3)
        if key + ".dequantized" in tensors:
            state.absmax = tensors[key + ".absmax"]
            assert torch.equal(F.dequantize_blockwise(tensors[key + ".codes"], state), tensors[key + ".dequantized"])


def test_dynamic_map_matches_golden_and_library(golden):
    tensors, _ = golden("quant8")
    from bitpager import _lib

    for signed, name in ((True, "map_signed"), (False, "map_unsigned")):
        ours = F.create_dynamic_map(signed)
        assert torch.equal(ours, tensors[name])
        native = torch.empty(256)
        _lib.check(_lib.lib().bp_dynamic_map(int(signed), native.data_ptr()))
        assert torch.equal(ours, native)
        assert np.allclose(ours.numpy(), oracle.dynamic_map(signed), rtol=1e-6)
    assert F.create_dynamic_map(total_bits=4, max_exponent_bits=3).unique().numel() == 16


@pytest.mark.parametrize("storage", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 1003, 4096])
def test_storage_dtypes_hold_the_same_bytes(storage, count):
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    reference, state = F.quantize_nf4(x)
    packed, _ = F.quantize_nf4(x, quant_storage=storage)
    assert packed.dtype == storage and packed.shape[1] == 1
    assert torch.equal(packed.view(torch.uint8).flatten()[: reference.numel()], reference.flatten())
    assert torch.equal(F.dequantize_nf4(packed, state), F.dequantize_nf4(reference, state))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_mean_error_is_that_of_the_format(kind):
    expected = {"nf4": 0.0728, "fp4": 0.0965}[kind]
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
    packed, state = F.quantize_4bit(x, quant_type=kind)
    error = (F.dequantize_4bit(packed, state) - x).abs().mean().item()
    assert abs(error - expected) < 0.0015


def test_out_and_absmax_receive_the_results():
    x = torch.randn(10, 20)
    packed, state = F.quantize_4bit(x, quant_type="nf4")
    out, absmax = torch.zeros_like(packed), torch.zeros_like(state.absmax)
    returned, second = F.quantize_4bit(x, absmax=absmax, out=out, quant_type="nf4")
    assert returned is out and second.absmax is absmax and torch.equal(out, packed)
    target = torch.zeros(20, 10).t()
    assert F.dequantize_4bit(packed, state, out=target) is target
    assert torch.equal(target, F.dequantize_4bit(packed, state))
    explicit = F.dequantize_4bit(packed, absmax=absmax, out=torch.zeros(10, 20), quant_type="nf4")
    assert torch.equal(explicit, target)
    assert torch.equal(F.dequantize_4bit(packed.t(), state), target.t())


def test_quant_state_survives_its_interchange_form():
    x = torch.randn(33, 47, dtype=torch.float16)
    packed, state = F.quantize_4bit(x, quant_type="fp4", blocksize=128, compress_statistics=True)
    form = state.as_dict(packed=True)
    assert set(form) == {
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_state.bitsandbytes__fp4",
    }
    again = bitpager.QuantState.from_dict({"weight." + key: value for key, value in form.items()})
    assert again == state and torch.equal(F.dequantize_4bit(packed, again), F.dequantize_4bit(packed, state))
    assert bitpager.QuantState.from_dict(state.as_dict()) == state
    assert state.bitsandbytes__fp4.dtype == torch.uint8
    assert state[0] is state.absmax and state[4][1] is state.state2


def test_recorded_quant_state_loads(golden):
    tensors, _ = golden("linear")
    for kind in ("nf4", "fp4"):
        for nested in (0, 1):
            prefix = f"linear4.a.{kind}.dq{nested}.state_dict.weight"
            entries = {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
            state = bitpager.QuantState.from_dict(entries)
            assert state.nested == bool(nested) and tuple(state.shape) == (192, 256)
            packed, ours = F.quantize_4bit(
                tensors["linear4.a.W"], quant_type=kind, blocksize=state.blocksize, compress_statistics=bool(nested)
            )
            plain = F.quantize_4bit(tensors["linear4.a.W"], quant_type=kind, blocksize=state.blocksize)[1].absmax
            assert_packed_equal(packed, tensors[prefix], tensors["linear4.a.W"], plain, kind, state.blocksize)
            recorded = F.dequantize_4bit(tensors[prefix], state)
            difference = (recorded.float() - F.dequantize_4bit(packed, ours).float()).abs()
            assert (difference > 1e-3).sum() <= recorded.numel() // 500


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: F.quantize_4bit(torch.zeros(4, dtype=torch.float64)), "float64"),
        (lambda: F.quantize_4bit(torch.zeros(4), blocksize=48), "48"),
        (lambda: F.quantize_4bit(torch.zeros(4), quant_type="int4"), "int4"),
        (lambda: F.quantize_4bit(torch.zeros(4), quant_storage=torch.int32), "quant_storage"),
        (lambda: F.quantize_4bit(torch.zeros(4).to_sparse()), "sparse"),
        (lambda: F.quantize_4bit(torch.zeros(4, device="meta")), "meta"),
        (lambda: F.dequantize_4bit(torch.zeros(2, 1, dtype=torch.uint8)), "quant_state"),
        (lambda: F.quantize_blockwise(torch.zeros(4), blocksize=0), "blocksize"),
        (lambda: F.quantize_blockwise(torch.zeros(4), code=torch.zeros(16)), "256"),
        (lambda: F.dequantize_blockwise(torch.zeros(4), absmax=torch.ones(1)), "uint8"),
        (lambda: F.dequantize_blockwise(torch.zeros(4, dtype=torch.uint8)), "absmax"),
        (lambda: F.dequantize_blockwise(torch.zeros(4, dtype=torch.uint8), absmax=torch.ones(3)), "absmax has 3"),
        (lambda: bitpager.QuantState.from_dict({"absmax": torch.ones(1)}), "lacks"),
        (lambda: bitpager.QuantState.from_dict({"surprise": 1}), "surprise"),
        (lambda: F.create_dynamic_map(total_bits=9), "total_bits"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_too_short_packed_is_refused():
    packed, state = F.quantize_nf4(torch.randn(256))
    with pytest.raises(ValueError, match="too few"):
        F.dequantize_nf4(packed[:100], state)


def test_empty_tensors_pass():
    packed, state = F.quantize_4bit(torch.empty(0, 4))
    assert packed.numel() == 0 and F.dequantize_4bit(packed, state).shape == (0, 4)


def test_nan_reaches_only_its_own_block():
    x = torch.randn(256)
    clean = F.dequantize_nf4(*F.quantize_nf4(x))
    x[70] = float("nan")
    result = F.dequantize_nf4(*F.quantize_nf4(x))
    assert torch.equal(result[:64], clean[:64]) and torch.equal(result[128:], clean[128:])
