"""bitpager.optim: recorded results of bitsandbytes, a float64 oracle, and what users of torch.optim rely on."""

from __future__ import annotations

import copy
import gc
import json
import pathlib
import pickle
import warnings
import weakref

import bitpager
import numpy as np
import oracle
import pytest
import torch
from bitpager import optim

CLASSES = {
    ("adam", 8): optim.Adam8bit,
    ("adam", 32): optim.Adam32bit,
    ("adamw", 8): optim.AdamW8bit,
    ("adamw", 32): optim.AdamW32bit,
    ("lion", 8): optim.Lion8bit,
    ("lion", 32): optim.Lion32bit,
}
WRAPPED = "__bnb_optimizer_quant_state__"
ALL = [
    getattr(optim, paged + name + width)
    for paged in ("", "Paged")
    for name in ("Adam", "AdamW", "Lion")
    for width in ("", "8bit", "32bit")
]


def tensors_of(optimizer, index=0):
    return optimizer.state_dict()["state"][index][WRAPPED]


def roundings(ours, theirs, scale):
    """Largest distance in roundings of the dtype at `scale` (elementwise)."""
    largest = torch.maximum(scale.float().abs(), theirs.float().abs())
    spacing = torch.finfo(ours.dtype).eps * torch.exp2(torch.floor(torch.log2(largest.clamp_min(1e-30))))
    return ((ours.float() - theirs.float()).abs() / spacing).max().item()


def assert_codes_equal(ours, theirs, signed, limit):
    """Equal codes, but for adjacent ones at near ties."""
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).sum() <= limit


@pytest.mark.parametrize("case", [f"{n}.{b}" for n, b in CLASSES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [700, 1024])
def test_matches_golden(golden, session, case, dtype, count):
    tensors, metadata = golden("optim")
    name, bits = case.split(".")
    key = f"{case}.{dtype}.n{count}"
    settings = json.loads(metadata[key])
    settings.pop("eps", None) if name == "lion" else None
    p = torch.nn.Parameter(tensors[f"{key}.p0"].clone())
    optimizer = CLASSES[name, int(bits)]([p], min_8bit_size=0, session=session, **settings)
    for step in range(1, 5):
        p.grad = tensors[f"{key}.grads"][step - 1].clone()
        optimizer.step()
        if f"{key}.step{step}.p" not in tensors:
            continue
        if step == 1:
            scale = tensors[f"{key}.p0"].float().abs().clamp_min(settings["lr"])
            # One rounding of the update, at its own size, and one of the sum.
            assert roundings(p.detach(), tensors[f"{key}.step{step}.p"], scale) <= 2
        else:
            assert torch.allclose(p.detach().float(), tensors[f"{key}.step{step}.p"].float(), rtol=1e-2, atol=2e-5)
        ours = tensors_of(optimizer)
        for k in ("state1", "state2"):
            if f"{key}.step{step}.{k}" not in tensors:
                assert k not in ours
                continue
            theirs = tensors[f"{key}.step{step}.{k}"]
            if bits == "8":
                absmax = tensors[f"{key}.step{step}.absmax{k[-1]}"]
                assert torch.allclose(ours["absmax" + k[-1]], absmax, rtol=2e-6)
                assert_codes_equal(ours[k], theirs, k == "state1", 5)
            else:
                assert torch.allclose(ours[k], theirs, rtol=2e-6, atol=1e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", ["adam", "lion"])
def test_agrees_with_the_float64_oracle(session, rule, bits):
    """Each step from the states as they are, so that roundings do not add up."""
    generator = np.random.default_rng(7)
    count = 5000
    p = torch.nn.Parameter(torch.from_numpy(generator.standard_normal(count).astype(np.float32)).clone())
    settings = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, session=session)
    optimizer = CLASSES["adamw" if rule == "adam" else "lion", bits]([p], **settings)
    states = [np.zeros(count), np.zeros(count)]
    for step in range(1, 6):
        gradient = generator.standard_normal(count).astype(np.float32)
        before = p.detach().double().numpy().copy()
        p.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        if rule == "adam":
            expected, *states = oracle.adam(before, gradient.astype(float), *states, step, 1e-2, (0.9, 0.99), 1e-8, 0.1)
        else:
            expected, states[0] = oracle.lion(before, gradient.astype(float), states[0], 1e-2, (0.9, 0.99), 0.1)
        assert np.abs(p.detach().numpy() - expected).max() < 2e-6
        ours = tensors_of(optimizer)
        for k in range(2 if rule == "adam" else 1):
            if bits == 32:
                assert np.allclose(ours[f"state{k + 1}"].numpy(), states[k], rtol=1e-5, atol=1e-7)
                states[k] = ours[f"state{k + 1}"].double().numpy()
                continue
            codes, absmax = oracle.encode(states[k], signed=k == 0, sign_rule=k == 0)
            assert np.allclose(ours[f"absmax{k + 1}"].numpy(), absmax, rtol=1e-5)
            distance = np.abs(ours[f"state{k + 1}"].numpy().astype(int) - codes.astype(int))
            assert distance.max() <= 1 and (distance > 0).sum() <= 5
            states[k] = oracle.decode(ours[f"state{k + 1}"].numpy(), ours[f"absmax{k + 1}"].numpy(), k == 0)


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_every_class_trains_in_place(session, cls):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(80, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    x = torch.randn(128, 80)
    y = x.sum(1, keepdim=True) / 9
    optimizer = cls(model.parameters(), lr=3e-3 if "Adam" in cls.__name__ else 1e-3, session=session)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - y).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    expected = 8 if "8bit" in cls.__name__ else 32
    assert tensors_of(optimizer, 0)["state1"].dtype == (torch.uint8 if expected == 8 else torch.float32)
    assert optimizer.state[model[0].weight] == {"step": 30}


def test_dtypes_mix_in_one_step(session):
    ps = [torch.nn.Parameter(torch.ones(5000, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float16)]
    optimizer = optim.AdamW8bit(ps, lr=0.1, weight_decay=0.0, session=session)
    for p in ps:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    for p in ps:
        assert torch.allclose(p.detach().float(), torch.full((5000,), 0.9), atol=4e-3)


def test_group_settings_are_read_every_step(session):
    a, b = (torch.nn.Parameter(torch.zeros(300)) for _ in range(2))
    groups = [{"params": [a], "lr": 1.0}, {"params": [b], "lr": torch.tensor(0.25)}]
    optimizer = optim.Lion32bit(groups, session=session)
    a.grad, b.grad = torch.ones(300), torch.ones(300)
    optimizer.step()
    assert a[0] == -1.0 and b[0] == -0.25
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.param_groups[1]["lr"].fill_(2.0)
    optimizer.step()
    assert a[0] == -1.5 and b[0] == -2.25


def test_schedulers_hooks_and_closures_work(session):
    p = torch.nn.Parameter(torch.ones(300))
    optimizer = optim.AdamW32bit([p], lr=0.1, session=session)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    second = optimizer.step(closure)
    assert second < first and calls == ["pre", "post"] * 2


def test_groups_added_after_steps_get_their_own_arena(session):
    a, b = (torch.nn.Parameter(torch.ones(5000)) for _ in range(2))
    optimizer = optim.AdamW8bit([a], lr=0.1, session=session)
    a.grad = torch.ones(5000)
    optimizer.step()
    optimizer.add_param_group({"params": [("b", b)], "lr": 0.2})
    b.grad = torch.ones(5000)
    optimizer.step()
    assert optimizer.state[a]["step"] == 2 and optimizer.state[b]["step"] == 1
    assert len(optimizer.extents()) == 2 and b[0] < 0.9
    assert set(optimizer.state_dict()["state"]) == {0, 1}


def test_small_parameters_and_overrides_keep_32_bits(session):
    big, small, special = (torch.nn.Parameter(torch.ones(n)) for n in (5000, 4095, 5000))
    manager = optim.GlobalOptimManager.get_instance()
    manager.override_config(special, "optim_bits", 32)
    optimizer = optim.AdamW8bit([big, small, special], session=session)
    for p in (big, small, special):
        p.grad = torch.ones_like(p)
    optimizer.step()
    dtypes = [tensors_of(optimizer, i)["state1"].dtype for i in range(3)]
    assert dtypes == [torch.uint8, torch.float32, torch.float32]
    manager.override_config(big, key_value_dict={"lr": 0.0, "weight_decay": 0.0})
    before = big.detach().clone()
    optimizer.step()
    assert torch.equal(big, before)


def test_parameters_without_gradient_or_elements_are_left_alone(session):
    frozen, empty, used = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(0)), None
    used = torch.nn.Parameter(torch.ones(10))
    optimizer = optim.AdamW32bit([frozen, empty, used], session=session)
    used.grad, empty.grad = torch.ones(10), torch.ones(0)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(10)) and frozen not in optimizer.state
    state = optimizer.state_dict()["state"]
    assert state[1]["step"] == 1 and state[1][WRAPPED]["state1"].numel() == 0
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state[used]["step"] == 2


def test_memory_formats_and_expanded_gradients(session):
    torch.manual_seed(3)
    plain = torch.nn.Parameter(torch.randn(8, 6, 5, 30))
    last = torch.nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    transposed = torch.nn.Parameter(torch.randn(40, 200).t())
    optimizer = optim.AdamW8bit([plain, last, transposed], lr=0.1, session=session)
    gradient = torch.randn(8, 6, 5, 30)
    plain.grad, last.grad = gradient, gradient.clone()
    transposed.grad = torch.ones(()).expand(200, 40)
    before = transposed.detach().clone()
    optimizer.step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, last, atol=1e-6)
    assert torch.allclose(transposed, before * (1 - 1e-3) - 0.1 * (1 - 1e-3), atol=1e-5)
    assert tensors_of(optimizer, 2)["state1"].stride() == transposed.stride()


def test_views_of_one_storage_share_one_registration(session):
    base = torch.zeros(1000)
    a, b = torch.nn.Parameter(base[:400]), torch.nn.Parameter(base[400:])
    optimizer = optim.Lion32bit([a, b], lr=1.0, session=session)
    a.grad, b.grad = torch.ones(400), -torch.ones(600)
    optimizer.step()
    assert (base[:400] == -1).all() and (base[400:] == 1).all()
    assert len(session._storages) == 1


def test_swapped_data_is_found_again_and_old_memory_released(session):
    p = torch.nn.Parameter(torch.zeros(300))
    optimizer = optim.Lion32bit([p], lr=1.0, session=session)
    p.grad = torch.ones(300)
    optimizer.step()
    p.data = torch.full((300,), 5.0)
    gc.collect()
    optimizer.step()
    assert (p == 4).all() and len(session._storages) == 1
    p.data = torch.zeros(301)
    p.grad = torch.ones(301)
    with pytest.raises(ValueError, match="301"):
        optimizer.step()


def test_a_step_of_states_of_two_widths_is_counted_once(session):
    parameters = [torch.nn.Parameter(torch.zeros(5000)), torch.nn.Parameter(torch.zeros(10))]
    optimizer = optim.AdamW8bit(parameters, session=session)
    before = session.memory_stats()["steps"]
    for _ in range(3):
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert session.memory_stats()["steps"] - before == 3


def test_an_optimizer_goes_with_its_last_reference_and_its_parameters_with_it(session):
    """Their memory may be a GPU's: no collector runs when that is short."""
    optim.AdamW8bit([torch.nn.Parameter(torch.zeros(300))], session=session)  # torch's first one lies in a cycle
    gc.collect()
    gc.disable()
    try:
        p = torch.nn.Parameter(torch.zeros(5000))
        optimizer = optim.AdamW8bit([p], session=session)
        p.grad = torch.ones(5000)
        optimizer.step()
        kept = [weakref.ref(p), weakref.ref(optimizer)]
        del p, optimizer
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_numpy_memory_is_stepped_through_the_slab_with_a_warning(session):
    array = np.zeros(300, np.float32)
    p = torch.nn.Parameter(torch.from_numpy(array))
    optimizer = optim.Lion32bit([("layer.w", p)], lr=1.0, session=session)
    p.grad = torch.ones(300)
    with pytest.warns(UserWarning, match="layer.w stays in private memory"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert (array == -2).all()


def test_nonfinite_gradients_raise_with_names_and_leave_their_blocks(session):
    p = torch.nn.Parameter(torch.ones(6000))
    q = torch.nn.Parameter(torch.ones(5000))
    optimizer = optim.AdamW8bit([("up.weight", p), ("down.weight", q)], lr=0.1, weight_decay=0.0, session=session)
    p.grad, q.grad = torch.ones(6000), torch.ones(5000)
    p.grad[300] = float("nan")
    with pytest.raises(bitpager.NonFiniteError, match="up.weight.*already updated") as caught:
        optimizer.step()
    assert caught.value.tensors == ("up.weight",) and caught.value.blocks == 1
    assert (p[256:512] == 1).all() and torch.allclose(p[:256], torch.tensor(0.9)) and (q != 1).all()
    optimizer.on_nonfinite = "warn"
    with pytest.warns(RuntimeWarning, match="up.weight"):
        optimizer.step()
    optimizer.on_nonfinite = "propagate"
    optimizer.step()
    assert torch.isnan(p[300]) and optimizer.state[p]["step"] == 3


def test_unnamed_parameters_are_named_by_place(session):
    p = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = optim.Adam([p], session=session)
    p.grad = torch.full((2, 3), float("inf"))
    with pytest.raises(bitpager.NonFiniteError, match=r"param_group 0, parameter 0 of shape \(2, 3\)"):
        optimizer.step()


def step_with(parameter, gradient, session, **settings):
    optimizer = optim.AdamW8bit([parameter], session=session, **settings)
    parameter.grad = gradient
    optimizer.step()


def test_what_cannot_be_stepped_is_refused_in_words(session):
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optim.AdamW8bit(embedding.parameters(), session=session).step()
    with pytest.raises(ValueError, match="complex"):
        step_with(
            torch.nn.Parameter(torch.ones(4, dtype=torch.complex64)), torch.ones(4, dtype=torch.complex64), session
        )
    with pytest.raises(ValueError, match="float64"):
        step_with(torch.nn.Parameter(torch.ones(4).double()), torch.ones(4).double(), session)
    with pytest.raises(ValueError, match="meta"):
        step_with(torch.nn.Parameter(torch.ones(4, device="meta")), torch.ones(4, device="meta"), session)
    with pytest.raises(ValueError, match="gaps"):
        step_with(torch.nn.Parameter(torch.ones(4, 4)[:, :2]), torch.ones(4, 2), session)
    shared = torch.ones(100)
    pair = [torch.nn.Parameter(shared), torch.nn.Parameter(shared)]
    with pytest.raises(ValueError, match="share memory"):
        for p in pair:
            p.grad = torch.ones(100)
        optim.AdamW8bit(pair, session=session).step()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: optim.AdamW8bit([p], amsgrad=True), "amsgrad"),
        (lambda p: optim.AdamW8bit([p], optim_bits=16), "contradicts"),
        (lambda p: optim.AdamW([p], optim_bits=16), "8 or 32"),
        (lambda p: optim.AdamW([p], lr=-1), "learning rate"),
        (lambda p: optim.AdamW([p], lr=float("nan")), "learning rate"),
        (lambda p: optim.AdamW([p], betas=(0.9, 1.0)), "index 1"),
        (lambda p: optim.AdamW([p], eps=-1), "epsilon"),
        (lambda p: optim.Lion([p], weight_decay=-1), "weight decay"),
        (lambda p: optim.AdamW([p], percentile_clipping=5), "percentile_clipping"),
        (lambda p: optim.AdamW([p], block_wise=False), "block_wise"),
        (lambda p: optim.AdamW([p], on_nonfinite="ignore"), "on_nonfinite"),
        (lambda p: optim.AdamW([p], args={"max_unorm": 1.0}), "max_unorm"),
    ],
)
def test_bad_settings_are_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make(torch.nn.Parameter(torch.ones(3)))


def test_text_betas_and_args_are_accepted():
    p = torch.nn.Parameter(torch.ones(3))
    assert optim.AdamW([p], betas="(0.8, 0.9)").param_groups[0]["betas"] == (0.8, 0.9)
    args = type("Args", (), {"optim_bits": 8, "min_8bit_size": 1})()
    assert (optim.AdamW([p], args=args)._bits, optim.AdamW([p], args=args)._min_8bit_size) == (8, 1)


def random_steps(optimizer, parameters, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def make_pair(cls, session):
    """Two equal parameter lists with an optimizer each."""
    torch.manual_seed(5)
    first = [torch.nn.Parameter(torch.randn(5000)), torch.nn.Parameter(torch.randn(7, 3))]
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    return (first, cls(first, lr=1e-2, session=session)), (second, cls(second, lr=1e-2, session=session))


@pytest.mark.parametrize("cls", [optim.PagedAdamW8bit, optim.AdamW32bit, optim.Lion8bit])
def test_state_dict_goes_on_bit_for_bit(session, cls, tmp_path):
    (a, one), (b, two) = make_pair(cls, session)
    random_steps(one, a, 3, 1)
    random_steps(two, b, 1, 9)  # states to be replaced
    torch.save(one.state_dict(), tmp_path / "o.pt")
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    for p, q in zip(a, b):
        q.data.copy_(p.data)
    two.load_state_dict(state_dict=loaded)
    assert len(two.extents()) == (1 if cls is optim.AdamW32bit else 2)
    random_steps(one, a, 3, 2)
    random_steps(two, b, 3, 2)
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert two.state[b[0]]["step"] == 6


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_have_states_of_their_own(daemon, how):
    bitpager.connect(socket=daemon.socket, job="copies", linger=0)
    torch.manual_seed(5)
    a = [torch.nn.Parameter(torch.randn(5000))]
    one = optim.AdamW8bit([("w", a[0])], lr=1e-2)
    random_steps(one, a, 3, 1)
    two = copy.deepcopy(one) if how == "deepcopy" else pickle.loads(pickle.dumps(one))
    b = two.param_groups[0]["params"]
    assert b[0] is not a[0] and torch.equal(a[0], b[0]) and two._names[b[0]] == "w"
    random_steps(one, a, 2, 2)
    random_steps(two, b, 2, 2)
    assert torch.equal(a[0], b[0]) and two.name != one.name


def test_flat_older_and_string_keyed_states_load(session):
    (a, one), (b, two) = make_pair(optim.AdamW8bit, session)
    random_steps(one, a, 2, 1)
    saved = one.state_dict()
    names = {0: "first", 1: "second"}
    flat = {
        "state": {names[i]: {"step": torch.tensor(2.0), **entry[WRAPPED]} for i, entry in saved["state"].items()},
        "param_groups": [{**saved["param_groups"][0], "params": ["first", "second"]}],
    }
    two.load_state_dict(flat)
    again = two.state_dict()
    for i in range(2):
        for key, tensor in saved["state"][i][WRAPPED].items():
            assert torch.equal(tensor, again["state"][i][WRAPPED][key])


def test_old_wide_blocks_mean_the_same_values(session):
    p = torch.nn.Parameter(torch.zeros(5000))
    optimizer = optim.Lion8bit([p], session=session)
    codes = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    wide = {"step": 4, "state1": codes, "absmax1": torch.tensor([1.0, 2.0, 3.0])}
    optimizer.load_state_dict({"state": {0: wide}, "param_groups": optimizer.state_dict()["param_groups"]})
    absmax = tensors_of(optimizer)["absmax1"]
    assert absmax.tolist() == [1.0] * 8 + [2.0] * 8 + [3.0] * 4 and torch.equal(tensors_of(optimizer)["state1"], codes)


def test_torch_adamw_state_loads(session):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(300))
    q = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.AdamW([p], lr=1e-2, weight_decay=0.0)
    random_steps(theirs, [p], 3, 1)
    q.data.copy_(p.data)
    ours = optim.AdamW32bit([q], lr=1e-2, weight_decay=0.0, session=session)
    ours.load_state_dict(theirs.state_dict())
    random_steps(theirs, [p], 2, 2)
    random_steps(ours, [q], 2, 2)
    assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["param_groups"].append(d["param_groups"][0]), "parameter groups"),
        (lambda d: d["param_groups"][0]["params"].pop(), "parameters"),
        (lambda d: d["state"][0][WRAPPED].pop("absmax1"), "lacks absmax1"),
        (lambda d: d["state"][0][WRAPPED].pop("state2"), "lacks state2"),
        (lambda d: d["state"][0][WRAPPED].update(qmap1=torch.linspace(-1, 1, 256)), "qmap1"),
        (lambda d: d["state"][0][WRAPPED].update(state1=torch.zeros(4999)), "another model"),
        (lambda d: d["state"][0][WRAPPED].update(absmax2=torch.zeros(3 + 4)), "absmax2"),
    ],
)
def test_states_that_do_not_fit_are_refused_in_words(session, change, words):
    (a, one), (_, two) = make_pair(optim.AdamW8bit, session)
    random_steps(one, a, 1, 1)
    saved = copy.deepcopy(one.state_dict())
    change(saved)
    with pytest.raises(ValueError, match=words):
        two.load_state_dict(saved)


@pytest.mark.parametrize("kind", ["adamw8bit", "adam32bit", "lion8bit"])
def test_recorded_bitsandbytes_checkpoint_goes_on(session, kind):
    golden = pathlib.Path(__file__).resolve().parents[1] / "golden"
    from safetensors import safe_open

    with safe_open(str(golden / "bnb-checkpoints.safetensors"), "pt") as file:
        tensors = {key[len(kind) + 1 :]: file.get_tensor(key) for key in file.keys() if key.startswith(kind + ".")}
        about = json.loads(file.metadata()[kind])
    ps = [torch.nn.Parameter(tensors[f"before.{i}"].clone()) for i in range(2)]
    cls = {"adamw8bit": optim.AdamW8bit, "adam32bit": optim.Adam32bit, "lion8bit": optim.Lion8bit}[kind]
    optimizer = cls(ps, session=session)
    states = {
        i: {
            "step": about["steps"][str(i)],
            WRAPPED: {k.split(".")[-1]: v for k, v in tensors.items() if k.startswith(f"state.{i}.")},
        }
        for i in range(2)
    }
    optimizer.load_state_dict({"state": states, "param_groups": about["param_groups"]})
    saved = optimizer.state_dict()
    for i in range(2):  # ours holds what was loaded, under the same names
        assert set(saved["state"][i][WRAPPED]) == set(states[i][WRAPPED])
        for key, value in states[i][WRAPPED].items():
            assert torch.allclose(saved["state"][i][WRAPPED][key].float(), value.float(), atol=1e-9), key
        ps[i].grad = tensors[f"grad.{i}"].clone()
    optimizer.step()
    for i in range(2):
        assert torch.allclose(ps[i], tensors[f"after.{i}"], atol=2e-6), (kind, i)


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam32bit", "Lion8bit"])
def test_bitsandbytes_goes_on_from_our_checkpoint(session, name):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(5)
    ours = [torch.nn.Parameter(torch.randn(5000)), torch.nn.Parameter(torch.randn(7, 3))]
    one = getattr(optim, name)(ours, lr=1e-3, weight_decay=0.1, session=session)
    random_steps(one, ours, 3, 1)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    two = getattr(bnb.optim, name)(theirs, lr=1e-3, weight_decay=0.1)
    two.load_state_dict(one.state_dict())
    random_steps(one, ours, 2, 2)
    random_steps(two, theirs, 2, 2)
    for p, q in zip(ours, theirs):  # codes at near ties may differ by one, and then the next update a little
        difference = (p - q).abs()
        assert difference.max() < 1e-3 / 4 and (difference > 2e-6).sum() <= p.numel() // 200


class InterruptedTable:
    """Packs the rows of a step, and raises KeyboardInterrupt at the first ones."""

    def __init__(self, inner, times):
        self.inner, self.times, self.size = inner, times, inner.size

    def pack_into(self, *arguments):
        self.times -= 1
        if self.times >= 0:
            raise KeyboardInterrupt
        self.inner.pack_into(*arguments)


def test_an_interrupt_before_the_request_neither_skips_nor_splits_a_step(session, monkeypatch):
    from bitpager import arena

    def steps(times):
        torch.manual_seed(3)
        wide, narrow = (torch.nn.Parameter(torch.randn(n)) for n in (5000, 300))  # an arena of each width
        optimizer = optim.AdamW8bit([wide, narrow], lr=1e-2, session=session)
        for step in range(3):
            wide.grad, narrow.grad = torch.randn(5000), torch.randn(300)
            if step == 1 and times:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(arena, "_ENTRY", InterruptedTable(arena._ENTRY, times))
                    optimizer.step()
                if times == 2:
                    assert [state["step"] for state in optimizer.state.values()] == [1, 1]
                    optimizer.step()
            else:
                optimizer.step()
        return wide.detach().clone(), narrow.detach().clone()

    plain = steps(0)
    for times in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(steps(times), plain))


def test_grad_scaler_skips_and_clip_works(session):
    model = torch.nn.Linear(80, 80)
    optimizer = optim.AdamW8bit(model.parameters(), lr=1e-2, session=session)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = model.weight.detach().clone()
    scaler.scale(model(torch.full((2, 80), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(2, 80)).sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    assert not torch.equal(model.weight, before)


def test_steps_in_backward_equal_the_plain_loop(session):
    torch.manual_seed(2)
    plain = torch.nn.Sequential(torch.nn.Linear(80, 64), torch.nn.Linear(64, 8))
    hooked = copy.deepcopy(plain)
    optimizer = optim.AdamW8bit(plain.parameters(), lr=1e-2, session=session)
    each = {p: optim.AdamW8bit([p], lr=1e-2, session=session) for p in hooked.parameters()}

    def hook(p):
        each[p].step()
        each[p].zero_grad()

    for p in hooked.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for seed in range(3):
        x = torch.randn(16, 80, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        plain(x).pow(2).sum().backward()
        optimizer.step()
        hooked(x).pow(2).sum().backward()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), hooked.parameters()))


def test_distributed_checkpoint_form_round_trips(session):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    torch.manual_seed(0)
    model = torch.nn.Linear(80, 80)
    optimizer = optim.AdamW8bit(model.parameters(), lr=1e-2, session=session)
    random_steps(optimizer, list(model.parameters()), 2, 1)
    saved = get_optimizer_state_dict(model, optimizer)
    assert set(saved["state"]) == {"weight", "bias"}
    twin = copy.deepcopy(model)
    other = optim.AdamW8bit(twin.parameters(), lr=1e-2, session=session)
    set_optimizer_state_dict(twin, other, saved)
    random_steps(optimizer, list(model.parameters()), 2, 2)
    random_steps(other, list(twin.parameters()), 2, 2)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_dropping_an_optimizer_gives_its_pages_back(session):
    p = torch.nn.Parameter(torch.ones(5000))
    optimizer = optim.AdamW8bit([p], session=session)
    p.grad = torch.ones(5000)
    optimizer.step()
    assert session.memory_stats()["state_bytes"] > 0
    del optimizer
    gc.collect()
    assert session.memory_stats()["state_bytes"] == 0


def test_prepare_refuses_what_does_not_fit(make_daemon):
    small = make_daemon("--device-budget", "64MiB", "--host-budget", "64MiB")
    with bitpager.connect(socket=small.socket, job="big", linger=0, default=False) as session:
        p = torch.nn.Parameter(torch.empty(100_000_000))
        with pytest.raises(bitpager.OutOfMemoryError, match="[0-9]"):
            optim.PagedAdamW8bit([p], session=session).prepare()
        q = torch.nn.Parameter(torch.ones(5000))
        q.grad = torch.ones(5000)
        optim.PagedAdamW8bit([q], session=session).step()


def test_residency_does_not_change_results(make_daemon):
    """The same training under a roomy and a tight budget is bit-identical, with pages moving in the tight one."""
    results = []
    for budget in ("64MiB", "2MiB"):
        daemon = make_daemon("--device-budget", budget, "--host-budget", "128MiB", "--page-size", "64KiB")
        with bitpager.connect(socket=daemon.socket, job="residency", linger=0, default=False) as session:
            torch.manual_seed(1)
            ps = [torch.nn.Parameter(torch.randn(1_500_000)), torch.nn.Parameter(torch.randn(700_001))]
            random_steps(optim.PagedAdamW8bit(ps, lr=1e-2, session=session), ps, 3, 4)
            results.append([p.detach().clone() for p in ps])
            moved = session.memory_stats()["loaded_bytes"]
    assert moved > 0
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("name", ("AdEMAMix8bit", "PagedAdEMAMix", "LAMB32bit", "SGD8bit", "RMSprop"))
def test_names_that_are_not_there_yet_say_so(name):
    with pytest.raises(AttributeError, match=f"no {name} yet. It has: Adam, "):
        getattr(optim, name)
    assert not hasattr(optim, "Adam16bit")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_gradients_noted_before_clipping_are_named(session, dtype, value):
    """Large sums mislead nobody; what was noted is forgotten with the states."""
    ps = {name: torch.nn.Parameter(torch.ones(5000, dtype=dtype)) for name in ("first", "second", "third")}
    optimizer = optim.AdamW8bit(ps.items(), session=session)
    for p in ps.values():
        p.grad = torch.full_like(p, 60000.0)
    ps["second"].grad[17] = value
    optimizer.note_gradients()
    torch.nn.utils.clip_grad_norm_(ps.values(), 1.0)
    for p in ps.values():
        p.grad.fill_(float("nan"))
    with pytest.raises(bitpager.NonFiniteError, match=r"step 1: .* noted first in second\.") as caught:
        optimizer.step()
    assert caught.value.tensors == ("second",)
    optimizer.drop()
    with pytest.raises(bitpager.NonFiniteError, match="in first, second, third") as caught:
        optimizer.step()
    assert caught.value.tensors == ("first", "second", "third")
