"""guard(): whatever a step was at when memory ran out, the run's numbers are those of one in which it never did."""

from __future__ import annotations

import gc
import random
import warnings
import weakref

import bitpager
import pytest
import torch
from bitpager import out_of_memory, retry
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 4
FAILS_IN = 2  # step


class FailsAt(TorchDispatchMode):
    """Raises torch.OutOfMemoryError in the place of the nth operation, once; counts them."""

    def __init__(self, nth=-1, times=1):
        super().__init__()
        self.nth, self.left, self.count = nth, times, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace != "profiler"  # which takes no memory
        if self.count > self.nth >= 0 and self.left and func.namespace != "profiler":
            self.left -= 1
            self.count = 0
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 MiB. GPU 0 has ...")
        return func(*args, **(kwargs or {}))


class Training:
    """A model with dropout and BatchNorm, an optimizer, and gradients that are accumulated over two backwards."""

    def __init__(self, session, make=None, carry=False):
        torch.manual_seed(5)
        random.seed(5)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Dropout(0.3),
            torch.nn.Linear(64, 70),
        )  # fmt: skip
        make = make or (lambda p: bitpager.optim.PagedAdamW8bit(p, lr=1e-2, session=session, min_8bit_size=1024))
        self.optimizer = make(self.model.parameters())
        self.carry = carry  # gradients of every second step are there when the next begins
        self.done = 0
        self.injected = None
        self.steps_of_optimizer = 0

    def step(self, index):
        for micro in range(2):
            x = torch.randn(8, 16) * (1 + random.random())
            loss = self.model(x).square().mean() / (1 + micro)
            loss.backward()
            loss = loss.detach()
        if not self.carry or index % 2:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def failing_step(self, index):
        if index != FAILS_IN or self.injected is None:
            return self.step(index)
        with self.injected:
            return self.step(index)

    def run(self, guarded=True, injected=None, **options):
        """Everything that a run leaves behind, to be compared bit for bit."""
        self.injected = injected
        step = bitpager.guard(self.failing_step, self.model, self.optimizer, **options) if guarded else self.step
        losses = [step(index) for index in range(STEPS)]
        states = self.optimizer.state_dict()["state"]
        tensors = list(self.model.state_dict().values()) + losses + [torch.rand(3)]
        tensors += [torch.tensor(random.random()), *(p.grad for p in self.model.parameters() if p.grad is not None)]
        for state in states.values():
            flat = dict(state, **state.get("__bnb_optimizer_quant_state__", {}))
            tensors += [torch.as_tensor(v) for k, v in sorted(flat.items()) if not isinstance(v, dict)]
        return tensors


def assert_same(found, expected):
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected)):
        assert torch.equal(a, b), index


@pytest.fixture(autouse=True)
def quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a training step ran out of memory")
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("carry", [False, True])
def test_wherever_memory_runs_out_the_numbers_are_the_same(session, carry, monkeypatch):
    monkeypatch.setattr(retry.gc, "collect", lambda: 0)  # it takes most of the time
    plain = Training(session, carry=carry)
    expected = plain.run(guarded=False)
    plain.optimizer.drop()
    counter = FailsAt()
    Training(session, carry=carry).run(injected=counter)
    assert counter.count > 60
    # Behind optimizer.step() only zero_grad() follows, which calls nothing; so every operation may be tried again.
    for nth in range(counter.count):
        training = Training(session, carry=carry)
        failing = FailsAt(nth)
        found = training.run(injected=failing)
        assert failing.left == 0, nth
        assert_same(found, expected)
        training.optimizer.drop()


def test_failures_in_a_row(session):
    expected = Training(session).run(guarded=False)
    training = Training(session)
    assert_same(training.run(injected=FailsAt(30, times=2)), expected)


def test_with_torchs_own_optimizer(session):
    def make(p):
        return torch.optim.AdamW(p, lr=1e-2)

    expected = Training(session, make).run(guarded=False)
    for nth in (0, 11, 37, 50):
        assert_same(Training(session, make).run(injected=FailsAt(nth)), expected)


def failing_arena_step(monkeypatch, behind: bool):
    """Arena.step raises once, before the library has seen the step or behind it."""
    from bitpager.arena import Arena

    real, left = Arena.step, [1]

    def step(self, *args):
        result = real(self, *args) if behind and left[0] else None
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result or real(self, *args)

    monkeypatch.setattr(Arena, "step", step)


def test_a_step_that_was_not_submitted_is_submitted_once(session, monkeypatch):
    expected = Training(session).run(guarded=False)
    training = Training(session)
    failing_arena_step(monkeypatch, behind=False)
    assert_same(training.run(), expected)


def test_a_step_that_was_submitted_is_never_submitted_again(session, monkeypatch):
    untouched, stepped, training = Training(session), Training(session), None
    torch.manual_seed(9)
    random.seed(9)
    stepped.step(0)
    training = Training(session)
    torch.manual_seed(9)
    random.seed(9)
    failing_arena_step(monkeypatch, behind=True)
    step = bitpager.guard(training.step, training.model, training.optimizer)
    with pytest.raises(torch.OutOfMemoryError, match="never applied twice"):
        step(0)
    # One of the two widths' arenas was stepped, and no parameter twice.
    moved = 0
    for p, once, never in zip(*(t.model.parameters() for t in (training, stepped, untouched))):
        assert torch.equal(p, once) or torch.equal(p, never)
        moved += torch.equal(p, once)
    assert 0 < moved < 6


@pytest.mark.parametrize("ours", [True, False])
def test_memory_that_runs_out_behind_the_step_is_told(session, ours):
    make = None if ours else (lambda p: torch.optim.SGD(p, lr=0.1))
    training, other = Training(session, make), Training(session, make)

    def step(which, fails):
        loss = which.step(1)
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    step(other, False)
    torch.manual_seed(5)
    random.seed(5)
    training = Training(session, make)
    with pytest.raises(torch.OutOfMemoryError, match="catch this error there and go on"):
        bitpager.guard(step, training.model, training.optimizer)(training, True)
    for a, b in zip(training.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)


def test_one_of_two_optimizers_submitted_counts(session):
    torch.manual_seed(0)
    first, second = torch.nn.Linear(8, 300), torch.nn.Linear(300, 8)
    a = bitpager.optim.PagedAdamW8bit(first.parameters(), session=session)
    b = torch.optim.SGD(second.parameters(), lr=0.1)
    calls = []

    @bitpager.guard(first, second, a, b)
    def step():
        calls.append(1)
        second(first(torch.ones(2, 8))).sum().backward()
        a.step()
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="on its way already"):
        step()
    assert len(calls) == 1


class Room:
    """Stands for the session of a GPU."""

    closed = False
    device_kind = "cuda"

    def __init__(self, error=None):
        self.asked, self.error, self._allocator_guard = [], error, None

    def make_room(self, size, timeout):
        self.asked.append(size)
        if self.error is not None:
            raise self.error
        return size

    def memory_stats(self):
        return {"resident_bytes": 5 << 20}


def test_room_is_asked_for_and_more_the_second_time(session):
    room = Room()
    training = Training(session)
    training.run(injected=FailsAt(10, times=2), session=room)
    need = 3 << 20
    assert room.asked == [need + need // 4 + retry.SLACK_BYTES, 2 * (need + need // 4) + retry.SLACK_BYTES]


@pytest.mark.parametrize("error", [TimeoutError("still leaving"), bitpager.BudgetError("all has left", 21, "X")])
def test_room_that_cannot_be_made_is_told_and_the_step_tried_all_the_same(session, error):
    room = Room(error)
    training = Training(session)
    step = bitpager.guard(training.failing_step, training.model, training.optimizer, session=room)
    training.injected = FailsAt(10)
    with pytest.warns(RuntimeWarning, match=f"not all could be made: {error.args[0]}"):
        step(FAILS_IN)
    assert step.guard.retried == 1


def test_in_the_end_it_says_what_would_help(session):
    training = Training(session)
    base = bitpager.nn.Linear4bit.from_linear(torch.nn.Linear(4096, 64), compress_statistics=False, session=session)
    step = bitpager.guard(training.failing_step, training.model, base, training.optimizer, session=Room())
    training.injected = FailsAt(3, times=99)
    before = torch.get_rng_state()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        step(FAILS_IN)
    said = str(caught.value)
    assert "Tried to allocate 3.00 MiB" in said and "wanted 3.0 MiB" in said
    assert "11.9 KiB by double quantization" in said
    assert torch.equal(torch.get_rng_state(), before), "the last attempt too is undone"


def test_advice_names_bytes():
    gib = 1 << 30
    said = out_of_memory.advice(
        out_of_memory.Need(2 * gib, 80 * gib, gib, 60 * gib, 3 * gib, 30 * gib, 2 * gib, gib // 2, False)
    )
    for part in (
        "Of 80.0 GiB: 60.0 GiB this process's tensors, 3.0 GiB torch's cache, 2.0 GiB pages of this job",
        "14.0 GiB other jobs' pages",
        "20.0 GiB by model.gradient_checkpointing_enable()",
        "15.0 GiB by half the batch",
        "512.0 MiB by double quantization",
        "3.0 GiB by PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    ):
        assert part in said, (part, said)
    assert said.index("20.0 GiB by") < said.index("15.0 GiB by"), "the largest first"


@pytest.mark.parametrize("name", ("is_activation_checkpointing", "is_gradient_checkpointing"))
def test_checkpointing_is_read_under_the_name_that_transformers_has(name):
    """The older name is not read where it is given up; a model with neither says nothing."""

    class Model(torch.nn.Module):
        @property
        def is_gradient_checkpointing(self):
            warnings.warn("deprecated", FutureWarning, stacklevel=2)

    model = Model()
    setattr(Model, name, property(lambda self: self.on))
    for model.on in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert out_of_memory.Need.of(None, 0, {}, [model], ()).checkpointing is model.on
    assert out_of_memory.is_checkpointing(torch.nn.Linear(1, 1)) is None


def test_tensors_of_the_failed_attempt_are_freed_before_the_next(session):
    training = Training(session)
    seen = []

    def step(index):
        held = torch.randn(100)
        alive = [ref for ref in seen if ref() is not None]
        seen.append(weakref.ref(held))
        y = training.model(torch.randn(8, 16))
        if len(seen) < 3:
            held.grad_fn_user = y
            raise torch.OutOfMemoryError("CUDA out of memory")
        y.sum().backward()
        training.optimizer.step()
        return len(alive)

    gc.disable()
    try:
        assert bitpager.guard(step, training.model, training.optimizer)(0) == 0
    finally:
        gc.enable()


def test_other_errors_pass(session):
    training = Training(session)
    calls = []

    @bitpager.guard(training.model, training.optimizer)
    def step(error):
        """A docstring."""
        calls.append(1)
        raise error

    assert step.__doc__ == "A docstring." and step.__name__ == "step"
    for error in (ValueError("no"), RuntimeError("CUDA error: an illegal memory access"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            step(error)
    with pytest.raises(bitpager.OutOfMemoryError):
        step(bitpager.OutOfMemoryError("of the daemon", 22, "OUT_OF_MEMORY"))
    assert len(calls) == 4
    with pytest.raises(RuntimeError, match="CUBLAS"):
        step(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert len(calls) == 7


def test_steps_inside_backward_are_refused(session):
    training = Training(session)
    step = bitpager.guard(training.step, training.model, training.optimizer)
    hook = training.model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="inside backward"):
        step(1)
    hook.remove()
    step(1)


def test_arguments_are_checked(session):
    training = Training(session)
    with pytest.raises(ValueError, match="needs the optimizers"):
        bitpager.guard(training.step, training.model)
    with pytest.raises(TypeError, match="got int"):
        bitpager.guard(training.step, training.model, training.optimizer, 7)
    with pytest.raises(ValueError, match="retries"):
        bitpager.guard(training.step, training.model, training.optimizer, retries=0)


def test_buffers_that_are_replaced_and_scalers_and_generators_are_restored(session):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(4, 300)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("nothing", None)

        def forward(self, x):
            self.seen = self.seen + 1
            self.nothing = torch.ones(3)
            return self.lin(x)

    torch.manual_seed(1)
    model = Counts()
    optimizer = bitpager.optim.PagedAdamW8bit(model.parameters(), session=session)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    generator = torch.Generator().manual_seed(3)
    fails = [True, True]

    @bitpager.guard(model, optimizer, scaler, generator)
    def step():
        x = torch.randn(2, 4, generator=generator)
        scaler.scale(model(x).sum()).backward()
        scaler.unscale_(optimizer)
        if fails:
            fails.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        scaler.step(optimizer)
        scaler.update()
        return x

    x = step()
    assert torch.equal(x, torch.randn(2, 4, generator=torch.Generator().manual_seed(3)))
    assert model.seen == 1 and step.guard.retried == 2


def test_it_works_on_methods_and_keeps_views_of_gradients(session):
    class Trainer:
        def __init__(self):
            torch.manual_seed(2)
            self.model = torch.nn.Linear(8, 300)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.bucket = torch.zeros(8 * 300)
            self.model.weight.grad = self.bucket.view(300, 8)
            self.fails = True
            self.step = bitpager.guard(self.step, self.model, self.optimizer)

        def step(self, x):
            self.model(x).sum().backward()
            if self.fails:
                self.fails = False
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.optimizer.step()

    trainer = Trainer()
    trainer.step(torch.ones(2, 8))
    assert trainer.model.weight.grad.data_ptr() == trainer.bucket.data_ptr()
    assert torch.equal(trainer.bucket, torch.full((2400,), 2.0))
