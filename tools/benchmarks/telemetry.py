"""Group telemetry: what looking costs. 70,000 pages of 16 jobs: one scrape, one status, one page map, a listener at
1 Hz; and steps with a scrape a second beside steps without."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import Setting
from rows import Row

JOBS = 16
PAGES = 70_000
PAGE_BYTES = 16 << 10
ELEMENTS_OF_PAGE = 2048  # 32-bit Adam states: 8 units of 256 elements
ELEMENTS = PAGES // JOBS * ELEMENTS_OF_PAGE
FLAGS = ("--device", "cpu", "--device-budget", "1400MiB", "--host-budget", "6GiB", "--page-size", str(PAGE_BYTES))
REPEATS = 25
# Longer than answers share a snapshot.
APART_S = 0.3
LISTEN_S = 10.0
SECOND = 1.0
PAIRS = 12


class Use:
    """CPU seconds of the daemon's threads, by their names."""

    def __init__(self, pid: int):
        self._tasks = Path(f"/proc/{pid}/task")

    def read(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for task in self._tasks.iterdir():
            with contextlib.suppress(OSError):
                name = (task / "comm").read_text().strip()
                ran = int((task / "schedstat").read_text().split()[0]) / 1e9
                seconds[name] = seconds.get(name, 0) + ran
        return seconds

    def total(self) -> float:
        return sum(self.read().values())


class Site:
    """The daemon's answers over one kept connection."""

    def __init__(self, address: str):
        self.address = address
        self._line = http.client.HTTPConnection(address, timeout=20)

    def get(self, path: str) -> bytes:
        self._line.request("GET", path)
        answer = self._line.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
        return body


def _address(daemon) -> str:
    for line in daemon.log_tail().splitlines():
        if "http://" in line:
            return line.rsplit("http://", 1)[1].strip()
    raise RuntimeError("the daemon's log names no address")


def _jobs(stack: contextlib.ExitStack, socket: str) -> list:
    """An optimizer of each job, whose pages were all written."""
    import bitpager

    optimizers = []
    for job in range(JOBS):
        session = stack.enter_context(bitpager.connect(socket=socket, job=f"job-{job}", spawn=False, default=False))
        param = torch.nn.Parameter(torch.ones(ELEMENTS, dtype=torch.bfloat16))
        param.grad = torch.ones_like(param)
        optimizer = bitpager.optim.PagedAdamW32bit([param], lr=1e-3, session=session).prepare()
        optimizer.step()
        optimizers.append(optimizer)
    return optimizers


def _costs(site: Site, use: Use, path: str) -> tuple[float, float]:
    """Wall and CPU milliseconds of one answer that shares nothing with another; medians."""
    walls, cpus = [], []
    for _ in range(REPEATS):
        time.sleep(APART_S)
        before, begun = use.total(), time.perf_counter()
        site.get(path)
        walls.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.02)
        cpus.append((use.total() - before) * 1e3)
    return statistics.median(walls), statistics.median(cpus)


class Listener(threading.Thread):
    """Reads a daemon's stream until it is told to stop."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self._line = http.client.HTTPConnection(address, timeout=20)
        self._line.request("GET", "/api/stream?cells=1024")
        self._answer = self._line.getresponse()
        self._ending = threading.Event()
        self.bytes = 0

    def run(self) -> None:
        while not self._ending.is_set():
            self.bytes += len(self._answer.readline())

    def stop(self) -> None:
        self._ending.set()
        self.join()
        self._line.close()


class Stepping(threading.Thread):
    """One job after the other steps, a few times a second."""

    def __init__(self, optimizers: list, pause_s: float):
        super().__init__(daemon=True)
        self._optimizers, self._pause_s, self._ending = optimizers, pause_s, threading.Event()

    def run(self) -> None:
        turn = 0
        while not self._ending.wait(self._pause_s):
            self._optimizers[turn % len(self._optimizers)].step()
            turn += 1

    def stop(self) -> None:
        self._ending.set()
        self.join()


def _share(use: Use, seconds: float, threads: tuple[str, ...]) -> float:
    """Percent of a core that these threads of the daemon take."""
    before, begun = use.read(), time.perf_counter()
    time.sleep(seconds)
    after, took = use.read(), time.perf_counter() - begun
    return 100 * sum(after.get(name, 0) - before.get(name, 0) for name in threads) / took


def _listened(site: Site, use: Use, optimizers: list) -> list[Row]:
    """Percent of a core: all of the daemon while nothing steps; what a listener alone can cause while jobs step."""
    silent = _share(use, LISTEN_S / 2, tuple(use.read()))
    listener = Listener(site.address)
    listener.start()
    idle = _share(use, LISTEN_S, tuple(use.read()))
    stepping = Stepping(optimizers, 0.25)
    stepping.start()
    busy = _share(use, LISTEN_S, ("bp-http",))
    stepping.stop()
    listener.stop()
    return [
        Row("daemon, nothing steps, nobody listens", "% of a core", silent),
        Row("daemon, nothing steps, one listener at 1 Hz", "% of a core", idle, limit=5.0),
        Row("its HTTP thread, jobs step, one listener at 1 Hz", "% of a core", busy, limit=5.0),
        Row("sent to the listener", "KB a second", listener.bytes / 1e3 / (2 * LISTEN_S)),
    ]


def _steps_ms(optimizer, seconds: float) -> list[float]:
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter_ns()
        optimizer.step()
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return times


def _scraped(site: Site, optimizer) -> list[Row]:
    """Steps of one job: seconds with a scrape in them beside seconds without, in turn."""
    _steps_ms(optimizer, SECOND)
    without, scraped = [], []
    for pair in range(PAIRS):
        for scrapes in (False, True) if pair % 2 == 0 else (True, False):
            timer = threading.Timer(SECOND / 2, site.get, ["/metrics"]) if scrapes else None
            if timer:
                timer.start()
            # The mean is what a user waits for; medians would hide the one step that a scrape may delay.
            (scraped if scrapes else without).append(statistics.fmean(_steps_ms(optimizer, SECOND)))
            if timer:
                timer.join()
    ratio = statistics.median(a / b for a, b in zip(scraped, without))
    ours, base = statistics.median(scraped), statistics.median(without)
    return [
        Row("one job's step, a scrape each second", "ms", ours, base, "no scrape"),
        Row("its steps take longer by", "%", 100 * (ratio - 1), limit=1.0),
    ]


def run(setting: Setting) -> list[Row]:
    from private_daemon import Daemon

    with tempfile.TemporaryDirectory(prefix="bitpager-bench-") as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "d.sock"
        log = setting.logs / "bench-telemetry.log"
        program = setting.programs / "bitpagerd"
        daemon = stack.enter_context(Daemon(program, path, [*FLAGS, "--http", "127.0.0.1:0"], log))
        site, use = Site(_address(daemon)), Use(daemon._process.pid)
        optimizers = _jobs(stack, str(path))
        pages = sum(job["pages"] for job in json.loads(site.get("/api/status"))["jobs"])
        rows = []
        for what in ("/metrics", "/api/status", "/api/pages?cells=1024"):
            wall, cpu = _costs(site, use, what)
            rows.append(Row(f"GET {what}, {pages:,} pages, {JOBS} jobs: wall", "ms", wall))
            rows.append(Row(f"GET {what}, {pages:,} pages, {JOBS} jobs: CPU", "ms", cpu))
        rows += _listened(site, use, optimizers)
        rows += _scraped(site, optimizers[0])
        return rows
