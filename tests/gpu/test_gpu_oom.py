"""Memory that runs short on a GPU: the allocator gets what pages hold, guard() retries, numbers stay what they are.

A ballast makes the shortage. The models are linear layers alone, whose every operation is deterministic."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import warnings

import bitpager
import gpu_daemon
import gpu_training
import pytest
import torch
from bitpager import allocator

DEVICE = gpu_training.DEVICE
MIB = 1 << 20
GIB = 1 << 30
HIDDEN = 4096
LAYERS = 24  # 400 million parameters: 800 MiB of 8-bit AdamW states
STATES = LAYERS * HIDDEN * HIDDEN * 2
ROWS = 12 * 1024  # of a spike: 96 MiB each activation in bf16, 48 of them
STEPS = 4
# A ballast holds once nothing more has come free for HOLD_S; what is less than NOISE is left alone.
HOLD_S, HOLD_LIMIT_S, NOISE = 0.5, 20, 8 * MIB


@pytest.fixture
def roomy(make_daemon):
    """A daemon that keeps all states on the device while there is room."""
    return make_daemon("--device-budget", "2GiB", "--host-budget", "2GiB", "--free-watermark", "64MiB")


@pytest.fixture
def job(roomy):
    with gpu_daemon.connect(roomy, "oom") as session:
        assert session._allocator_guard is not None and session._allocator_guard.active, (
            f"no callback here: {bitpager.guard_allocator(session)}"
        )
        yield session


class Training:
    """Layers whose activations take `rows` * HIDDEN * 2 bytes each, twice that with the nonlinearity."""

    def __init__(self, session, seed=1):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        layers = []
        for _ in range(LAYERS):
            layer = torch.nn.Linear(HIDDEN, HIDDEN, bias=False, device="meta")
            weight = torch.randn(HIDDEN, HIDDEN, generator=generator, device=DEVICE) * HIDDEN**-0.5
            layer.weight = torch.nn.Parameter(weight.to(torch.bfloat16))
            layers += [layer, torch.nn.ReLU()]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = bitpager.optim.PagedAdamW8bit(self.model.parameters(), lr=1e-3, session=session)

    def step(self, rows, dropout=0.0):
        x = torch.randn(rows, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
        y = torch.nn.functional.dropout(self.model(x), dropout)
        y.float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def digest(self):
        torch.cuda.synchronize()
        return gpu_training.digest(self.model.parameters())

    def end(self):
        self.optimizer.drop()
        self.model = self.optimizer = None
        gc.collect()  # torch's first optimizer of a process lies in a cycle, and keeps its parameters
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def settle(session):
    """What is free afterwards is free: the daemon's mappings of gradients are gone too."""
    session.synchronize()
    torch.cuda.synchronize()
    session.release_gradients()
    torch.cuda.empty_cache()
    time.sleep(0.3)


def quiet(session):
    """Once nothing more of what was there before comes free: frames that nobody needs are given back a while later."""
    gc.collect()
    settle(session)
    free, since, until = torch.cuda.mem_get_info()[0], time.monotonic(), time.monotonic() + 20
    while time.monotonic() - since < 2:
        assert time.monotonic() < until, "memory comes and goes"
        time.sleep(0.1)
        now = torch.cuda.mem_get_info()[0]
        if now != free:
            free, since = now, time.monotonic()


class Ballast:
    """Memory of the GPU that leaves at most `size` bytes free. It is the driver's: torch would take some of it out of
    its cache, where the steps would miss it."""

    def __init__(self, size, session=None):
        self._driver, self._pieces = ctypes.CDLL("libcuda.so.1"), []
        self._size, self._session = int(size), session
        free = torch.cuda.mem_get_info()[0]
        if free < self._size:
            pytest.skip(f"only {free / GIB:.1f} GiB are free")
        self.hold()

    def hold(self):
        """Takes what is free beyond `size` too, until nothing more comes free."""
        if self._session is not None:  # what the daemon still maps of earlier models would come free in a step
            self._session.synchronize()
            torch.cuda.synchronize()
            self._session.release_gradients()
        since, taken, until = time.monotonic(), [], time.monotonic() + HOLD_LIMIT_S
        while time.monotonic() - since < HOLD_S:
            free = torch.cuda.mem_get_info()[0]
            if free > self._size + NOISE:
                taken.append(f"{free // MIB} MiB")
                self._take(free - self._size)
                since = time.monotonic()
            assert time.monotonic() < until, (
                f"no ballast holds: {HOLD_LIMIT_S} s later memory still comes free beyond {self._size // MIB} MiB; "
                f"there were {', '.join(taken)}"
            )
            time.sleep(0.02)

    def _take(self, size):
        """As much as `size`; nothing when that went elsewhere meanwhile."""
        piece, out_of_memory = ctypes.c_uint64(), 2
        code = self._driver.cuMemAlloc_v2(ctypes.byref(piece), ctypes.c_size_t(size))
        assert code in (0, out_of_memory), f"cuMemAlloc of {size} bytes: error {code}"
        if code == 0:
            self._pieces.append(piece)

    def end(self):
        while self._pieces:
            assert self._driver.cuMemFree_v2(self._pieces.pop()) == 0


@pytest.fixture
def leaving():
    """leaving(size, session) -> Ballast; all end with the test."""
    made = []

    def make(size, session=None):
        made.append(Ballast(size, session))
        return made[-1]

    yield make
    for ballast in made:
        ballast.end()


def run(session, rows, ballast=None, steps=STEPS, give_back=False):
    """(digest, peak bytes of torch's). ballast: makes the shortage once the states are on the device."""
    quiet(session)
    training = Training(session)
    torch.manual_seed(7)
    training.step(16)
    settle(session)
    held = ballast() if ballast else None
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        training.step(rows)
        if give_back:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    session.synchronize()
    peak = torch.cuda.max_memory_reserved()
    digest = training.digest()
    if held is not None:
        held.end()
    training.end()
    return digest, peak


@pytest.mark.parametrize("give_back", [False, True], ids=["cached", "given back"])
def test_a_spike_above_the_free_memory_finishes_with_the_same_numbers(job, leaving, give_back):
    """Activations need 300 MiB more than is free: what the states hold."""
    expected, peak = run(job, ROWS, give_back=give_back)
    begun = job._allocator_guard.stats()

    def ballast():
        return leaving(peak - torch.cuda.memory_reserved() - 300 * MIB, job)

    stored = job.memory_stats()["stored_bytes"]
    digest, _ = run(job, ROWS, ballast, give_back=give_back)
    ended = job._allocator_guard.stats()
    assert digest == expected
    assert ended["requests"] > begun["requests"], "there was room: this shows nothing"
    assert job.memory_stats()["stored_bytes"] > stored
    assert ended["requests"] - begun["requests"] < 40 and ended["failed"] == begun["failed"], ended


def test_an_allocation_far_above_the_free_memory(job, leaving):
    """With the callback, and, as what was shown must be its work, without it."""
    for active in (True, False):
        quiet(job)
        training = Training(job)
        training.step(16)
        settle(job)
        held = leaving(128 * MIB, job)
        guard = bitpager.guard_allocator(job, reserve=400 * MIB)
        assert guard.active
        if active:
            spike = torch.ones(360 * MIB, dtype=torch.uint8, device=DEVICE)
            assert int(spike[-1]) == 1
            del spike
        else:
            guard.close()
            with pytest.raises(torch.OutOfMemoryError):
                torch.ones(360 * MIB, dtype=torch.uint8, device=DEVICE)
        held.end()
        training.end()


def test_guard_retries_what_really_ran_out(job, leaving):
    """One allocation larger than the reserve, with dropout's random numbers before it."""

    def train(short):
        quiet(job)
        training = Training(job)
        torch.manual_seed(3)
        spikes, seen = [], []

        def look(where):
            free, mib = torch.cuda.mem_get_info()[0], MIB
            resident = job.memory_stats()["resident_bytes"]
            held = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            seen.append(f"{where}: {free // mib} MiB free, {held[0] // mib} of {held[1] // mib} in use, "
                        f"{resident // mib} resident")  # fmt: skip

        def step(spike):
            x = torch.randn(64, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
            y = torch.nn.functional.dropout(training.model(x), 0.2)
            y.float().square().mean().backward()
            if spike:
                look("before the spike")
                big = torch.zeros(spike, dtype=torch.uint8, device=DEVICE)
                spikes.append(int(big[0]))
                look("behind it")
            training.optimizer.step()
            training.optimizer.zero_grad()

        guarded = bitpager.guard(step, training.model, training.optimizer)
        guarded(0)
        job.synchronize()
        torch.cuda.synchronize()  # gradients' memory stays in torch's cache, for those of the next steps
        held = leaving(160 * MIB, job) if short else None
        look("begin")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            guarded(0)
            if short:
                held.hold()
            for spike in (350 * MIB, 0, 0):
                guarded(spike if short else 0)
        job.synchronize()
        digest, draw = training.digest(), torch.rand(4, device=DEVICE)
        if short:
            held.end()
        training.end()
        return digest, draw, guarded.guard.retried, [*(str(w.message) for w in said), *seen]

    digest, draw, retried, _ = train(short=False)
    assert retried == 0
    job._allocator_guard.close()  # or the callback's reserve would do
    again, redraw, retried, said = train(short=True)
    assert retried == 1, said
    assert again == digest and torch.equal(draw, redraw)
    assert any("undid it" in text for text in said), said


def test_guard_says_what_would_help_when_nothing_does(job):
    training = Training(job)
    total = torch.cuda.get_device_properties(DEVICE).total_memory

    def step():
        torch.empty(total, dtype=torch.uint8, device=DEVICE)

    guarded = bitpager.guard(step, training.model, training.optimizer, retries=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.OutOfMemoryError, match="What would help") as caught:
            guarded()
    assert "GiB this process's tensors" in str(caught.value) or "MiB this process's tensors" in str(caught.value)
    training.step(16)  # goes on
    job.synchronize()
    training.end()


def test_autograds_threads_read_weights_by_request(make_daemon):
    """Backward runs in a thread of its own, in which nothing has used CUDA before."""
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "1GiB", "--window-pages", "8")
    with gpu_daemon.connect(daemon, "threads") as session:
        layers = []
        for seed in range(4):
            torch.manual_seed(seed)
            linear = torch.nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16)
            layers.append(bitpager.nn.Linear4bit.from_linear(linear.to(DEVICE), session=session))
        x = torch.randn(64, 2048, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        found, failures = [], []

        def work():
            try:
                out = torch.empty(2048, 2048, device=DEVICE, dtype=torch.bfloat16)
                found.append(layers[0].weight.pages.dequantize(path="request", out=out))
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failures, failures
        assert torch.equal(found[0], layers[0].weight.pages.dequantize(path="request"))
        y = x
        for layer in layers:
            y = layer(y)
        y.float().sum().backward()
        assert bool(x.grad.isfinite().all())


def test_hints_let_states_leave_and_return(job):
    training = Training(job)
    training.step(16)
    job.synchronize()
    resident = job.memory_stats()["resident_state_bytes"]
    assert resident > STATES // 2
    seen = []
    hooks = bitpager.hints.attach(training.model, training.optimizer, leave=True)

    def look(*_):
        until = time.monotonic() + 2
        seen.append(resident)
        while seen[-1] >= resident and time.monotonic() < until:
            seen[-1] = job.memory_stats()["resident_state_bytes"]

    training.model.register_forward_hook(look)
    for _ in range(3):
        training.step(ROWS)
        job.synchronize()
    hooks.detach()
    assert min(seen) < resident, "nothing left in forward"
    assert job.memory_stats()["resident_state_bytes"] > STATES // 2
    training.end()


def test_the_library_is_compiled_for_this_torch(compiled_allocator):
    path, why = compiled_allocator
    assert path is not None, why
    assert allocator.load(path).bp_guard_abi_version() == allocator.ABI_VERSION


def test_closing_a_session_takes_it_away_from_the_allocator(roomy, leaving):
    for _ in range(3):
        with gpu_daemon.connect(roomy, "closing") as session:
            assert session._allocator_guard.active
        held = leaving(80 * MIB)
        more = torch.empty(32 * MIB, dtype=torch.uint8, device=DEVICE)  # asks nobody
        held.end()
        del more
        torch.cuda.empty_cache()
