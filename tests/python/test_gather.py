"""What makes gradients and parameters other than those that a step was packed for, seen by the compiled gather and by
passes in Python; and what becomes of steps where there is no compiled one."""

from __future__ import annotations

import ctypes
import gc
import logging
import pathlib
import random
import threading
import time
import types
import weakref
from array import array

import pytest
import torch
from bitpager import _lib, compiled
from bitpager.optim import gather, packed, streams


@pytest.fixture(scope="module")
def library():
    made = gather.wait()
    assert made is not None, gather.report()
    return made


@pytest.fixture(params=["compiled", "passes"])
def reader(request, monkeypatch, library):
    monkeypatch.setattr(gather, "library", lambda: library if request.param == "compiled" else None)
    return request.param


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As if no step had been made in this process, nor by this user."""
    monkeypatch.setattr(gather, "_thread", None)
    monkeypatch.setattr(gather, "_library", None)
    monkeypatch.setattr(gather, "_said", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(gather.SWITCH, raising=False)


def make_parameters():
    shapes = ((4, 4), (3,), (2, 5, 3))
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False) for shape in shapes]


def give_gradients(parameters):
    for p in parameters:
        p.grad = torch.ones_like(p)


def pack(parameters):
    rows = [(i, 0, 1, 2, 2, 0, 0, p.data_ptr(), 0, 0, p.grad.data_ptr()) for i, p in enumerate(parameters)]
    states = [{"step": 0} for _ in parameters]
    return packed.PackedStep(None, rows, parameters, [p.grad for p in parameters], states, 1)


@pytest.fixture
def steady(monkeypatch, reader):
    """(parameters, step): packed, and looked at since."""
    monkeypatch.setattr(_lib, "_library", types.SimpleNamespace(bp_step_async=None))
    parameters = make_parameters()
    give_gradients(parameters)
    step = pack(parameters)
    for _ in range(2):
        give_gradients(parameters)
        assert step.look()
        step.release()
    assert (step._gather is not None) == (reader == "compiled")
    return parameters, step


def new_memory_of(tensor, **how):
    return torch.zeros(tensor.shape, **{"dtype": tensor.dtype, **how})


def _set_data(tensor, data):
    tensor.data = data


OTHERS = {
    "no gradient": lambda p: setattr(p, "grad", None),
    "dtype": lambda p: _set_data(p.grad, new_memory_of(p, dtype=torch.float16)),
    "wider dtype": lambda p: _set_data(p.grad, new_memory_of(p, dtype=torch.float32)),
    "order": lambda p: setattr(p, "grad", new_memory_of(p).t()),
    "shape": lambda p: _set_data(p.grad, torch.zeros(4, 5, dtype=p.dtype)),
    "rows": lambda p: _set_data(p.grad, torch.zeros(5, 4, dtype=p.dtype)),
    "count of dimensions": lambda p: _set_data(p.grad, torch.zeros(16, dtype=p.dtype)),
    "every other element": lambda p: setattr(p, "grad", torch.zeros(4, 8, dtype=p.dtype)[:, ::2]),
    "sparse": lambda p: setattr(p, "grad", new_memory_of(p).to_sparse()),
    "negated": lambda p: setattr(p, "grad", torch._neg_view(new_memory_of(p))),
    "moved parameter": lambda p: _set_data(p, p.data.clone()),
    "parameter of another dtype": lambda p: _set_data(p, p.data.view(torch.float16)),
    "parameter in another order": lambda p: _set_data(p, p.data.t()),
    "parameter of another shape": lambda p: _set_data(p, p.data.view(2, 8)),
    "parameter without memory": lambda p: p.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("what", OTHERS)
def test_differences_are_seen(steady, what):
    parameters, step = steady
    give_gradients(parameters)
    OTHERS[what](parameters[0])
    assert not step.look()


def test_another_tensor_in_the_parameters_place_is_seen(steady):
    """The new one stays, or is gone with all that is in it."""
    parameters, step = steady
    for keep in (True, False):
        give_gradients(parameters)
        other = torch.nn.Parameter(new_memory_of(parameters[0]), requires_grad=False)
        give_gradients([other])
        torch.utils.swap_tensors(parameters[0], other)
        if not keep:
            del other
            gc.collect()
        assert not step.look()


def test_only_addresses_may_differ(steady):
    parameters, step = steady
    kept = []
    for _ in range(3):
        give_gradients(parameters)
        kept += [p.grad for p in parameters]
        assert step.look()
        assert list(step.addresses) == [p.grad.data_ptr() for p in parameters]
        assert [step.gradients[i].data_ptr() for i in range(3)] == list(step.addresses)
        step.release()
    assert len({g.data_ptr() for g in kept}) == 9


def test_parameters_go_with_their_step(monkeypatch, reader):
    monkeypatch.setattr(_lib, "_library", types.SimpleNamespace(bp_step_async=None))
    parameters = make_parameters()
    give_gradients(parameters)
    step = pack(parameters)
    assert step.look()
    seen = [weakref.ref(p) for p in parameters]
    parameters.clear()
    del step
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_rest_is_seen_to_stay_without_gradients(reader):
    parameters = make_parameters()
    rest = packed._Rest(parameters)
    assert rest.look() and rest.look()
    assert (rest._gather is not None) == (reader == "compiled")
    give_gradients(parameters[2:])
    assert not rest.look()
    parameters[2].grad = None
    assert rest.look()


def test_what_lies_in_ranges_is_found(reader):
    chance = random.Random(5)
    edges = sorted(chance.sample(range(1 << 20), 40))
    begins, ends = array("Q", edges[::2]), array("Q", edges[1::2])
    addresses = [chance.randrange(1 << 20) for _ in range(500)] + edges
    wanted = [i for i, at in enumerate(addresses) if any(b <= at < e for b, e in zip(begins, ends))]
    assert streams.within((ctypes.c_uint64 * len(addresses))(*addresses), begins, ends) == wanted
    assert 50 < len(wanted) < len(addresses)


# ---- the compiled one alone ----


@pytest.fixture
def watched(library):
    """(parameters with gradients, their Gather)."""
    parameters = make_parameters()
    give_gradients(parameters)
    return parameters, library.make(parameters, [p.grad for p in parameters])


def test_gradients_are_held_from_take_to_release(watched):
    parameters, made = watched
    seen = [weakref.ref(p.grad) for p in parameters]
    assert made.take((ctypes.c_uint64 * 3)())
    for p in parameters:
        p.grad = None
    gc.collect()
    assert all(ref() is not None for ref in seen)
    made.release()
    assert [ref() for ref in seen] == [None] * 3


def test_no_gradient_is_held_when_one_is_another(watched):
    parameters, made = watched
    parameters[2].grad = None  # seen after the others were
    seen = weakref.ref(parameters[0].grad)
    assert not made.take((ctypes.c_uint64 * 3)())
    parameters[0].grad = None
    assert seen() is None


def test_gradients_go_with_the_gather(library):
    parameters = make_parameters()
    give_gradients(parameters)
    made = library.make(parameters, [p.grad for p in parameters])
    seen = [weakref.ref(p.grad) for p in parameters]
    assert made.take((ctypes.c_uint64 * 3)())
    for p in parameters:
        p.grad = None
    del made
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_parameters_can_be_swapped_while_they_are_watched(watched):
    """PyTorch refuses that for tensors which others refer to."""
    parameters, made = watched
    assert made.take((ctypes.c_uint64 * 3)())
    made.release()
    torch.utils.swap_tensors(parameters[0], torch.nn.Parameter(new_memory_of(parameters[0]), requires_grad=False))
    assert not made.take((ctypes.c_uint64 * 3)())


class _OwnGrad(torch.nn.Parameter):
    grad = property(lambda self: None)


class _OwnFunction(torch.nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs)


class _OwnAttributes(torch.nn.Parameter):
    def __getattribute__(self, name):
        return None if name == "grad" else super().__getattribute__(name)


@pytest.mark.parametrize("kind", (_OwnGrad, _OwnFunction, _OwnAttributes))
def test_parameters_whose_gradient_is_not_pytorchs_are_left_to_python(library, kind):
    parameter = kind(torch.zeros(3), requires_grad=False)
    assert library.make([parameter], [torch.zeros(3)]) is None
    assert library.make([], [], [parameter]) is None


@pytest.mark.parametrize(
    "gradient",
    (torch.zeros(2, 2).to_sparse(), torch._neg_view(torch.zeros(2, 2)), torch.zeros(2, 2, device="meta")),
    ids=("sparse", "negated", "meta"),
)
def test_gradients_that_are_no_plain_memory_are_left_to_python(library, gradient):
    assert library.make([torch.nn.Parameter(torch.zeros(2, 2))], [gradient]) is None


def test_another_thread_may_replace_gradients_meanwhile(library):
    parameters = make_parameters()
    give_gradients(parameters)
    made = library.make(parameters, [p.grad for p in parameters])
    sets = [[torch.ones_like(p) for p in parameters] for _ in range(2)]
    known = [{gradients[i].data_ptr() for gradients in sets} for i in range(3)]
    done = threading.Event()

    def replace():
        while not done.is_set():
            for gradients in (*sets, [None] * 3):
                for p, gradient in zip(parameters, gradients):
                    p.grad = gradient

    for p, gradient in zip(parameters, sets[0]):
        p.grad = gradient
    other = threading.Thread(target=replace)
    other.start()
    addresses = (ctypes.c_uint64 * 3)()
    outcomes = {True: 0, False: 0}
    limit = time.monotonic() + 20
    try:
        while min(outcomes.values()) < 50 and time.monotonic() < limit:
            same = made.take(addresses)
            outcomes[same] += 1
            if same:
                assert all(address in of for address, of in zip(addresses, known))
                made.release()
            time.sleep(1e-5)
    finally:
        done.set()
        other.join()
    assert min(outcomes.values()) >= 50, outcomes


def test_it_is_tried_before_it_is_used(library):
    assert gather._tells(library)

    class Same:
        def take(self, addresses):
            return True

        def release(self):
            pass

    assert not gather._tells(types.SimpleNamespace(make=lambda *_: Same()))
    assert not gather._tells(types.SimpleNamespace(make=lambda *_: None))


# ---- without it ----


def said(caplog):
    return [r for r in caplog.records if r.name == "bitpager" and "gradient gather" in r.message]


@pytest.mark.parametrize(
    "why", ("no compiler", "no headers", "compiler fails", "switched off", "does not tell", "an error")
)
def test_what_is_missing_is_said_once_and_steps_go_on(fresh, monkeypatch, caplog, tmp_path, why):
    def broken(*_):
        raise OSError("the disk is on fire")

    if why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        words = "no C++ compiler (g++ or CXX) to build what reads gradients with"
    elif why == "no headers":
        monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
        words = "headers are not installed"
    elif why == "compiler fails":
        monkeypatch.setenv("CXX", "false")
        words = "false cannot compile what reads gradients"
    elif why == "switched off":
        monkeypatch.setenv(gather.SWITCH, "0")
        words = f"switched off by {gather.SWITCH}"
    elif why == "does not tell":
        monkeypatch.setattr(gather, "_tells", lambda library: False)
        words = "does not tell all gradients apart"
    else:
        monkeypatch.setattr(compiled, "build", broken)
        words = "OSError: the disk is on fire"
    monkeypatch.setattr(_lib, "_library", types.SimpleNamespace(bp_step_async=None))
    parameters = make_parameters()
    give_gradients(parameters)
    with caplog.at_level(logging.INFO, "bitpager"):
        step = pack(parameters)
        assert gather.wait() is None
        for _ in range(3):
            give_gradients(parameters)
            assert step.look() and list(step.addresses) == [p.grad.data_ptr() for p in parameters]
    assert step._gather is None
    assert len(said(caplog)) == 1 and said(caplog)[0].levelno == logging.INFO
    assert words in said(caplog)[0].message and words in gather.report()


def test_the_switch_is_told_of():
    root = pathlib.Path(__file__).resolve().parents[2]
    for page in ("README.md", "client/python/docs/optimizers-8bit.md"):
        assert f"`{gather.SWITCH}=0`" in (root / page).read_text(), page


def test_steps_do_not_wait_for_the_compiler(fresh, monkeypatch, caplog):
    monkeypatch.setattr(_lib, "_library", types.SimpleNamespace(bp_step_async=None))
    ready = threading.Event()
    build = compiled.build
    monkeypatch.setattr(compiled, "build", lambda *a, **how: ready.wait(60) and build(*a, **how))
    parameters = make_parameters()
    give_gradients(parameters)
    with caplog.at_level(logging.INFO, "bitpager"):
        step = pack(parameters)
        assert gather._thread.is_alive()
        give_gradients(parameters)
        assert step.look() and step._gather is None
        ready.set()
        assert gather.wait() is not None
        for _ in range(2):
            give_gradients(parameters)
            assert step.look() and step._gather is not None
            assert list(step.addresses) == [p.grad.data_ptr() for p in parameters]
    assert [record.message for record in said(caplog)] == [f"gradient gather: compiled for torch {torch.__version__}"]
