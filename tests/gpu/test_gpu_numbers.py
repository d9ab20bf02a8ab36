"""The numbers of steps on a GPU: the same at every budget, those of a float64 reference, the recorded ones."""

from __future__ import annotations

import json

import bitpager
import float64_rules
import gpu_daemon
import gpu_training
import pytest
import torch

PAGE = 512 << 10
WINDOW = 8
STEPS = 20
WRAPPED = "__bnb_optimizer_quant_state__"
SHAPE = ("--window-pages", str(WINDOW), "--host-budget", "1GiB")
PAGES = {"AdamW": 180, "Lion": 91}
BUDGETS = {"half": 0.5, "tenth": 0.1, "one window": 0.0}


def run(make_daemon, rule, dtype, frames, *flags, steps=STEPS, evict_every=0):
    """(digest of the parameters, digest of the states, pages moved in) of a run at a budget of `frames` pages."""
    daemon = make_daemon("--device-budget", str(frames * PAGE), *SHAPE, *flags)
    with gpu_daemon.connect(daemon, "numbers") as session:
        params = gpu_training.parameters(dtype)
        optimizer = gpu_training.make_optimizer(rule, params, session)
        for step in range(1, steps + 1):
            gpu_training.train(optimizer, params, step, step)
            if evict_every and step % evict_every == 0:
                daemon.evict("numbers")
        session.synchronize()
        loaded = session.memory_stats()["loaded_bytes"] // PAGE
        return gpu_training.digest(params), gpu_training.digest_of_states(optimizer), loaded


_resident = {}


@pytest.fixture
def resident(make_daemon):
    """resident(rule, dtype): what a run gives with everything resident; each is made once."""

    def get(rule, dtype):
        if (rule, dtype) not in _resident:
            params, states, loaded = run(make_daemon, rule, dtype, 2 * PAGES[rule])
            assert loaded == 0, "the base was to have all its states resident"
            _resident[rule, dtype] = params, states
        return _resident[rule, dtype]

    return get


def frames_of(rule, share):
    return max(WINDOW, round(PAGES[rule] * share))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_numbers_are_the_same_at_every_budget(make_daemon, resident, rule, dtype, budget):
    kind = gpu_training.DTYPES[dtype]
    expected = resident(rule, kind)
    params, states, loaded = run(make_daemon, rule, kind, frames_of(rule, BUDGETS[budget]))
    assert loaded > STEPS, "nothing was paged"
    assert (params, states) == expected


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_managed_frames_give_the_same_numbers(make_daemon, resident, rule, budget):
    if why := gpu_daemon.no_managed_memory():
        pytest.skip(why)
    expected = resident(rule, torch.bfloat16)
    frames = frames_of(rule, BUDGETS[budget])
    params, states, _ = run(make_daemon, rule, torch.bfloat16, frames, "--frames", "managed")
    assert (params, states) == expected


@pytest.mark.parametrize("size", ["64KiB", "2MiB"])
def test_pages_of_other_sizes_give_the_same_numbers(make_daemon, resident, size):
    expected = resident("AdamW", torch.bfloat16)
    params, states, _ = run(make_daemon, "AdamW", torch.bfloat16, 4 * WINDOW, "--page-size", size)
    assert (params, states) == expected


def test_eviction_between_and_behind_steps_changes_nothing(make_daemon, resident):
    expected = resident("AdamW", torch.bfloat16)
    params, states, loaded = run(make_daemon, "AdamW", torch.bfloat16, 2 * PAGES["AdamW"], evict_every=3)
    assert loaded > 0
    assert (params, states) == expected


def test_a_second_run_repeats_the_first(make_daemon, resident):
    expected = resident("Lion", torch.float16)
    params, states, _ = run(make_daemon, "Lion", torch.float16, 2 * PAGES["Lion"])
    assert (params, states) == expected


# ---- against float64 ----

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_agrees_with_float64(session, rule, dtype):
    """Each step from the states as they are, so that roundings do not add up."""
    kind, count = gpu_training.DTYPES[dtype], 1_000_003
    (p,) = gpu_training.parameters(kind, [(count,)])
    betas = (0.9, 0.99)
    optimizer = gpu_training.make_optimizer(rule, [p], session, lr=1e-2, betas=betas)
    zeros = torch.zeros(count, dtype=torch.float64, device=p.device)
    states = [zeros, zeros]
    for step in range(1, 6):
        gpu_training.set_gradients([p], step)
        before, gradient = p.detach().double().clone(), p.grad.double()
        optimizer.step()
        if rule == "AdamW":
            expected, *states = float64_rules.adam(before, gradient, *states, step, 1e-2, betas, 1e-8, 0.1)
        else:
            expected, states[0] = float64_rules.lion(before, gradient, states[0], 1e-2, betas, 0.1)
        session.synchronize()
        error = (p.detach().double() - expected).abs() / expected.abs().clamp_min(1.0)
        assert error.max() < TOLERANCE[kind]
        ours = optimizer.state_dict()["state"][0][WRAPPED]
        for k in range(2 if rule == "AdamW" else 1):
            codes, absmax = (ours[f"{name}{k + 1}"].to(p.device) for name in ("state", "absmax"))
            exact, exact_absmax = float64_rules.encode(states[k], signed=k == 0)
            assert torch.allclose(absmax.double(), exact_absmax, rtol=1e-5)
            distance = (codes.int() - exact.int()).abs()
            # Values within a float32 rounding of a code's boundary may go either way; short mantissas make ties common.
            assert distance.max() <= 1 and (distance > 0).sum() <= count // 500
            states[k] = float64_rules.decode(codes, absmax, signed=k == 0)


# ---- against what bitsandbytes gave ----

CASES = [f"{name}.{bits}" for name in ("adam", "adamw", "lion") for bits in (8, 32)]
NAMES = {"adam": "Adam", "adamw": "AdamW", "lion": "Lion"}


def roundings(ours, theirs, scale):
    """Largest distance in roundings of the dtype at `scale` (elementwise)."""
    largest = torch.maximum(scale.float().abs(), theirs.float().abs())
    spacing = torch.finfo(ours.dtype).eps * torch.exp2(torch.floor(torch.log2(largest.clamp_min(1e-30))))
    return ((ours.float() - theirs.float()).abs() / spacing).max().item()


def assert_states_match(ours, tensors, prefix, bits):
    for k in ("state1", "state2"):
        if f"{prefix}.{k}" not in tensors:
            assert k not in ours
        elif bits == "8":
            assert torch.allclose(ours["absmax" + k[-1]], tensors[f"{prefix}.absmax{k[-1]}"], rtol=2e-6)
            difference = (ours[k].int() - tensors[f"{prefix}.{k}"].int()).abs()
            assert difference.max() <= 1 and (difference > 0).sum() <= 5
        else:
            theirs = tensors[f"{prefix}.{k}"]
            assert torch.allclose(ours[k], theirs, rtol=2e-6, atol=1e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [700, 1024])
def test_matches_golden(gpu_golden, session, case, dtype, count):
    tensors, metadata = gpu_golden("optim-golden")
    name, bits = case.split(".")
    key = f"{case}.{dtype}.n{count}"
    settings = json.loads(metadata[key])
    if name == "lion":
        settings.pop("eps", None)
    start = tensors[f"{key}.p0"]
    p = torch.nn.Parameter(start.to(gpu_training.DEVICE))
    cls = getattr(bitpager.optim, f"{NAMES[name]}{bits}bit")
    optimizer = cls([p], min_8bit_size=0, session=session, **settings)
    for step in range(1, 5):
        p.grad = tensors[f"{key}.grads"][step - 1].to(p.device)
        optimizer.step()
        prefix = f"{key}.step{step}"
        if f"{prefix}.p" not in tensors:
            continue
        ours, theirs = p.detach().cpu(), tensors[f"{prefix}.p"]
        if step == 1:  # one rounding of the update, at its own size, and one of the sum
            assert roundings(ours, theirs, start.float().abs().clamp_min(settings["lr"])) <= 2
        else:
            assert torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=2e-5)
        assert_states_match(optimizer.state_dict()["state"][0][WRAPPED], tensors, prefix, bits)


def test_non_finite_blocks_are_left_and_told_later(session):
    (p,) = gpu_training.parameters(torch.float32, [(10_000,)])
    optimizer = gpu_training.make_optimizer("AdamW", [p], session)
    before = p.detach().clone()
    gpu_training.set_gradients([p], 1)
    p.grad[300] = float("nan")
    optimizer.step()
    with pytest.raises(bitpager.NonFiniteError):
        session.synchronize()
    assert torch.equal(p[256:512], before[256:512])
    assert not torch.equal(p[:256], before[:256]) and bool(torch.isfinite(p).all())
    gpu_training.set_gradients([p], 2)
    optimizer.step()
    session.synchronize()
    assert not torch.equal(p[256:512], before[256:512])
