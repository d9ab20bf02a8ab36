"""States of bitpager.optim: saved, loaded, copied, and exchanged with bitsandbytes and torch."""

from __future__ import annotations

import copy
import json
import pickle

import bitpager
import pytest
import torch
from bitpager import optim
from conftest import GOLDEN
from optim_steps import WRAPPED, random_steps, tensors_of


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
    from safetensors import safe_open

    with safe_open(str(GOLDEN / "bnb-checkpoints.safetensors"), "pt") as file:
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
