"""Group telemetry: what looking costs. 70,000 pages of 16 jobs: one scrape, one status, one page map, a listener at
1 Hz; and short blocks of steps with a scrape in them beside blocks without."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import Setting
from rows import Row
from scraping import CONFIDENCE, Scraper, median_interval

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
# Of steps: short, since a machine's slow drift then meets both of a pair.
BLOCK_S = 0.25
PAIRS = 150


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


def _block(optimizer, steps: int, scraper: Scraper | None = None) -> float:
    """Seconds of so many steps; a scrape begins behind the first of them, and is over before this returns."""
    begun = time.perf_counter()
    optimizer.step()
    if scraper:
        scraper.begin()
    for _ in range(steps - 1):
        optimizer.step()
    took = time.perf_counter() - begun
    if scraper and scraper.end() == 0:
        raise RuntimeError("a scrape brought nothing")
    return took


def _scraped(site: Site, optimizer) -> list[Row]:
    """What a scrape each second costs one job's steps: pairs of blocks, one with a scrape in it, in random order. What
    the scrape adds to its block it adds to a second of steps."""
    steps = max(3, round(5 * BLOCK_S / min(_block(optimizer, 5) for _ in range(10))))
    order = random.Random(5)
    scraper = Scraper(site.address)
    _block(optimizer, steps, scraper)
    step_ms, percents = [], []
    for _ in range(PAIRS):
        took = {}
        _block(optimizer, max(1, round(steps * APART_S / BLOCK_S)))  # no scrape shares the snapshot of the last
        for scrapes in order.sample((False, True), 2):
            took[scrapes] = _block(optimizer, steps, scraper if scrapes else None)
        step_ms.append(1e3 * took[False] / steps)
        ratio = took[True] / took[False]
        percents.append(100 * (ratio - 1) * took[False])
    scraper.close()
    median, low, high = median_interval(percents)
    named = f"{100 * CONFIDENCE:.0f}% interval of {PAIRS} pairs of {steps} steps"
    return [
        Row("one job's step, no scrape", "ms", statistics.median(step_ms)),
        Row("its steps take longer by, a scrape each second", "%", median, limit=1.0),
        Row(f"{named}: from", "%", low, limit=1.0),
        Row(f"{named}: to", "%", high, limit=1.0),
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
