"""What every GPU benchmark needs of the machine: clocks, cold caches, a daemon for the GPU, the card's own ceilings."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

DEVICE = "cuda:0"
FLUSH_BYTES = 256 << 20  # beyond any GPU's second-level cache
LINK_COPY_BYTES = 16 << 20
PAGE_BYTES = 512 << 10
WINDOW_PAGES = 32
STREAM_PAGES = 3 * WINDOW_PAGES  # the least budget at which load, step and write-back of whole windows overlap
EVICT_LIMIT_S = 10


@dataclass
class Bench:
    """What a section gets: where programs, logs and the peer are, flags, and `known`: the ceilings found so far, by
    name, in bytes or operations a second."""

    programs: Path
    logs: Path
    peers: Path
    quick: bool = False
    mps: bool = False
    tiny_cpu: bool = False  # gpu-train and gpu-oom on the processor, with models of no size: shows that they run
    known: dict = field(default_factory=dict)

    def ms_of(self, moved_bytes: float, ceiling: str) -> float | None:
        """Milliseconds that the bytes need at a ceiling; None when it was not measured."""
        rate = self.known.get(ceiling)
        return None if not rate else moved_bytes / rate * 1e3

    def repeats(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def synchronize() -> None:
    torch.cuda.synchronize()


_flush = []


def cool() -> None:
    """Fills the caches with something else."""
    if not _flush:
        _flush.append(torch.empty(FLUSH_BYTES // 4, device=DEVICE))
    _flush[0].add_(1.0)


def wall_times_ms(prepare: Callable, work: Callable, repeats: int, warm: int = 3) -> list[float]:
    """Wall times of [work(); synchronize], each behind prepare() and with cold caches."""
    times = []
    for index in range(warm + repeats):
        prepare()
        cool()
        synchronize()
        begun = time.perf_counter_ns()
        work()
        synchronize()
        if index >= warm:
            times.append((time.perf_counter_ns() - begun) / 1e6)
    return times


def wall_ms(prepare: Callable, work: Callable, repeats: int = 15, warm: int = 3) -> float:
    """Their median."""
    return statistics.median(wall_times_ms(prepare, work, repeats, warm))


def device_us(calls: list[Callable], repeats: int = 9, lead_cycles: int = 4_000_000) -> float:
    """Device time of one call, median over `repeats` rounds. A round runs every call once, one behind the other; each
    call has operands of its own, which together are larger than the cache. The stream is kept busy meanwhile, so that
    the processor is ahead."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for index in range(repeats + 2):
        cool()
        torch.cuda._sleep(lead_cycles)
        begin.record()
        for call in calls:
            call()
        end.record()
        synchronize()
        if index >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def percentile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# ---- ceilings ----


def copy_rate(size_bytes: int = 1 << 30) -> float:
    """Bytes a second, read and written together, of a copy within the device."""
    source = torch.ones(size_bytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size_bytes / (device_us([lambda: target.copy_(source)] * 4) / 1e6)


def matmul_rate(side: int = 8192) -> float:
    """bf16 operations a second on random data."""
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    return 2 * side**3 / (device_us([lambda: a @ b] * 8) / 1e6)


def link_rates(copies: int = 48) -> dict:
    """Bytes a second of pinned copies of 16 MiB: {"to_device", "to_host", "both"}; both: each way, both at once."""
    slots = 4
    host_in = [torch.ones(LINK_COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(slots)]
    host_out = [torch.ones(LINK_COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(slots)]
    device_in = [torch.empty(LINK_COPY_BYTES, dtype=torch.uint8, device=DEVICE) for _ in range(slots)]
    device_out = [torch.ones(LINK_COPY_BYTES, dtype=torch.uint8, device=DEVICE) for _ in range(slots)]
    inward, outward = torch.cuda.Stream(), torch.cuda.Stream()

    def move(to_device: bool, to_host: bool) -> None:
        for index in range(copies):
            slot = index % slots
            if to_device:
                with torch.cuda.stream(inward):
                    device_in[slot].copy_(host_in[slot], non_blocking=True)
            if to_host:
                with torch.cuda.stream(outward):
                    host_out[slot].copy_(device_out[slot], non_blocking=True)

    moved = copies * LINK_COPY_BYTES
    rates = {}
    for name, ways in (("to_device", (True, False)), ("to_host", (False, True)), ("both", (True, True))):
        rates[name] = moved / (wall_ms(lambda: None, lambda ways=ways: move(*ways), 5, 1) / 1e3)
    return rates


# ---- the daemon ----


def program_of(bench: Bench, name: str) -> Path:
    """bitpagerd or bitpager: the one in the folder named, or, where that is a script which starts Python first,
    the program behind it."""
    from bitpager import _lib

    named = bench.programs / name
    if named.is_file():
        with named.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                return named
    found = _lib.program_path(name)
    return named if found is None else Path(found)


class Attached:
    """A session at a daemon of its own, for the GPU."""

    def __init__(self, session, job: str, path: Path, command: Path):
        self.session = session
        self.job = job
        self._command = [str(command), "evict", job, "--socket", str(path)]

    def resident_bytes(self) -> int:
        return self.session.memory_stats()["resident_bytes"]

    def begin_evict(self) -> None:
        """Asks the daemon to move all of the job's pages off the device; returns once it has been asked."""
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=EVICT_LIMIT_S)
        if done.returncode != 0:
            raise RuntimeError(f"bitpager evict: {done.stderr.strip() or done.stdout.strip()}")

    def await_empty(self) -> float:
        """Waits until no page of the job is on the device; milliseconds that it took."""
        begun = time.perf_counter()
        while self.resident_bytes():
            if time.perf_counter() - begun > EVICT_LIMIT_S:
                raise RuntimeError(f"{self.resident_bytes()} bytes are still on the device {EVICT_LIMIT_S} s later")
            time.sleep(0.0002)
        return (time.perf_counter() - begun) * 1e3

    def evict(self) -> None:
        """Until nothing is on the device. Asks again, for pages that were in use when it asked."""
        until = time.monotonic() + EVICT_LIMIT_S
        while self.resident_bytes() and time.monotonic() < until:
            self.begin_evict()
            time.sleep(0.002)
        self.await_empty()

    def moved_since(self, before: dict) -> tuple[float, float]:
        """(pages in, pages out) since `before` = session.memory_stats()."""
        now = self.session.memory_stats()
        return tuple((now[key] - before[key]) / PAGE_BYTES for key in ("loaded_bytes", "stored_bytes"))


@contextmanager
def private_daemon(bench: Bench, name: str, *flags: str):
    """Path of the socket of a bitpagerd for the GPU; pages of PAGE_BYTES, windows of WINDOW_PAGES."""
    from private_daemon import Daemon

    shape = ["--device", "cuda", "--page-size", str(PAGE_BYTES), "--window-pages", str(WINDOW_PAGES)]
    shape += ["--test-handles", "false"]  # nothing but the work takes memory
    with tempfile.TemporaryDirectory(prefix="bp-bench-") as folder:
        path = Path(folder) / "d.sock"
        log = bench.logs / f"bench-{name}.log"
        with Daemon(program_of(bench, "bitpagerd"), path, [*shape, *flags], log, start_s=30):
            yield path


@contextmanager
def attached(bench: Bench, path: Path, job: str, device_quota_bytes: int | None = None):
    """Attached to a running daemon."""
    import bitpager
    from bitpager.optim import gather

    # Steps read their gradients by code that is compiled for the installed torch meanwhile, the first time: what is
    # measured is what a training has a moment after its first step.
    if gather.wait() is None:
        print(f"  (gradients are read in Python: {gather.report()})", flush=True)
    quota = {} if device_quota_bytes is None else {"device_quota": device_quota_bytes}
    with bitpager.connect(
        socket=str(path), job=job, linger=0, spawn=False, default=False, device=DEVICE, **quota
    ) as session:
        yield Attached(session, job, path, program_of(bench, "bitpager"))


@contextmanager
def session_of(bench: Bench, name: str, device_bytes: int, host_bytes: int, *flags: str):
    """Attached to a daemon of its own with these budgets."""
    budgets = ["--device-budget", str(device_bytes), "--host-budget", str(host_bytes)]
    with private_daemon(bench, name, *budgets, *flags) as path, attached(bench, path, name) as found:
        yield found
