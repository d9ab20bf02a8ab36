"""bitpager.nn and Weight: values, gradients, saving, copying, what a frozen paged weight allows."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import bitpager
import bitpager.functional as F
import pytest
import torch
from bitpager import nn
from bitpager.nn import swap


@pytest.fixture
def default(daemon):
    """`daemon`'s session as the default one."""
    return bitpager.connect(socket=daemon.socket, job="layers", linger=0)


def recorded_layer(tensors, kind, nested):
    """(name prefix, state dict) of a recorded bitsandbytes layer."""
    prefix = f"linear4.a.{kind}.dq{nested}"
    start = f"{prefix}.state_dict."
    return prefix, {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [0, 1])
def test_recorded_layer_loads_and_multiplies(golden, default, kind, nested):
    tensors, _ = golden("linear")
    prefix, state = recorded_layer(tensors, kind, nested)
    layer = nn.Linear4bit(256, 192, bias=False, device="meta")
    missing, unexpected = layer.load_state_dict(state)
    assert not missing and not unexpected
    assert (layer.quant_type, layer.compress_statistics) == (kind, bool(nested))
    again = layer.state_dict()
    assert set(again) == set(state)
    for key, value in state.items():
        if "quant_state" not in key:
            assert torch.equal(again[key], value), key
    for x, y in ((tensors["linear4.a.x"], f"{prefix}.y"), (tensors["linear4.a.x"][:1], f"{prefix}.y1")):
        ours = layer(x)
        assert ours.dtype == torch.bfloat16
        assert torch.allclose(ours.float(), tensors[y].float(), rtol=2e-2, atol=2e-2 * tensors[y].float().abs().max())


@pytest.mark.parametrize("path", ["request", "lease", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape, blocksize, nested", [((33, 47), 64, True), ((1000, 77), 32, False), ((5,), 4096, True)]
)
def test_daemon_and_process_agree(session, path, dtype, shape, blocksize, nested):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = bitpager.Weight.from_tensor(x, blocksize=blocksize, nested=nested, session=session)
    packed, state = F.quantize_4bit(x, quant_type="nf4", blocksize=blocksize, compress_statistics=nested)
    ours, exported = weight.export()
    assert torch.equal(ours, packed) and torch.equal(exported.absmax, state.absmax)
    weight.dequantize(path="request")  # makes it resident
    try:
        values = weight.dequantize(path=path)
    except (bitpager.BusyError, bitpager.NotResidentError):
        assert path == "lease"
        pytest.fail("a resident weight of an idle daemon could not be leased")
    assert torch.equal(values, F.dequantize_4bit(packed, state))
    assert weight.dequantize(torch.float32, path=path).dtype == torch.float32


def test_weight_takes_over_packed_bytes(session):
    packed, state = F.quantize_4bit(torch.randn(31, 33), quant_type="fp4", compress_statistics=True)
    weight = bitpager.Weight.from_packed(packed, state, session=session)
    again, again_state = weight.export()
    assert torch.equal(again, packed) and again_state == state
    assert torch.equal(weight.dequantize(), F.dequantize_4bit(packed, state))
    with pytest.raises(ValueError, match="shape"):
        weight.import_packed(*F.quantize_4bit(torch.randn(3, 3), quant_type="fp4", compress_statistics=True))
    with pytest.raises(ValueError, match="tensor has shape"):
        weight.quantize_(torch.zeros(3))


def test_pages_go_with_their_owner(session):
    weight = bitpager.Weight.from_tensor(torch.randn(512, 512), session=session)
    assert session.memory_stats()["weight_bytes"] > 0
    del weight
    gc.collect()
    assert session.memory_stats()["weight_bytes"] == 0
    weight = bitpager.Weight.from_tensor(torch.randn(64), session=session)
    weight.drop()
    weight.drop()
    assert session.memory_stats()["weight_bytes"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_equal_the_dequantized_layer(default, dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40, dtype=dtype)
    layer = nn.Linear4bit.from_linear(linear)
    reference = torch.nn.Linear(96, 40, dtype=dtype)
    reference.weight.data, reference.bias.data = layer.dequantize(), linear.bias.detach().clone()
    x = torch.randn(2, 7, 96, dtype=dtype, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    reference(z).square().sum().backward()
    assert torch.equal(layer(x), reference(z))
    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=5e-2, atol=0.3)
    assert torch.allclose(x.grad.float(), z.grad.float(), **tolerance)
    assert torch.allclose(layer.bias.grad.float(), reference.bias.grad.float(), **tolerance)
    assert not layer.weight.requires_grad and layer.weight.grad is None


def test_compute_dtype_and_autocast(default):
    layer = nn.LinearNF4(64, 32, compute_dtype=torch.bfloat16)
    x = torch.randn(3, 64, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32 and torch.equal(y, y.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nn.LinearFP4(64, 32)(x)
    mixed.sum().backward()
    assert x.grad.dtype == torch.float32


def test_packed_semantics_of_the_weight(default):
    layer = nn.Linear4bit(33, 31, bias=False)
    assert layer.weight.shape == (31, 33) and not layer.is_quantized and not layer.weight.requires_grad
    layer.quantize_()
    weight = layer.weight
    assert type(weight).__name__ != "Params4bit" and isinstance(weight, torch.nn.Parameter)
    assert weight.shape == ((31 * 33 + 1) // 2, 1) and weight.dtype == torch.uint8 and weight.device.type == "cpu"
    assert (
        weight.numel() == 31 * 33
        and weight.nelement() == 512 + 16 + 4 + 4  # codes, their scales, the scale and the offset of these
        and weight.quant_state.shape == (31, 33)
        and (layer.in_features, layer.out_features) == (33, 31)
    )
    packed, state = layer.weight.pages.export()
    assert torch.equal(weight.data, packed) and torch.equal(weight + 0, packed) and torch.equal(weight.cpu(), packed)
    assert torch.equal(torch.cat([weight, weight])[:512], packed)
    assert torch.equal(F.dequantize_4bit(weight.data, weight.quant_state), layer.dequantize())
    with pytest.raises(TypeError, match="quantized"):
        weight.zero_()
    with pytest.raises(TypeError, match="quantized"):
        torch.nn.init.normal_(weight)
    with pytest.raises(TypeError, match="cannot set"):
        weight.data = torch.zeros(3)
    assert "nf4" in repr(layer) and "Weight" in repr(weight)


def test_casts_leave_statistics_alone(default):
    model = torch.nn.Sequential(nn.Linear4bit(64, 64).quantize_())
    before = model.state_dict()
    model.to(torch.bfloat16).half().cpu()
    after = model.state_dict()
    assert model[0].bias.dtype == torch.float16
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]
    for key, value in before.items():
        if "bias" not in key:
            assert torch.equal(value, after[key]), key


def test_save_load_copy_and_pickle_keep_every_bit(default, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8))
    assert nn.quantize_(model) == ["0", "2"]
    x = torch.randn(5, 64)
    y = model(x)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    fresh = torch.nn.Sequential(nn.Linear4bit(64, 48), torch.nn.ReLU(), nn.Linear4bit(48, 8))
    fresh.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    assert torch.equal(fresh(x), y)
    from safetensors.torch import load, save

    fresh.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(fresh(x), y)
    twin = copy.deepcopy(model)
    assert twin[0].weight.pages is not model[0].weight.pages and torch.equal(twin(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


@pytest.mark.parametrize("nested", [False, True])
def test_distributed_checkpoint_finds_every_statistic(default, tmp_path, nested):
    """It looks a key like base.weight.absmax up attribute by attribute."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    def fresh(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.LayerNorm(64))
        nn.quantize_(model, compress_statistics=nested)
        return model

    one, two = fresh(0), fresh(1)
    saved = get_model_state_dict(one)
    assert set(saved) == set(one.state_dict())
    dcp.save({"model": saved}, checkpoint_id=tmp_path, no_dist=True)
    loaded = {"model": get_model_state_dict(two)}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(two, loaded["model"])
    assert torch.equal(one[0].weight.packed(), two[0].weight.packed())
    assert torch.equal(one[0].dequantize(), two[0].dequantize())
    assert not hasattr(one[0].weight, "absmax2") and hasattr(one[0].weight, "nested_absmax") == nested


def test_float_state_dicts_are_quantized(default):
    linear = torch.nn.Linear(64, 48)
    expected = nn.Linear4bit.from_linear(linear).dequantize()
    late = nn.Linear4bit(64, 48)
    late.load_state_dict(linear.state_dict())
    assert not late.is_quantized
    late(torch.randn(1, 64))
    again = nn.Linear4bit(64, 48).quantize_()
    again.load_state_dict(linear.state_dict())
    assert torch.equal(late.dequantize(), expected) and torch.equal(again.dequantize(), expected)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_storage_dtypes_save_and_load(default, storage):
    layer = nn.Linear4bit(64, 48, quant_storage=storage).quantize_()
    state = layer.state_dict()
    assert state["weight"].dtype == storage and layer.weight.dtype == storage
    fresh = nn.Linear4bit(64, 48)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.dequantize(), layer.dequantize()) and fresh.quant_storage == storage


def test_loading_what_does_not_fit_says_so(default):
    layer = nn.Linear4bit(64, 48).quantize_()
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match="needed"):
        nn.Linear4bit(32, 48).load_state_dict(state)
    with pytest.raises(RuntimeError, match="statistics"):
        nn.Linear4bit(64, 48).load_state_dict({"weight": state["weight"], "bias": state["bias"]})
    del state["weight.absmax"]
    with pytest.raises(RuntimeError, match="absmax"):
        nn.Linear4bit(64, 48).load_state_dict(state)
    missing, _ = nn.Linear4bit(64, 48).load_state_dict({}, strict=False)
    assert set(missing) == {"weight", "bias"}


def test_swapping_skips_tied_and_named_layers(default):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(20, 64)
            self.block = torch.nn.ModuleDict({"up": torch.nn.Linear(64, 128), "down": torch.nn.Linear(128, 64)})
            self.block["again"] = self.block["up"]
            self.head = torch.nn.Linear(64, 20, bias=False)
            self.head.weight = self.embed.weight
            self.score = torch.nn.Linear(64, 2)

    model = Model()
    assert nn.quantize_(model, skip=["score", "block.down"]) == ["block.up"]
    assert model.block["again"] is model.block["up"] and isinstance(model.block["up"], nn.Linear4bit)
    assert model.head.weight is model.embed.weight and type(model.score) is torch.nn.Linear
    with pytest.raises(ValueError, match="from_linear"):
        nn.quantize_(torch.nn.Linear(3, 3))


def test_lora_on_a_paged_base_learns(default):
    """QLoRA in small: adapters trained by a paged optimizer over a quantized base, with checkpointing."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    base = nn.Linear4bit.from_linear(torch.nn.Linear(64, 64))
    down, up = torch.nn.Linear(64, 8, bias=False), torch.nn.Linear(8, 64, bias=False)
    torch.nn.init.zeros_(up.weight)
    base.bias.requires_grad_(False)
    optimizer = bitpager.optim.PagedAdamW8bit([*down.parameters(), *up.parameters()], lr=1e-2)
    x = torch.randn(256, 64)
    y = x.roll(1, 1)
    before = base.dequantize()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        hidden = checkpoint(base, x.requires_grad_(), use_reentrant=False)
        loss = (hidden + up(down(x)) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and torch.equal(base.dequantize(), before)


def test_compiled_models_run(default):
    layer = nn.Linear4bit(64, 32).quantize_()
    compiled = torch.compile(torch.nn.Sequential(layer), backend="eager")
    x = torch.randn(3, 64)
    assert torch.equal(compiled(x), layer(x))


def test_prefetch_and_phases_are_accepted(default):
    model = torch.nn.Sequential(nn.Linear4bit(64, 64).quantize_(), torch.nn.ReLU())
    with default.phase("forward"):
        default.prefetch(model, model[0], model[0].weight.pages)
    default.noop()
    with pytest.raises(ValueError, match="phase"):
        default.hint_phase("lunch")
    with pytest.raises(TypeError, match="no pages"):
        default.prefetch("model")


def test_a_gpus_memory_that_weights_were_quantized_from_is_let_go_once_all_are(session, monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    bitpager.nn.quantize_(model, session=session)
    calls = []
    monkeypatch.setattr(session, "device_kind", "cuda")
    monkeypatch.setattr(type(session), "settle", lambda _: calls.append("settle"))
    monkeypatch.setattr(type(session), "release_gradients", lambda _: calls.append("release"))
    swap.release_sources(model)
    assert calls == ["settle", "release"], "once for the session that both layers lie in"
