"""States that leave a GPU and come back: to the CPU and from it, through files, and to and from bitsandbytes."""

from __future__ import annotations

import io
import json
import os
import pathlib
import sys

import bitpager
import gpu_daemon
import gpu_training
import pytest
import torch
from gpu_training import SMALL, make_optimizer, parameters, set_gradients, train

WRAPPED = "__bnb_optimizer_quant_state__"


def assert_states_equal(one, two):
    assert set(one["state"]) == set(two["state"])
    for index, entry in one["state"].items():
        assert entry["step"] == two["state"][index]["step"]
        for key, tensor in entry[WRAPPED].items():
            assert torch.equal(tensor, two["state"][index][WRAPPED][key]), (index, key)


@pytest.fixture
def cpu_session(tmp_path):
    """A session at a daemon whose device is the CPU."""
    from private_daemon import Daemon

    program = pathlib.Path(gpu_daemon.program("bitpagerd"))
    path = tmp_path / "c.sock"
    flags = ["--device", "cpu", "--device-budget", "256MiB", "--host-budget", "256MiB"]
    with Daemon(program, path, flags, tmp_path / "log"):
        with bitpager.connect(socket=str(path), job="cpu", linger=0, spawn=False, default=False) as session:
            yield session


@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_states_go_to_the_cpu_and_come_back(session, cpu_session, rule):
    params = parameters(torch.float32, SMALL)
    optimizer = make_optimizer(rule, params, session)
    train(optimizer, params, 1, 5)
    saved = optimizer.state_dict()
    session.synchronize()
    here = [torch.nn.Parameter(p.detach().cpu().clone()) for p in params]
    there = make_optimizer(rule, here, cpu_session)
    there.load_state_dict(saved)
    assert_states_equal(saved, there.state_dict())
    for step in range(6, 9):
        set_gradients(params, step)
        for p, q in zip(params, here):
            q.grad = p.grad.cpu()
        optimizer.step()
        there.step()
    session.synchronize()
    for p, q in zip(params, here):
        # Codes at near ties may differ by one, and then the next update a little.
        difference = (p.detach().cpu() - q.detach()).abs()
        assert difference.max() < 1e-3 and (difference > 2e-6).sum() <= p.numel() // 200 + 1
    back = make_optimizer(rule, params, session)
    back.load_state_dict(there.state_dict())
    assert_states_equal(there.state_dict(), back.state_dict())


def test_a_checkpoint_file_goes_on_bit_for_bit(session):
    params = parameters(torch.bfloat16, SMALL)
    optimizer = make_optimizer("AdamW", params, session)
    train(optimizer, params, 1, 4)
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    train(optimizer, params, 5, 8)
    session.synchronize()
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = parameters(torch.bfloat16, SMALL)
    with torch.no_grad():
        for p, value in zip(again, loaded["params"]):
            p.copy_(value)
    other = make_optimizer("AdamW", again, session)
    other.load_state_dict(loaded["optimizer"])
    train(other, again, 5, 8)
    session.synchronize()
    for p, q in zip(params, again):
        assert torch.equal(p, q)


def test_states_moved_to_the_gpu_by_their_reader_are_taken(session):
    """torch.load(map_location="cuda") and many trainers hand states over on the GPU."""
    params = parameters(torch.bfloat16, SMALL)
    optimizer = make_optimizer("Lion", params, session)
    train(optimizer, params, 1, 3)
    saved = optimizer.state_dict()
    moved = {
        "param_groups": saved["param_groups"],
        "state": {
            i: {"step": e["step"], WRAPPED: {k: t.to(gpu_training.DEVICE) for k, t in e[WRAPPED].items()}}
            for i, e in saved["state"].items()
        },
    }
    other = make_optimizer("Lion", params, session)
    other.load_state_dict(moved)
    assert_states_equal(saved, other.state_dict())


@pytest.mark.parametrize("kind", ["adamw8bit", "adam32bit", "lion8bit"])
def test_a_recorded_bitsandbytes_checkpoint_goes_on(gpu_golden, session, kind):
    every, metadata = gpu_golden("bnb-checkpoints")
    tensors = {key[len(kind) + 1 :]: value for key, value in every.items() if key.startswith(kind + ".")}
    about = json.loads(metadata[kind])
    ps = [torch.nn.Parameter(tensors[f"before.{i}"].to(gpu_training.DEVICE)) for i in range(2)]
    names = {"adamw8bit": "AdamW8bit", "adam32bit": "Adam32bit", "lion8bit": "Lion8bit"}
    optimizer = getattr(bitpager.optim, names[kind])(ps, session=session)
    states = {
        i: {
            "step": about["steps"][str(i)],
            WRAPPED: {k.split(".")[-1]: v for k, v in tensors.items() if k.startswith(f"state.{i}.")},
        }
        for i in range(2)
    }
    optimizer.load_state_dict({"state": states, "param_groups": about["param_groups"]})
    for i in range(2):
        ps[i].grad = tensors[f"grad.{i}"].to(gpu_training.DEVICE)
    optimizer.step()
    session.synchronize()
    for i in range(2):
        assert torch.allclose(ps[i].detach().cpu(), tensors[f"after.{i}"], atol=2e-6), i


@pytest.fixture
def bitsandbytes():
    """The peer itself, from BITPAGER_PEERS or installed."""
    folder = os.environ.get("BITPAGER_PEERS")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_bitsandbytes_on_the_gpu_and_we_exchange_states(bitsandbytes, session, name):
    shapes = [(5000,), (300, 70)]
    ours = parameters(torch.float32, shapes)
    one = getattr(bitpager.optim, name)(ours, lr=1e-3, weight_decay=0.1, session=session)
    train(one, ours, 1, 3)
    session.synchronize()
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    two = getattr(bitsandbytes.optim, name)(theirs, lr=1e-3, weight_decay=0.1)
    two.load_state_dict(one.state_dict())
    train(one, ours, 4, 5)
    train(two, theirs, 4, 5)
    session.synchronize()
    for p, q in zip(ours, theirs):
        difference = (p - q).detach().abs()
        assert difference.max() < 1e-3 and (difference > 2e-6).sum() <= p.numel() // 100
    back = getattr(bitpager.optim, name)(ours, lr=1e-3, weight_decay=0.1, session=session)
    back.load_state_dict(two.state_dict())
    saved, given = back.state_dict()["state"], two.state_dict()["state"]
    for i in range(len(shapes)):
        flat = {**given[i], **given[i].get(WRAPPED, {})}
        assert torch.equal(saved[i][WRAPPED]["state1"].cpu().flatten(), flat["state1"].cpu().flatten())
