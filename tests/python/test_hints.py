"""Phase hints: in the right order, from any loop, and without changing a number."""

from __future__ import annotations

import dataclasses
import time

import bitpager
import pytest
import torch
from torch.utils.checkpoint import checkpoint


class Model(torch.nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = torch.nn.Linear(8, 300), torch.nn.Linear(300, 8)
        self.checkpointed = checkpointed

    def forward(self, x):
        if self.checkpointed is None:
            hidden = self.first(x).relu()
        else:
            hidden = checkpoint(lambda x: self.first(x).relu(), x, use_reentrant=self.checkpointed)
        return {"logits": self.second(hidden), "hidden": [hidden], "nothing": None}


@pytest.fixture
def told(session, monkeypatch):
    """What the session is told, in order."""
    said = []
    real = session.hint_phase
    monkeypatch.setattr(session, "hint_phase", lambda phase: said.append(phase) or real(phase))
    return said


def optimizer_of(model, session):
    return bitpager.optim.PagedAdamW8bit(model.parameters(), lr=1e-2, session=session)


def train(model, optimizer, steps=1, backwards=1):
    torch.manual_seed(4)
    for _ in range(steps):
        for _ in range(backwards):
            x = torch.randn(4, 8, requires_grad=True)
            model(x)["logits"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("checkpointed", [None, False, True])
def test_hints_come_in_order(session, told, checkpointed):
    model = Model(checkpointed)
    hooks = bitpager.hints.attach(model, optimizer_of(model, session), session=session)
    train(model, hooks._optimizers[0], 2)
    assert told == ["forward", "backward", "step", "idle"] * 2
    with torch.no_grad():
        model(torch.ones(1, 8))
    assert len(told) == 8, "evaluation is no forward of training"
    hooks.detach()
    hooks.detach()
    train(model, hooks._optimizers[0])
    assert len(told) == 8


def test_states_are_called_back_in_the_last_backward_of_several(session, told):
    model = Model()
    optimizer = optimizer_of(model, session)
    with bitpager.hints.attach(model, optimizer, session=session):
        train(model, optimizer, 3, backwards=3)
        several = ["forward", "backward", "step", "idle"]
        first = ["forward", "backward", "forward", "backward", "forward", "backward", "step", "idle"]
        assert told == first + several * 2
        del told[:]
        train(model, optimizer, 2)  # fewer again: known from the second on
        assert told == ["forward", "step", "idle"] + several
    assert told[-1] == "idle" and told.count("idle") == 2


@pytest.mark.parametrize("leave", [False, True])
def test_numbers_do_not_change(session, told, leave):
    plain = Model()
    expected = train(plain, optimizer_of(plain, session), 4, 2)
    model = Model()
    optimizer = optimizer_of(model, session)
    with bitpager.hints.attach(model, optimizer, leave=leave):
        found = train(model, optimizer, 4, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert ("leave" in told) == leave and ("forward" in told) != leave


def test_states_leave_in_forward_and_are_back_behind_backward(session):
    model = torch.nn.Sequential(torch.nn.Linear(512, 4096), torch.nn.Linear(4096, 512))
    optimizer = optimizer_of(model, session)
    x = torch.ones(1, 512)
    model(x).sum().backward()
    optimizer.step()
    resident = session.memory_stats()["resident_state_bytes"]
    assert resident > 0
    seen = {}

    def settled(wanted):
        until = time.monotonic() + 20
        while session.memory_stats()["resident_state_bytes"] != wanted:
            if time.monotonic() > until:
                return False
        return True

    with bitpager.hints.attach(model, optimizer, leave=True):
        y = model(x)
        seen["forward"] = settled(0)
        y.sum().backward()
        seen["backward"] = settled(resident)
        optimizer.step()
    assert seen == {"forward": True, "backward": True}


@dataclasses.dataclass
class Output:
    loss: torch.Tensor


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y,), lambda y: torch.max(y, 0), lambda y: Output(y)])
def test_outputs_of_every_kind_say_when_backward_begins(session, told, wrap):
    class Wrapped(Model):
        def forward(self, x):
            return wrap(super().forward(x)["logits"])

    model = Wrapped()
    hooks = bitpager.hints.attach(model, session=session)
    y = model(torch.ones(2, 8))
    y = y if isinstance(y, torch.Tensor) else y.loss if isinstance(y, Output) else y[0]
    y.sum().backward()
    assert told == ["forward", "backward"]
    hooks.detach()


def test_hooks_do_not_gather_on_parameters(session):
    class Returns(Model):
        def forward(self, x):
            return self.first(x), self.first.weight

    model = Returns()
    with bitpager.hints.attach(model, session=session):
        for _ in range(3):
            model(torch.ones(2, 8))
    assert not model.first.weight._backward_hooks


def test_a_closed_session_is_left_alone(make_daemon):
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "256MiB")
    with bitpager.connect(socket=daemon.socket, job="hints", linger=0, default=False) as session:
        model = Model()
        hooks = bitpager.hints.attach(model, optimizer_of(model, session), session=session)
        daemon.kill()
        model(torch.ones(2, 8))["logits"].sum().backward()
        assert hooks.phase == "backward"
    model(torch.ones(2, 8))


def test_arguments_are_checked(session):
    model = Model()
    with pytest.raises(TypeError, match="not one of bitpager's optimizers"):
        bitpager.hints.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="needs an optimizer"):
        bitpager.hints.attach(model)
    with pytest.raises(TypeError, match="takes a module"):
        bitpager.hints.attach(optimizer_of(model, session))
