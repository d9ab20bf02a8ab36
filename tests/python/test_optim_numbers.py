"""bitpager.optim against recorded results of bitsandbytes and a float64 oracle; residency changes no number."""

from __future__ import annotations

import json

import bitpager
import numpy as np
import oracle
import pytest
import torch
from bitpager import optim
from optim_steps import random_steps, tensors_of

CLASSES = {
    ("adam", 8): optim.Adam8bit,
    ("adam", 32): optim.Adam32bit,
    ("adamw", 8): optim.AdamW8bit,
    ("adamw", 32): optim.AdamW32bit,
    ("lion", 8): optim.Lion8bit,
    ("lion", 32): optim.Lion32bit,
}


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


def test_residency_does_not_change_results(make_daemon):
    """The same training under a roomy and a tight budget is bit-identical, with pages moving in the tight one."""
    results = []
    for budget in ("64MiB", "2MiB"):
        budgets = ("--device-budget", budget, "--host-budget", "128MiB")
        daemon = make_daemon(*budgets, "--page-size", "64KiB", "--window-pages", "8")
        with bitpager.connect(socket=daemon.socket, job="residency", linger=0, default=False) as session:
            torch.manual_seed(1)
            ps = [torch.nn.Parameter(torch.randn(1_500_000)), torch.nn.Parameter(torch.randn(700_001))]
            random_steps(optim.PagedAdamW8bit(ps, lr=1e-2, session=session), ps, 3, 4)
            results.append([p.detach().clone() for p in ps])
            moved = session.memory_stats()["loaded_bytes"]
    assert moved > 0
    assert all(torch.equal(a, b) for a, b in zip(*results))
