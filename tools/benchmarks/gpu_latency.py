"""What a request costs on an idle GPU: its way to the daemon and back, and its way to a kernel."""

from __future__ import annotations

import time

import torch
from gpu_machine import DEVICE, Bench, percentile, session_of, synchronize
from gpu_sections import Report
from rows import Row

BUDGETS = (256 << 20, 256 << 20)
BUSY_CALLS = 5000
IDLE_CALLS = 200
IDLE_S = 0.005
ELEMENTS = 4096


def _times_us(work, calls: int, idle_s: float = 0.0) -> list[float]:
    times = []
    for _ in range(calls):
        if idle_s:
            time.sleep(idle_s)
        begun = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - begun) / 1e3)
    return times


def _both(report: Report, work: str, times: list[float], peer=None, peer_name=None) -> None:
    """Rows of p50 and p99; `peer`: times of something comparable."""
    for share in (0.5, 0.99):
        theirs = None if peer is None else percentile(peer, share)
        report.add(Row(f"{work}, p{share * 100:.0f}", "us", percentile(times, share), theirs, peer_name))


def _noop(report: Report, session, under: str) -> None:
    from bitpager import _lib

    call, handle = _lib.lib().bp_noop, session.handle

    def noop() -> None:
        _lib.check(call(handle))

    with report.guard(f"no-op request{under}", "us"):
        _times_us(noop, 500)
        _both(report, f"no-op request, while both sides spin{under}", _times_us(noop, BUSY_CALLS))
        _both(report, f"no-op request, after 5 ms idle{under}", _times_us(noop, IDLE_CALLS, IDLE_S))


def _tiny_steps(report: Report, session, under: str) -> None:
    """A step of one small tensor: by the client's clock, and on the device from the stream's word that the gradient is
    ready to its word that the step is done."""
    import bitpager

    p = torch.nn.Parameter(torch.zeros(ELEMENTS, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = bitpager.optim.AdamW8bit([p], lr=1e-4, session=session).prepare()

    def step() -> None:
        optimizer.step()
        torch.cuda.synchronize()

    def launch() -> None:
        p.data.add_(p.grad)
        torch.cuda.synchronize()

    _times_us(step, 100)
    _times_us(launch, 100)
    plain = _times_us(launch, 1000)
    name = "torch add_ and synchronize"
    _both(report, f"step of {ELEMENTS} elements and synchronize{under}", _times_us(step, 1000), plain, name)
    idle = _times_us(launch, IDLE_CALLS, IDLE_S)
    work = f"step of {ELEMENTS} elements and synchronize, after 5 ms idle{under}"
    _both(report, work, _times_us(step, IDLE_CALLS, IDLE_S), idle, name)
    _on_device(report, optimizer, under)


def _on_device(report: Report, optimizer, under: str) -> None:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(300):
        synchronize()
        # The processor is ahead: what is timed is the way from `ready` to the kernel and to `done`.
        torch.cuda._sleep(200_000)
        begin.record()
        optimizer.step()
        end.record()
        synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    _both(report, f"from ready to done, behind a kernel of the client{under}", times[20:])


def _launch(report: Report, session, under: str) -> None:
    """From a request's turn, its gradients ready, to its kernel's launch, by the daemon's clock. The way through the
    ring comes before it: half of an empty request's round."""
    import bitpager

    p = torch.nn.Parameter(torch.zeros(ELEMENTS, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = bitpager.optim.AdamW8bit([p], lr=1e-4, session=session).prepare()
    launched = []
    for _ in range(1100):
        optimizer.step()
        optimizer.synchronize()
        launched.append(session.last_step()["launch_ns"] / 1e3)
    _both(report, f"request to launch, GPU idle, as the daemon counts{under}", launched[100:])


def _c_call(report: Report, session, under: str) -> None:
    """The same step by the C ABI alone: what Python adds is the difference."""
    from bitpager import _lib
    from bitpager.arena import Arena, StreamCall

    p, grad = torch.zeros(ELEMENTS, device=DEVICE), torch.ones(ELEMENTS, device=DEVICE)
    arena = Arena(session, _lib.ADAM, 8, False, "latency-c", [(ELEMENTS,)])
    call = StreamCall([(0, 0, 1, _lib.F32, _lib.F32, 0, 0, p.data_ptr(), 0, 0, grad.data_ptr())], 1)
    steps = iter(range(1, 1_000_000))

    def step() -> None:
        number = next(steps)
        call.point_to([grad.data_ptr()])
        call.fill((1e-4, 0.9, 0.999, 1e-8, 0.0), number, number - 1, False, False)
        arena.step_on_stream(call, 0)
        torch.cuda.synchronize()

    _times_us(step, 100)
    _both(report, f"the same by one C call{under}", _times_us(step, 1000))


def latency(bench: Bench, report: Report) -> None:
    under = ", under MPS" if bench.mps else ""
    torch.zeros(1, device=DEVICE)
    with report.guard(f"latency{under}", "us"), session_of(bench, "step-latency", *BUDGETS) as found:
        _noop(report, found.session, under)
        with report.guard(f"tiny steps{under}", "us"):
            _tiny_steps(report, found.session, under)
        with report.guard(f"the same by one C call{under}", "us"):
            _c_call(report, found.session, under)
        with report.guard(f"request to launch, GPU idle, as the daemon counts{under}", "us"):
            _launch(report, found.session, under)
        with report.guard(f"tiny steps, as the daemon counts{under}", "us"):
            done = found.session.last_step()
            report.add(
                Row(f"last step from admission to done, as the daemon counts{under}", "us", done["total_ns"] / 1e3)
            )
