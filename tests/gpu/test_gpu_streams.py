"""Steps and the caller's streams and memory: nothing waits that need not, nothing is read too early or too late."""

from __future__ import annotations

import ctypes
import time

import bitpager
import gpu_daemon
import gpu_training
import pytest
import torch

STEPS = 12
SLEEP_CYCLES = 600_000_000  # some 0.3 s
DTYPE = torch.bfloat16


def plain(session, steps=STEPS):
    """Parameters after steps with nothing special about them."""
    params = gpu_training.parameters(DTYPE)
    optimizer = gpu_training.make_optimizer("AdamW", params, session)
    gpu_training.train(optimizer, params, 1, steps)
    session.synchronize()
    optimizer.drop()
    return params


def assert_same(params, others):
    for index, (p, q) in enumerate(zip(params, others)):
        assert torch.equal(p, q), f"parameter {index} differs"


@pytest.fixture
def expected(session):
    return plain(session)


@pytest.fixture
def trained(session):
    """(parameters, optimizer) at step 0."""
    params = gpu_training.parameters(DTYPE)
    return params, gpu_training.make_optimizer("AdamW", params, session)


def test_step_does_not_wait_for_the_gpu(session, trained):
    params, optimizer = trained
    gpu_training.train(optimizer, params, 1, 3)
    gpu_training.set_gradients(params, 4)
    session.synchronize()
    torch.cuda.synchronize()
    busy, done = torch.cuda.Event(), torch.cuda.Event()
    begun = time.perf_counter()
    torch.cuda._sleep(SLEEP_CYCLES)
    busy.record()
    optimizer.step()
    took = time.perf_counter() - begun
    done.record()
    still_busy = not busy.query()
    assert still_busy and not done.query(), "the GPU was through already: nothing is shown"
    assert took < 0.05, f"step() took {took * 1e3:.0f} ms"
    torch.cuda.synchronize()
    assert_same(params, plain(session, 4))


def test_later_work_on_the_stream_sees_the_step(session, trained, expected):
    params, optimizer = trained
    copies = []
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        optimizer.step()
        copies = [p.detach().clone() for p in params]  # no wait in between
    torch.cuda.synchronize()
    assert_same(copies, expected)


def write_gradients_late(params, step, stream):
    """They are infinite until the work that `stream` is given here has come to its end."""
    gpu_training.set_gradients(params, step)
    values = [p.grad.clone() for p in params]
    for p in params:
        p.grad.fill_(float("inf"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES // 10)
        for p, value in zip(params, values):
            p.grad.copy_(value)
            value.record_stream(stream)  # it is let go of here, and read later


def test_late_gradients_are_waited_for(session, trained, expected):
    """The gradients' values come long after step() has returned."""
    params, optimizer = trained
    for step in range(1, STEPS + 1):
        write_gradients_late(params, step, torch.cuda.current_stream())
        optimizer.step()
    session.synchronize()
    assert_same(params, expected)


def test_steps_on_a_side_stream(session, trained, expected):
    params, optimizer = trained
    side = torch.cuda.Stream()
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        torch.cuda._sleep(SLEEP_CYCLES // 30)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    assert_same(params, expected)


def blocking_stream():
    """A stream that the default one waits for without being told, as cudaStreamCreate makes them and torch does not."""
    made = ctypes.c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(made), 0) == 0
    return torch.cuda.ExternalStream(made.value)


def test_steps_come_behind_what_the_default_stream_waits_for(session, trained, expected):
    """The default stream itself is idle; a stream that blocks it still writes the gradients."""
    params, optimizer = trained
    side = blocking_stream()
    for step in range(1, STEPS + 1):
        write_gradients_late(params, step, side)
        optimizer.step()
    session.synchronize()
    assert_same(params, expected)


def test_steps_on_a_stream_that_the_default_one_blocks_come_behind_that(session, trained, expected):
    """The other way round: the step's own stream is idle, and waits for the default one without being told."""
    params, optimizer = trained
    side = blocking_stream()
    for step in range(1, STEPS + 1):
        write_gradients_late(params, step, torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizer.step()
        torch.cuda.synchronize()
    session.synchronize()
    assert_same(params, expected)


def test_gradients_freed_behind_a_side_streams_step_are_not_reused_too_early(session, trained, expected):
    params, optimizer = trained
    side = torch.cuda.Stream()
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP_CYCLES // 30)  # the step is far from done when the next lines run
            optimizer.step()
        for p in params:
            p.grad = None
        for p in params:  # would lie where the gradients lay
            torch.full_like(p, float("nan"))
        torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    assert_same(params, expected)


def test_gradients_set_to_none_at_once(session, trained, expected):
    params, optimizer = trained
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for p in params:
            torch.full_like(p, float("nan"))
    torch.cuda.synchronize()
    assert_same(params, expected)


def test_gradients_read_by_compiled_code_and_in_python_give_the_same(session, compiled_gather, monkeypatch):
    from bitpager.optim import gather

    if gather.library() is None:
        pytest.skip(compiled_gather)
    taken = []
    take = gather.Gather.take
    monkeypatch.setattr(gather.Gather, "take", lambda *given: taken.append(take(*given)) or taken[-1])
    compiled = plain(session)
    assert taken and all(taken), f"of {len(taken)} steps {taken.count(False)} were sent the long way"
    monkeypatch.setattr(gather, "library", lambda: None)
    before = len(taken)
    assert_same(plain(session), compiled)
    assert len(taken) == before


def test_memory_that_is_freed_shrunk_and_had_again_between_steps(session, trained, expected):
    """Addresses come back for other allocations: what the daemon mapped before must not be taken for them."""
    params, optimizer = trained
    held = []
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step, misaligned=step % 2 == 0)
        optimizer.step()
        torch.cuda.synchronize()
        for p in params:
            p.grad = None
        torch.cuda.empty_cache()
        held = [torch.full((size,), float("nan"), device=gpu_training.DEVICE) for size in (step << 18, 3 << 20)]
    del held
    session.synchronize()
    assert_same(params, expected)


def test_parameters_that_move_between_steps(session, trained, expected):
    params, optimizer = trained
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        optimizer.step()
        if step % 4 == 0:
            session.synchronize()
            for p in params:
                p.data = p.data.clone()
            torch.cuda.empty_cache()
    session.synchronize()
    assert_same(params, expected)


def test_release_gradients_gives_the_memory_back(session, trained, expected):
    params, optimizer = trained
    gpu_training.train(optimizer, params, 1, STEPS)
    session.synchronize()
    size = sum(p.grad.numel() * p.grad.element_size() for p in params)
    for p in params:
        p.grad = None
    session.release_gradients()
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    until = time.monotonic() + 5
    while torch.cuda.mem_get_info()[0] < before + size // 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert torch.cuda.mem_get_info()[0] >= before + size // 2
    assert_same(params, expected)


def test_a_step_under_graph_capture_is_refused(session, trained, expected):
    params, optimizer = trained
    gpu_training.train(optimizer, params, 1, STEPS - 1)
    gpu_training.set_gradients(params, STEPS)
    session.synchronize()
    torch.cuda.synchronize()
    x = torch.zeros(8, device=gpu_training.DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
        with pytest.raises(bitpager.Error, match="captur"):
            optimizer.step()
    graph.replay()
    torch.cuda.synchronize()
    assert x[0] == 1
    optimizer.step()  # as if nothing had been asked
    session.synchronize()
    assert_same(params, expected)


def test_wrong_devices_are_refused(make_daemon, session):
    params = gpu_training.parameters(DTYPE, gpu_training.SMALL)
    here = [torch.nn.Parameter(p.detach().cpu()) for p in params]
    optimizer = gpu_training.make_optimizer("AdamW", here, session)
    here[0].grad = torch.ones_like(here[0])
    with pytest.raises((ValueError, bitpager.Error), match="(?i)device|cpu"):
        optimizer.step()
    optimizer = gpu_training.make_optimizer("AdamW", params, session)
    gpu_training.train(optimizer, params, 1, 2)
    session.synchronize()
    params[0].data = params[0].data.cpu()
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(ValueError, match="now on cpu"):
        optimizer.step()


def test_an_unknown_gpu_is_refused(daemon):
    with pytest.raises(bitpager.Error, match="(?i)device|gpu"):
        gpu_daemon.connect(daemon, "nowhere", device="GPU-00000000-0000-0000-0000-000000000000")


def test_room_is_made_on_request(make_daemon):
    daemon = make_daemon("--device-budget", "1GiB", "--host-budget", "1GiB")
    with gpu_daemon.connect(daemon, "room") as session:
        params = gpu_training.parameters(DTYPE)
        optimizer = gpu_training.make_optimizer("AdamW", params, session)
        gpu_training.train(optimizer, params, 1, 3)
        session.synchronize()
        resident = session.memory_stats()["resident_bytes"]
        assert resident > 0
        torch.cuda.empty_cache()
        wanted = torch.cuda.mem_get_info()[0] + resident // 2
        assert session.make_room(wanted) >= wanted
        assert session.memory_stats()["resident_bytes"] < resident
        gpu_training.train(optimizer, params, 4, STEPS)
        session.synchronize()
        assert_same(params, plain(session))
