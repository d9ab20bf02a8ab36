"""What bitpager.optim refuses, in words: settings, parameters that cannot be stepped, gradients that are not finite."""

from __future__ import annotations

import warnings

import bitpager
import pytest
import torch
from bitpager import optim


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


def test_four_bit_weights_without_adapters_are_warned_of(session):
    """All of a quantized model's parameters, and nothing that is there to be trained over them."""
    model = torch.nn.Sequential(torch.nn.Embedding(10, 64), torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    bitpager.nn.quantize_(model, session=session)
    for kind in (optim.PagedAdamW8bit, optim.Lion8bit, optim.Adam):
        with pytest.warns(UserWarning, match="1 of .* 4-bit weights, which do not train; .* are 832 numbers") as caught:
            kind(model.named_parameters(), session=session)
        assert len(caught) == 1 and caught[0].filename == __file__ and "get_peft_model" in str(caught[0].message)
    adapter = torch.nn.Linear(64, 8, bias=False)
    for p in model.parameters():
        p.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.PagedAdamW8bit([*model.parameters(), *adapter.parameters()], session=session)
        optim.PagedAdamW8bit(torch.nn.Linear(4, 4).parameters(), session=session)


def test_unnamed_parameters_are_named_by_place(session):
    p = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = optim.Adam([p], session=session)
    p.grad = torch.full((2, 3), float("inf"))
    with pytest.raises(bitpager.NonFiniteError, match=r"param_group 0, parameter 0 of shape \(2, 3\)"):
        optimizer.step()


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


@pytest.mark.parametrize("name", ("AdEMAMix8bit", "PagedAdEMAMix", "LAMB32bit", "SGD8bit", "RMSprop"))
def test_names_that_are_not_there_yet_say_so(name):
    with pytest.raises(AttributeError, match=f"no {name} yet. It has: Adam, "):
        getattr(optim, name)
    assert not hasattr(optim, "Adam16bit")
