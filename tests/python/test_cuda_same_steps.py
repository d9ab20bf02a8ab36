"""Steps that are like the one before, and what makes them others: with gradients that compiled code reads, and that
passes in Python read."""

from __future__ import annotations

import types
import weakref

import pytest
import torch
from bitpager import _lib, arena
from bitpager.optim import AdamW8bit
from fake_gpu import READERS, GpuParameter, give_gradients, make_parameters, open_session, read_with, segment, stand_in


@pytest.fixture(params=READERS)
def reader(request, monkeypatch):
    read_with(request.param, monkeypatch)
    return request.param


@pytest.fixture
def library(monkeypatch, reader):
    return stand_in(monkeypatch)


@pytest.fixture
def session(library):
    made = open_session()
    yield made
    made.close()


@pytest.fixture
def steady(library, session, reader, monkeypatch):
    """(parameters, optimizer, packings): the first three parameters have had gradients for some steps, the fourth has
    none, and each further packing is counted."""
    parameters = make_parameters(4)
    optimizer = AdamW8bit([{"params": parameters[:2]}, {"params": parameters[2:]}], session=session)
    packings = []
    pack = optimizer._streams.pack
    monkeypatch.setattr(optimizer._streams, "pack", lambda *a, **how: packings.append(1) or pack(*a, **how))
    for _ in range(4):
        give_gradients(parameters[:3])
        optimizer.step()
    assert len(packings) == 1
    for step, _ in optimizer._streams._packed:
        assert (step._gather is not None) == (reader == "compiled")
    packings.clear()
    return parameters, optimizer, packings


def test_steps_of_fresh_gradients_are_the_same_for_long(steady, library):
    parameters, optimizer, packings = steady
    kept = []  # no address comes twice
    for number in range(5, 9):
        optimizer.zero_grad(set_to_none=True)
        give_gradients(parameters[:3])
        kept += [p.grad for p in parameters[:3]]
        optimizer.step()
        rows = library.steps[-1]["rows"]
        assert [row["grad"] for row in rows] == [p.grad.data_ptr() for p in parameters[:3]]
        assert [row["step"] for row in rows] == [number] * 3
    assert not packings


def test_a_gradient_where_there_was_none_is_stepped(steady, library):
    parameters, optimizer, packings = steady
    give_gradients(parameters)
    optimizer.step()
    assert [row["tensor"] for row in library.steps[-1]["rows"]] == [0, 1, 2, 3]
    assert [row["step"] for row in library.steps[-1]["rows"]] == [5, 5, 5, 1]
    for _ in range(3):
        give_gradients(parameters)
        optimizer.step()
    assert len(packings) == 1
    assert [optimizer.state[p]["step"] for p in parameters] == [8, 8, 8, 4]
    assert [row["step"] for row in library.steps[-1]["rows"]] == [8, 8, 8, 4]


def test_a_parameter_taken_out_of_its_group_is_not_stepped(steady, library):
    parameters, optimizer, _ = steady
    give_gradients(parameters[:3])
    del optimizer.param_groups[0]["params"][1]
    optimizer.step()
    assert [row["tensor"] for row in library.steps[-1]["rows"]] == [0, 2]


def test_a_parameter_put_in_place_of_another_is_stepped(steady, library):
    parameters, optimizer, _ = steady
    other = make_parameters(1)[0]
    optimizer.param_groups[0]["params"][1] = other
    give_gradients([*parameters[:3], other])
    optimizer.step()
    sent = [row["param"] for step in library.steps[-2:] for row in step["rows"]]
    assert other.data_ptr() in sent and parameters[1].data_ptr() not in sent


def test_swapped_parameters_are_stepped_where_they_are(steady, library):
    parameters, optimizer, _ = steady
    for number in range(5, 8):
        optimizer.zero_grad(set_to_none=True)
        torch.utils.swap_tensors(parameters[1], GpuParameter(torch.zeros(5001, dtype=torch.bfloat16)))
        give_gradients(parameters[:3])
        optimizer.step()
        rows = library.steps[-1]["rows"]
        assert [row["param"] for row in rows] == [p.data_ptr() for p in parameters[:3]]
        assert [row["grad"] for row in rows] == [p.grad.data_ptr() for p in parameters[:3]]
        assert rows[1]["step"] == number


def test_gradients_are_freed_after_their_step(steady):
    parameters, optimizer, _ = steady
    give_gradients(parameters[:3])
    seen = [weakref.ref(p.grad) for p in parameters[:3]]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert [ref() for ref in seen] == [None] * 3


def test_gradients_live_until_their_step_is_on_its_way(steady, library):
    parameters, optimizer, _ = steady
    give_gradients(parameters[:3])
    seen = [weakref.ref(p.grad) for p in parameters[:3]]
    alive = []

    def on_step():  # as another thread may: the library is called without the GIL
        for p in parameters:
            p.grad = None
        alive.extend(ref() is not None for ref in seen)

    library.on_step = on_step
    optimizer.step()
    assert alive == [True] * 3
    assert [ref() for ref in seen] == [None] * 3


def test_gradients_in_memory_of_other_streams_are_recorded(steady, library, monkeypatch):
    parameters, optimizer, packings = steady
    recorded = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: "current")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: recorded.append((self.data_ptr(), stream)))
    give_gradients(parameters[:3])
    of_others = [parameters[0].grad, parameters[2].grad, parameters[1]]
    segments = [segment(t.data_ptr(), 5, None, t.nbytes) for t in of_others]
    monkeypatch.setattr(optimizer._streams._segments[None], "_snapshot", lambda: segments)
    library.imports += 1
    optimizer.step()
    assert sorted(recorded) == sorted((t.data_ptr(), "current") for t in of_others)
    assert not packings


def test_a_gradient_gone_before_it_is_recorded_is_waited_for(steady, library, monkeypatch):
    """Compiled: its tensor is not to be had any more. In passes: it is at hand."""
    parameters, optimizer, _ = steady
    calls = []
    stream = types.SimpleNamespace(synchronize=lambda: calls.append("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: calls.append("recorded"))
    give_gradients(parameters[:3])
    segments = [segment(parameters[1].grad.data_ptr(), 5, None, 64)]
    monkeypatch.setattr(optimizer._streams._segments[None], "_snapshot", lambda: segments)
    library.imports += 1
    library.on_step = lambda: setattr(parameters[1], "grad", None)
    optimizer.step()
    is_compiled = optimizer._streams._packed[0][0]._gather is not None
    assert calls == (["waited"] if is_compiled else ["recorded"])


class _Interrupted(dict):
    """A parameter's state whose count is interrupted when it is set next, if `armed`."""

    armed = False

    def __setitem__(self, key, value):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt
        super().__setitem__(key, value)


@pytest.mark.parametrize("which", (0, 1))
def test_an_interrupt_while_counting_leaves_all_at_the_same_step(library, session, reader, which):
    parameters = make_parameters(3)
    optimizer = AdamW8bit(parameters, session=session)
    for p in parameters:
        optimizer.state[p] = _Interrupted()
    for _ in range(4):
        give_gradients(parameters)
        optimizer.step()
    optimizer.state[parameters[which]].armed = True
    give_gradients(parameters)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert len(library.steps) == 5 and optimizer.parts_sent == 5
    assert [optimizer.state[p]["step"] for p in parameters] == [5, 5, 5]
    give_gradients(parameters)
    optimizer.step()
    assert [row["step"] for row in library.steps[-1]["rows"]] == [6, 6, 6]


@pytest.mark.parametrize("where", ("fill", "settle"))
def test_an_interrupt_before_the_library_has_the_step_sends_it_all_the_same(steady, library, monkeypatch, where):
    parameters, optimizer, _ = steady
    owner, name = (arena.StreamCall, "fill") if where == "fill" else (_lib, "settle")
    call, left = getattr(owner, name), [1]

    def once(*given):
        if left:
            left.pop()
            raise KeyboardInterrupt
        return call(*given)

    monkeypatch.setattr(owner, name, once)
    give_gradients(parameters[:3])
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert len(library.steps) == 5, "the interrupt waits until the step is on its way"
    assert [optimizer.state[p]["step"] for p in parameters[:3]] == [5, 5, 5]
    assert optimizer.parts_sent == 5


def test_settings_that_are_none_count_no_step(steady, library):
    parameters, optimizer, _ = steady
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], None
    give_gradients(parameters[:3])
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    assert [step["step"] for step in library.steps[-2:]] == [4, 5]
