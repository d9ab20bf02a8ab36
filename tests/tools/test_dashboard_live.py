"""The dashboard that bitpagerd itself serves, before two jobs that really train, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BITPAGER_BUILD_DIR", ROOT / "build" / "release"))
LIMIT_S = 20.0
# Each job has 66 pages of 64 KiB; the device may hold 64.
FLAGS = ("--device", "cpu", "--page-size", "64KiB", "--device-budget", "4MiB", "--host-budget", "256MiB",
         "--threads", "1", "--window-pages", "4", "--http", "127.0.0.1:0")  # fmt: skip
JOBS = ("first", "second")


def environment(**more):
    package = [] if os.environ.get("BITPAGER_TEST_INSTALLED") == "1" else [str(ROOT / "client" / "python")]
    path = os.pathsep.join([*package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "BITPAGER_BUILD_DIR": str(BUILD), "OMP_WAIT_POLICY": "passive", **more}


class LiveNode:
    """A bitpagerd with its HTTP address, and the processes that train under it."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="bp-"))
        self.socket, self.log = self.folder / "d.sock", self.folder / "daemon.log"
        self.jobs = {}
        self.daemon = None

    def start(self, *flags):
        program = os.environ.get("BITPAGERD") or str(BUILD / "bin" / "bitpagerd")
        if not os.access(program, os.X_OK):
            pytest.fail(f"{program} is not built. Hint: cmake --build {BUILD} --target bitpagerd bitpager_c")
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen([program, "--socket", str(self.socket), *flags], stdout=log, stderr=log)
        end = time.monotonic() + LIMIT_S
        address = re.compile(r"http://127\.0\.0\.1:(\d+)")
        while not self.socket.exists() or (found := address.search(self.log.read_text())) is None:
            assert self.daemon.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{found[1]}/"

    def train(self, name, width=1024, pause_s=0.05):
        job = [sys.executable, str(Path(__file__).with_name("training_job.py")), str(width), str(pause_s)]
        with open(self.folder / "jobs.log", "ab") as log:
            settings = environment(BITPAGER_SOCKET=str(self.socket), BITPAGER_JOB=name)
            self.jobs[name] = subprocess.Popen(job, env=settings, stdout=log, stderr=log)

    def status(self):
        with urllib.request.urlopen(self.url + "api/status", timeout=5) as answer:
            return json.load(answer)

    def signal(self, number):
        for job in self.jobs.values():
            job.send_signal(number)

    def close(self):
        for process in [*self.jobs.values(), self.daemon]:
            if process is not None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def node():
    made = LiveNode()
    yield made
    made.close()


def shown(browser):
    """What the page shows: bytes by place, and the table's rows by job."""
    return browser.run("""
      const bytes = id => Number(document.getElementById(id).dataset.bytes);
      const rows = [...document.querySelectorAll('#jobs tbody tr')].map(row => [row.dataset.job, {
        resident: row.querySelector('[data-column=resident]').title,
        host: row.querySelector('[data-column=host]').title, dirty: row.querySelector('[data-column=dirty]').title,
        sessions: row.querySelector('[data-column=sessions]').textContent }]);
      return { device: bytes('device-used'), host: bytes('host-used'), rows: Object.fromEntries(rows) }""")


def stands_for(status):
    """The same of a snapshot."""
    device = status["devices"][0]
    rows = {
        job["name"]: {**{key: f"{job[key + '_bytes']:,} bytes" for key in ("resident", "host", "dirty")},
                      "sessions": str(job["sessions"])} for job in status["jobs"]
    }  # fmt: skip
    return {"device": device["used_bytes"], "host": device["host_committed_bytes"], "rows": rows}


def test_two_jobs_train_under_the_dashboard(chromium, node):
    node.start(*FLAGS)
    for name in JOBS:
        node.train(name)
    chromium.size(1280, 800)
    chromium.open(node.url)
    chromium.wait_text("#state-text", "Live")
    chromium.wait("both jobs", lambda: sorted(shown(chromium)["rows"]) == list(JOBS))
    chromium.wait("pages that are moved", lambda: "iB/s" in chromium.text("#tiles dd"))
    chromium.wait_text("#panel-evict .legend", "demand")
    for job in JOBS:
        chromium.wait_text("#events", job)

    # While both stand still, what is shown is what the daemon says, to the byte.
    node.signal(signal.SIGSTOP)
    chromium.wait("the figures of /api/status", lambda: shown(chromium) == stands_for(node.status()))
    assert node.status()["devices"][0]["used_bytes"] <= 4 << 20
    cells = chromium.text("#map-note")
    assert cells.startswith(f"{sum(job['pages'] for job in node.status()['jobs'])} pages of 64.0 KiB"), cells
    before = node.status()["totals"]["steps"]
    node.signal(signal.SIGCONT)
    chromium.wait("steps that go on", lambda: node.status()["totals"]["steps"] > before + 4)

    node.jobs[JOBS[0]].kill()
    chromium.wait_text("#events li", "killed")
    chromium.wait("one job", lambda: list(shown(chromium)["rows"]) == [JOBS[1]])

    # A daemon that is gone, and another at the same address.
    node.daemon.kill()
    node.daemon.wait()
    chromium.wait_text("#state-text", "Disconnected since")
    address = node.url.removeprefix("http://").rstrip("/")
    assert all(url.startswith((node.url, "data:")) for url in chromium.requests())
    node.start(*FLAGS[:-1], address)
    chromium.click("#retry")
    chromium.wait_text("#state-text", "Live")
    chromium.wait_text("#jobs-empty", "No job is attached")
    assert chromium.complaints() == []
