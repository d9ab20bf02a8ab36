"""Group gpu-paged: steps whose states are not all on the device; bytes moved, time, and the optimum for those bytes."""

from __future__ import annotations

import ctypes
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from gpu_machine import (
    PAGE_BYTES,
    STREAM_PAGES,
    Bench,
    attached,
    cool,
    private_daemon,
    session_of,
    synchronize,
    wall_ms,
)
from gpu_sections import Report, Section
from gpu_stall import stalls
from gpu_step import copy_ceiling, link_ceilings, matmul_ceiling
from gpu_work import LLAMA, FreshGradients, free, load_peer, parameters
from rows import Row

LIMIT_S = 450
HOST_BYTES = 3 << 30
DEVICE_BYTES = 4 << 30
DTYPE = torch.bfloat16
STATES = {"AdamW": 2, "Lion": 1}
MIB = 1 << 20


@dataclass
class Paged:
    """Medians over steps. pages: of the optimizer; pages_in, pages_out: moved by a step, its trailing write-backs
    included; left: resident behind a step; settle_ms: until those were on the host too, where that was asked for."""

    ms: float
    pages: float
    pages_in: float
    pages_out: float
    left: float
    settle_ms: float


@contextmanager
def _optimizer(rule: str, session):
    import bitpager

    params = parameters(LLAMA, DTYPE)
    make = getattr(bitpager.optim, f"Paged{rule}8bit")
    optimizer = make(params, lr=1e-4, session=session).prepare()
    try:
        yield optimizer, FreshGradients(params)
    finally:
        optimizer.drop()
        free()


def _quiet(session) -> dict:
    """Counts once no page moves any more."""
    before = session.memory_stats()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        time.sleep(0.003)
        now = session.memory_stats()
        if (now["loaded_bytes"], now["stored_bytes"]) == (before["loaded_bytes"], before["stored_bytes"]):
            return now
        before = now
    return before


def _measure(found, rule: str, repeats: int, empty: bool, warm: int = 2) -> Paged:
    """empty: before each step every page is on the host."""
    with _optimizer(rule, found.session) as (optimizer, fresh):
        samples = []
        for _ in range(warm + repeats):
            fresh()
            if empty:
                found.evict()
            cool()
            synchronize()
            before = found.session.memory_stats()
            begun = time.perf_counter_ns()
            optimizer.step()
            synchronize()
            step_ms = (time.perf_counter_ns() - begun) / 1e6
            left = found.session.memory_stats()["resident_bytes"] / PAGE_BYTES
            settle_ms = 0.0
            if empty:
                begun = time.perf_counter_ns()
                found.evict()
                settle_ms = (time.perf_counter_ns() - begun) / 1e6
            after = _quiet(found.session)
            moved = [(after[key] - before[key]) / PAGE_BYTES for key in ("loaded_bytes", "stored_bytes")]
            samples.append((step_ms, *moved, left, settle_ms))
        found.session.synchronize()
        ms, pages_in, pages_out, left, settle_ms = (statistics.median(column) for column in zip(*samples[warm:]))
        return Paged(ms, after["pages"], pages_in, pages_out, left, settle_ms)


def _link_ms(bench: Bench, pages: float) -> float | None:
    """The least time for pages in and as many out, both at once."""
    return bench.ms_of(pages * PAGE_BYTES, "both")


def _rows(report: Report, work: str, run: Paged, limit_ms: float | None, optimum: float) -> None:
    report.add(Row(work, "ms", run.ms, limit=limit_ms))
    report.add(Row(f"{work}: pages in", "pages a step", run.pages_in, limit=optimum))
    report.add(Row(f"{work}: pages out", "pages a step", run.pages_out, limit=optimum))


def all_on_host(rule: str, *flags: str):
    """A section: a budget of one streaming window's buffers, nothing on the device before a step. flags: of the
    daemon."""
    work = " ".join((f"{rule} 8-bit, 1e9 bf16, all states on the host", *flags))

    def run(bench: Bench, report: Report) -> None:
        name = f"paged-{rule}".lower()
        with session_of(bench, name, STREAM_PAGES * PAGE_BYTES, HOST_BYTES, *flags) as found:
            result = _measure(found, rule, bench.repeats(15, 7), empty=True)
            limit = _link_ms(bench, result.pages)
            if not flags:
                report.tell(f"ours {rule}", result.ms)
                report.tell(f"limit {rule}", limit)
            _rows(report, work, result, limit, result.pages)
            report.add(Row(f"{work}: still on the device behind the step", "pages", result.left))
            report.add(Row(f"{work}: until those were on the host (command, polled)", "ms", result.settle_ms))

    return run


def _await_resident(found, optimizers, least: float) -> int:
    """Bytes on the device once `least` are there again, or after some seconds; the daemon keeps room that was asked for
    free for a while."""
    until = time.monotonic() + 8
    while found.resident_bytes() < least and time.monotonic() < until:
        found.session.prefetch(*optimizers)
        time.sleep(0.1)
    return found.resident_bytes()


def _step_all(*optimizers) -> dict:
    """Steps (optimizer, its gradients) each; the session's memory_stats() behind them."""
    for optimizer, fresh in optimizers:
        fresh()
        optimizer.step()
    synchronize()
    return optimizers[0][0].session.memory_stats()


def room_on_request(bench: Bench, report: Report) -> None:
    """4 GB of states, all resident and all dirty, give way to memory that a program asks for."""
    work = "room on request (session.make_room)"
    with session_of(bench, "paged-room", 2 * DEVICE_BYTES, 2 * HOST_BYTES) as found:
        with _optimizer("AdamW", found.session) as first, _optimizer("AdamW", found.session) as second:
            optimizers = [optimizer for optimizer, _ in (first, second)]
            times, moved = [], []
            for _ in range(1 + bench.repeats(5, 3)):
                everything = _step_all(first, second)["pages"] * PAGE_BYTES
                # Room that was asked for is kept for a while; then the pages return, and a step makes them dirty.
                if _await_resident(found, optimizers, 0.95 * everything) < 0.95 * everything:
                    raise RuntimeError("the states did not come back in time: there is nothing to measure")
                _step_all(first, second)
                resident = found.resident_bytes()
                # The gradients' memory would do as room, and the daemon's mappings would keep it.
                found.session.synchronize()
                found.session.release_gradients()
                free()
                wanted = torch.cuda.mem_get_info()[0] + resident - 256 * MIB
                before = found.session.memory_stats()["stored_bytes"]
                begun = time.perf_counter_ns()
                found.session.make_room(wanted)
                times.append((time.perf_counter_ns() - begun) / 1e6)
                moved.append(found.session.memory_stats()["stored_bytes"] - before)
            # The pages have their host memory pinned in the background: the first to leave may wait for it.
            report.add(Row(f"{work}: the first, a moment after the states came", "ms", times.pop(0)))
            moved.pop(0)
            limit = bench.ms_of(statistics.median(moved), "to_host")
            label = f"{work}: {statistics.median(moved) / MIB:,.0f} MiB stored"
            report.add(Row(label, "ms", statistics.median(times), limit=limit))


def curve(bench: Bench, report: Report) -> None:
    """Step time against the share of pages that do not fit, all through one daemon, each under a quota of its own."""
    budgets = ["--device-budget", str(DEVICE_BYTES), "--host-budget", str(HOST_BYTES)]
    with private_daemon(bench, "paged-curve", *budgets) as path:
        resident_ms = pages = None
        for percent in range(0, 101, 10):
            work = f"AdamW 8-bit, 1e9 bf16, {percent}% of pages spilled"
            with report.guard(work, "ms"):
                if percent and not pages:
                    raise RuntimeError("how many pages there are is not known: the step with all resident failed")
                frames = None if not percent else max(STREAM_PAGES, round(pages * (100 - percent) / 100))
                quota = None if frames is None else frames * PAGE_BYTES
                with attached(bench, path, f"curve-{percent}", quota) as found:
                    result = _measure(found, "AdamW", bench.repeats(15, 5), empty=False, warm=3)
                if frames is None:
                    resident_ms, pages, frames = result.ms, result.pages, result.pages
                optimum = pages - frames
                link = _link_ms(bench, optimum)
                least = None if link is None else max(link, resident_ms)
                _rows(report, work, result, least, optimum)
                if percent == 50:
                    half = "AdamW 8-bit, 1e9 bf16, half of the states resident"
                    report.add(Row(half, "ms", result.ms, limit=link))


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


def _send_to_host(tensor: torch.Tensor) -> None:
    """Managed memory, on the default stream. The peer's own function for it fails with the 13.0 runtime, which takes a
    place where it was given a device's number."""
    host = 2  # CU_MEM_LOCATION_TYPE_HOST
    prefetch = ctypes.CDLL("libcuda.so.1").cuMemPrefetchAsync_v2
    prefetch.argtypes = [ctypes.c_uint64, ctypes.c_size_t, _Location, ctypes.c_uint, ctypes.c_void_p]
    code = prefetch(tensor.data_ptr(), tensor.nbytes, _Location(host, 0), 0, None)
    if code != 0:
        raise RuntimeError(f"cuMemPrefetchAsync to the host: error {code}")


def peer_paged(bench: Bench, report: Report) -> None:
    """bitsandbytes' paged optimizer: managed memory, moved to the host behind each step. It takes as much managed
    memory as the states need, 2 GB."""
    bitsandbytes = load_peer(bench.peers)
    for rule, states in STATES.items():
        work = f"{rule} 8-bit, 1e9 bf16, all states on the host"
        with report.guard(f"{work}: bitsandbytes", "ms"):
            params = parameters(LLAMA, DTYPE)
            optimizer = getattr(bitsandbytes.optim, f"Paged{rule}8bit")(params, lr=1e-4)

            def evict(optimizer=optimizer, states=states) -> None:
                for state in optimizer.state.values():
                    for key in [f"state{index}" for index in range(1, states + 1)]:
                        if getattr(state.get(key), "is_paged", False):
                            _send_to_host(state[key])

            fresh = FreshGradients(params)
            repeats = bench.repeats(7, 3)

            def prepare(fresh=fresh, evict=evict) -> None:
                fresh()
                evict()

            step = wall_ms(prepare, optimizer.step, repeats, 2)

            def step_once(fresh=fresh, step=optimizer.step) -> None:
                fresh()
                step()

            leave = wall_ms(step_once, evict, repeats, 0)
            report.add(Row(f"{work}: bitsandbytes' step", "ms", None, step, f"bitsandbytes Paged{rule}8bit"))
            report.add(Row(f"{work}: its eviction", "ms", None, leave, f"bitsandbytes Paged{rule}8bit"))
            known = bench.known
            name = "bitsandbytes, step and eviction"
            report.add(Row(work, "ms", known.get(f"ours {rule}"), step + leave, name, known.get(f"limit {rule}")))
            del optimizer, params, fresh
            free()


def ceilings(bench: Bench, report: Report) -> None:
    for measure in (copy_ceiling, link_ceilings, matmul_ceiling):
        measure(bench, report)


SECTIONS = [
    Section("ceilings", ceilings, 20),
    Section("AdamW, all on the host", all_on_host("AdamW"), 30),
    Section("Lion, all on the host", all_on_host("Lion"), 30),
    Section("AdamW, all on the host, managed frames", all_on_host("AdamW", "--frames", "managed"), 30),
    Section("curve", curve, 60),
    *stalls(),
    Section("room on request", room_on_request, 90),
    Section("bitsandbytes paged", peer_paged, 40),
]


def sections(bench: Bench) -> list[Section]:
    return SECTIONS
