"""bitpager.optim: what users of torch.optim rely on."""

from __future__ import annotations

import copy
import functools
import gc
import warnings
import weakref

import bitpager
import numpy as np
import pytest
import torch
from bitpager import optim
from optim_steps import WRAPPED, tensors_of
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

ALL = [
    getattr(optim, paged + name + width)
    for paged in ("", "Paged")
    for name in ("Adam", "AdamW", "Lion")
    for width in ("", "8bit", "32bit")
]


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


def _with_a_gradient(kind, session):
    """An optimizer of this class, whose one parameter has a gradient."""
    p = torch.nn.Parameter(torch.ones(300))
    p.grad = torch.ones_like(p)
    return kind([p], lr=0.1, session=session)


def test_a_class_that_overrides_step_has_its_hooks_once(session):
    class Counted(optim.AdamW32bit):
        def step(self, closure=None):
            calls.append("step")
            return super().step(closure)

    calls = []
    optimizer = _with_a_gradient(Counted, session)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step()
    assert calls == ["pre", "step", "post"]


def _as_subclass(optimizer, record, monkeypatch):
    class Recorded(optim.AdamW32bit):
        def step(self, closure=None):
            record()
            return super().step(closure)

    optimizer.__class__ = Recorded


def _patched(plainly):
    """Its class gets a step() that calls the one that it had."""

    def patch(optimizer, record, monkeypatch):
        inner = type(optimizer).step

        def outer(self, *args, **kwargs):
            record()
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(type(optimizer), "step", outer if plainly else functools.wraps(inner)(outer))

    return patch


@pytest.mark.parametrize("change", [_as_subclass, _patched(True), _patched(False)])
@pytest.mark.parametrize("anew", [False, True])
def test_hooks_are_called_once_whoever_puts_something_around_step(session, monkeypatch, change, anew):
    optimizer = _with_a_gradient(optim.AdamW32bit, session)
    calls = []
    change(optimizer, lambda: calls.append("outer"), monkeypatch)
    if anew:
        optimizer = _with_a_gradient(type(optimizer), session)
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step()
    assert sorted(calls) == ["outer", "post"]


@pytest.mark.parametrize("of_all", [True, False])
def test_hooks_see_steps_from_when_they_are_there(session, of_all):
    optimizer = _with_a_gradient(optim.AdamW32bit, session)
    calls = []
    optimizer.step()
    register = (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
    if not of_all:
        register = (optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    handles = [add(lambda *_, name=name: calls.append(name)) for add, name in zip(register, ("pre", "post"))]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["pre", "post"]


def test_profilers_see_steps_by_their_class(session):
    optimizer = _with_a_gradient(optim.AdamW32bit, session)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW32bit.step" in {event.key for event in profile.key_averages()}


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


def test_small_parameters_and_overrides_keep_32_bits(session, overrides):
    big, small, special = (torch.nn.Parameter(torch.ones(n)) for n in (5000, 4095, 5000))
    overrides.override_config(special, "optim_bits", 32)
    optimizer = optim.AdamW8bit([big, small, special], session=session)
    for p in (big, small, special):
        p.grad = torch.ones_like(p)
    optimizer.step()
    dtypes = [tensors_of(optimizer, i)["state1"].dtype for i in range(3)]
    assert dtypes == [torch.uint8, torch.float32, torch.float32]
    overrides.override_config(big, key_value_dict={"lr": 0.0, "weight_decay": 0.0})
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


def test_text_betas_and_args_are_accepted():
    p = torch.nn.Parameter(torch.ones(3))
    assert optim.AdamW([p], betas="(0.8, 0.9)").param_groups[0]["betas"] == (0.8, 0.9)
    args = type("Args", (), {"optim_bits": 8, "min_8bit_size": 1})()
    assert (optim.AdamW([p], args=args)._bits, optim.AdamW([p], args=args)._min_8bit_size) == (8, 1)


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
