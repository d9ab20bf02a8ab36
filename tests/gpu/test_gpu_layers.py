"""4-bit and 8-bit quantization of CUDA tensors, in this process and in the daemon's pages, and 4-bit linear layers."""

from __future__ import annotations

import copy

import bitpager
import bitpager.functional as F
import gpu_daemon
import gpu_training
import pytest
import torch
from bitpager import nn

DEVICE = gpu_training.DEVICE
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(64,), (1000, 37), (513, 256), (1,)]


def values(shape, dtype, seed=1):
    """Normal values with a block of zeros; on the CPU, so that both devices get the same."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=generator)
    made.view(-1)[64:128] = 0
    return made.to(dtype)


def assert_four_bit_equal(x, options):
    """Of x on both devices: codes, statistics and what they decode to."""
    packed, state = F.quantize_4bit(x, **options)
    ours, our_state = F.quantize_4bit(x.to(DEVICE), **options)
    what = (tuple(x.shape), options)
    assert ours.device == torch.device(DEVICE) and our_state.absmax.device == ours.device, what
    assert torch.equal(ours.cpu(), packed), what
    assert torch.equal(our_state.absmax.cpu(), state.absmax), what
    if options["compress_statistics"]:
        assert torch.equal(our_state.state2.absmax.cpu(), state.state2.absmax), what
        assert float(our_state.offset) == float(state.offset), what
    found = F.dequantize_4bit(ours, our_state)
    assert found.dtype == x.dtype and torch.equal(found.cpu(), F.dequantize_4bit(packed, state)), what


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_four_bit_equals_the_cpu_bit_for_bit(dtype, kind, nested):
    for shape in SHAPES:
        for blocksize in F.BLOCKSIZES_4BIT:
            options = {"blocksize": blocksize, "quant_type": kind, "compress_statistics": nested}
            assert_four_bit_equal(values(shape, dtype), options)


@pytest.mark.parametrize("blocksize", [64, 256, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_eight_bit_equals_the_cpu_bit_for_bit(dtype, blocksize):
    x = values((1000, 37), dtype)
    codes, state = F.quantize_blockwise(x, blocksize=blocksize)
    ours, our_state = F.quantize_blockwise(x.to(DEVICE), blocksize=blocksize)
    assert torch.equal(ours.cpu(), codes) and torch.equal(our_state.absmax.cpu(), state.absmax)
    assert torch.equal(F.dequantize_blockwise(ours, our_state).cpu(), F.dequantize_blockwise(codes, state))


def test_recorded_dequantization_is_matched_bit_for_bit(gpu_golden):
    tensors, _ = gpu_golden("quant4-golden")
    count = 0
    for key in [k[: -len(".dequantized")] for k in tensors if k.endswith(".dequantized") and ".nested" not in k]:
        parts = key.split(".")
        if len(parts) != 4:
            continue
        shape, dtype, kind, size = parts
        x = tensors[f"{shape}.{dtype}.x"]
        state = bitpager.QuantState(
            absmax=tensors[key + ".absmax"].to(DEVICE),
            shape=x.shape,
            code=F.get_4bit_type(kind, device=DEVICE),
            blocksize=int(size[2:]),
            quant_type=kind,
            dtype=getattr(torch, dtype),
        )
        found = F.dequantize_4bit(tensors[key + ".packed"].to(DEVICE), state)
        assert torch.equal(found.cpu(), tensors[key + ".dequantized"]), key
        count += 1
    assert count > 10


def test_functional_runs_on_the_current_stream():
    x = values((2048, 1024), torch.bfloat16).to(DEVICE)
    expected, _ = F.quantize_4bit(x, quant_type="nf4")
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        packed, _ = F.quantize_4bit(late, quant_type="nf4")
    side.synchronize()
    assert torch.equal(packed, expected)


def test_mixed_devices_are_refused():
    x = values((64, 64), torch.float32).to(DEVICE)
    packed, state = F.quantize_4bit(x, quant_type="nf4")
    with pytest.raises((ValueError, bitpager.Error)):
        F.dequantize_4bit(packed.cpu(), state)
    with pytest.raises((ValueError, bitpager.Error)):
        F.dequantize_4bit(packed, state, out=torch.empty(64, 64))


@pytest.mark.parametrize("path", ["request", "auto", "lease"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_in_pages_equal_those_in_this_process(session, dtype, nested, path):
    x = values((1111, 301), dtype).to(DEVICE)
    packed, state = F.quantize_4bit(x, quant_type="nf4", compress_statistics=nested)
    weight = bitpager.Weight.from_tensor(x, nested=nested, session=session)
    found = weight.dequantize(path=path, out=torch.full_like(x, float("nan")))
    assert torch.equal(found, F.dequantize_4bit(packed, state))
    exported, _ = weight.export()
    assert torch.equal(exported.cpu(), packed.cpu())


def test_a_weight_that_was_evicted_comes_back_whole(make_daemon):
    daemon = make_daemon("--device-budget", "16MiB", "--host-budget", "256MiB", "--window-pages", "8")
    with gpu_daemon.connect(daemon, "weights") as session:
        sources = [values((4096, 2048), torch.bfloat16, seed).to(DEVICE) for seed in range(6)]
        weights = [bitpager.Weight.from_tensor(x, nested=False, session=session) for x in sources]
        for _ in range(3):
            for x, weight in zip(sources, weights):
                packed, state = F.quantize_4bit(x, quant_type="nf4")
                found = weight.dequantize(path="request", out=torch.empty_like(x))
                assert torch.equal(found, F.dequantize_4bit(packed, state))
        assert session.memory_stats()["loaded_bytes"] > 0, "nothing was paged"


@pytest.mark.parametrize("nested", [False, True])
def test_leases_outlive_evictions_and_new_values(make_daemon, nested):
    """A lease is revoked while kernels read, taken again, and follows a weight that was quantized anew."""
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "256MiB", "--window-pages", "8")
    with gpu_daemon.connect(daemon, "leases") as session:
        sources = [values((1024, 1024), torch.bfloat16, seed).to(DEVICE) for seed in range(4)]
        weights = [bitpager.Weight.from_tensor(x, nested=nested, session=session) for x in sources]
        expected = [
            F.dequantize_4bit(*F.quantize_4bit(x, quant_type="nf4", compress_statistics=nested)) for x in sources
        ]
        side = torch.cuda.Stream()
        for turn in range(6):
            for index, weight in enumerate(weights):
                with torch.cuda.stream(side if turn % 2 else torch.cuda.current_stream()):
                    out = torch.full_like(expected[index], float("nan"))
                    torch.cuda._sleep(20_000_000)
                    weight.dequantize(path="lease", out=out)
                    if turn == 2:
                        daemon.evict("leases")
                torch.cuda.synchronize()
                assert torch.equal(out, expected[index]), (turn, index)
        weights[0].quantize_(sources[1])
        assert torch.equal(weights[0].dequantize(path="lease"), expected[1])
        assert session.memory_stats()["leased_bytes"] > 0


@pytest.mark.parametrize("in_process", [False, True])
def test_autocast_and_biases_follow_the_compute_dtype(session, in_process):
    torch.manual_seed(3)
    layer = layer_of(torch.nn.Linear(512, 256), session, compute_dtype=torch.bfloat16, in_process=in_process)
    matrix = layer.dequantize().double()
    for batch in (1, 16, 33, 4096):
        x = torch.randn(batch, 512, device=DEVICE, requires_grad=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.float32
        y.sum().backward()
        exact = x.detach().double() @ matrix.T + layer.bias.detach().double()
        assert (y.detach().double() - exact).norm() < 1e-2 * exact.norm()
        assert x.grad.shape == x.shape and bool(x.grad.isfinite().all())


def layer_of(linear, session, **options):
    return nn.Linear4bit.from_linear(copy.deepcopy(linear).to(DEVICE), session=session, **options)


@pytest.mark.parametrize("batch", [1, 2, 8, 9, 32, 64, 300])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(256, 128), (1024, 1000), (4096, 257)])
def test_forward_and_backward_equal_the_dequantized_layer(session, shape, dtype, batch):
    torch.manual_seed(3)
    linear = torch.nn.Linear(*shape, dtype=dtype)
    layer = layer_of(linear, session, compute_dtype=dtype)
    matrix = layer.dequantize().to(DEVICE).double()
    x = torch.randn(batch, shape[0], dtype=dtype, device=DEVICE, requires_grad=True)
    y = layer(x)
    exact = x.detach().double() @ matrix.T + linear.bias.detach().to(DEVICE).double()
    scale = (x.detach().double().abs() @ matrix.abs().T).clamp_min(1e-3)  # what roundings are relative to
    eps = torch.finfo(dtype).eps
    assert ((y.detach().double() - exact).abs() / (scale * eps)).max() < 4
    grad = torch.randn_like(y)
    y.backward(grad)
    exact = grad.double() @ matrix
    scale = (grad.double().abs() @ matrix.abs()).clamp_min(1e-3)
    assert ((x.grad.double() - exact).abs() / (scale * eps)).max() < 4


def test_the_layer_equals_the_cpus(session, daemon):
    """The same codes; products differ by roundings alone."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(512, 300)
    packed, state = F.quantize_4bit(linear.weight.detach(), quant_type="nf4", compress_statistics=True)
    layer = layer_of(linear, session)
    assert torch.equal(layer.weight.packed().cpu(), packed)
    x = torch.randn(5, 512)
    expected = torch.nn.functional.linear(x, F.dequantize_4bit(packed, state), linear.bias)
    assert torch.allclose(layer(x.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_adapters_on_a_paged_base_learn(session):
    """A frozen 4-bit base with LoRA adapters stepped by a paged optimizer: the loss falls."""
    torch.manual_seed(0)

    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.a = torch.nn.Parameter(torch.randn(16, base.in_features, device=DEVICE) * 0.05)
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, 16, device=DEVICE))

        def forward(self, x):
            return self.base(x) + x @ self.a.T @ self.b.T

    def base(*size):
        return layer_of(torch.nn.Linear(*size), session)

    model = torch.nn.Sequential(Adapted(base(128, 256)), torch.nn.ReLU(), Adapted(base(256, 32)))
    params = [p for p in model.parameters() if p.requires_grad and p.dim() == 2]
    optimizer = bitpager.optim.PagedAdamW8bit(params, lr=3e-3, session=session)
    x = torch.randn(256, 128, device=DEVICE)
    y = (x[:, :32] * 2).tanh()
    losses = []
    for _ in range(80):
        optimizer.zero_grad(set_to_none=True)
        loss = (model(x) - y).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    session.synchronize()
    assert losses[-1] < 0.5 * losses[0], (losses[0].item(), losses[-1].item())


def test_a_quantized_model_saves_and_loads(session):
    torch.manual_seed(3)
    layer = layer_of(torch.nn.Linear(256, 128), session)
    saved = {key: value.cpu() for key, value in layer.state_dict().items()}
    other = layer_of(torch.nn.Linear(256, 128), session)
    other.load_state_dict(saved)
    x = torch.randn(9, 256, device=DEVICE)
    assert torch.equal(layer(x), other(x))
