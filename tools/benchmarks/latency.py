"""Group latency: what a request costs beside its work."""

from __future__ import annotations

import mmap
import os
import statistics
import time

import torch
from machine import Setting, cool, session_of
from optimizers import FreshGradients, parameters, step_ms, torch_fused
from rows import Row

DAEMON = ("--device-budget", "512MiB", "--host-budget", "1GiB")
BUSY_CALLS = 20000
IDLE_CALLS = 300
IDLE_S = 0.01
STEPS = 30
LORA = [(16, 4096), (4096, 16)] * 128  # q, k, v, o of 32 layers: 256 tensors, 16.8 million elements


def _noop_us(session, calls: int, idle_s: float) -> list[float]:
    """Sorted wall times of single no-ops, called as C programs do but for the ctypes call itself."""
    from bitpager import _lib

    call, handle, times = _lib.lib().bp_noop, session.handle, []
    for _ in range(calls):
        if idle_s:
            time.sleep(idle_s)
        begun = time.perf_counter_ns()
        code = call(handle)
        times.append((time.perf_counter_ns() - begun) / 1e3)
        _lib.check(code)
    return sorted(times)


def _bell_us(calls: int, idle_s: float) -> list[float]:
    """Sorted times in which an eventfd wakes another idle process, which answers in shared memory: the least that a
    request can cost once both sides sleep."""
    bell, word = os.eventfd(0), mmap.mmap(-1, mmap.PAGESIZE)
    child = os.fork()
    if child == 0:
        for call in range(calls):
            os.eventfd_read(bell)
            word[0] = (call + 1) % 256
        os._exit(0)
    times = []
    for call in range(calls):
        time.sleep(idle_s)
        begun = time.perf_counter_ns()
        os.eventfd_write(bell, 1)
        while word[0] != (call + 1) % 256:
            pass
        times.append((time.perf_counter_ns() - begun) / 1e3)
    os.waitpid(child, 0)
    os.close(bell)
    return sorted(times)


def _noops(setting: Setting) -> list[Row]:
    bell = _bell_us(IDLE_CALLS, IDLE_S)
    with session_of(setting, "noop", *DAEMON) as session:
        _noop_us(session, BUSY_CALLS // 10, 0)
        busy = _noop_us(session, BUSY_CALLS, 0)
        idle = _noop_us(session, IDLE_CALLS, IDLE_S)
    # The limit once both sides sleep is the wake of an eventfd.
    return [
        Row("no-op, while spinning, p50", "us", busy[len(busy) // 2]),
        Row("no-op, while spinning, p99", "us", busy[len(busy) * 99 // 100]),
        Row("no-op, after 10 ms idle, p50", "us", idle[len(idle) // 2], limit=bell[len(bell) // 2]),
        Row("no-op, after 10 ms idle, p99", "us", idle[len(idle) * 99 // 100], limit=bell[len(bell) * 99 // 100]),
    ]


def _arena_times(optimizer) -> list[int]:
    """Collects total_ns of each step request of the optimizer's one arena, as the daemon reports it."""
    (arena,) = optimizer._registry.arenas
    step, times = arena.step, []

    def timed(*arguments):
        code, result = step(*arguments)
        times.append(result.total_ns)
        return code, result

    arena.step = timed
    return times


def _lora(setting: Setting, dtype: torch.dtype) -> list[Row]:
    import bitpager

    with session_of(setting, "lora", *DAEMON) as session:
        params = parameters(LORA, dtype)
        optimizer = bitpager.optim.AdamW8bit(params, lr=1e-3, session=session).prepare()
        inside = _arena_times(optimizer)
        fresh, walls = FreshGradients(params), []
        for _ in range(STEPS):
            fresh()
            cool()
            begun = time.perf_counter_ns()
            optimizer.step()
            walls.append(time.perf_counter_ns() - begun)
    wall = statistics.median(walls[2:]) / 1e6
    kernel = statistics.median(inside[2:]) / 1e6
    kind = "fp32" if dtype == torch.float32 else "bf16"
    name = f"256 LoRA tensors (r 16, 7B), {kind}, one step, one request"
    limit = sum(p.numel() for p in params) * (3 * dtype.itemsize + 4 * (1 + 4 / 256)) / setting.ceiling * 1e3
    rows = [
        Row(name, "ms", wall, step_ms(LORA, torch.float32, torch_fused, STEPS), "torch fused AdamW fp32", limit),
        Row(f"{name}: from admission to the end", "ms", kernel, limit=limit),
        Row(f"{name}: overhead (gradient copy, Python, request)", "ms", wall - kernel),
    ]
    if setting.peer is not None:
        peer = step_ms(LORA, dtype, lambda p: setting.peer.optim.AdamW8bit(p, lr=1e-3), 3)
        rows.insert(1, Row(name, "ms", wall, peer, "bitsandbytes AdamW8bit", limit))
    return rows


def run(setting: Setting) -> list[Row]:
    return _noops(setting) + _lora(setting, torch.float32) + _lora(setting, torch.bfloat16)
