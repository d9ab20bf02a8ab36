"""What the tests of dashboards and alerts run against: bitpagerd with training processes, and Debian's Prometheus, that
scrapes it and evaluates the alert rules; both on free ports and in folders of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "tools" / "dashboards" / "prometheus" / "bitpager-alerts.yaml"
CONFIG = ROOT / "tools" / "dashboards" / "prometheus" / "prometheus.yaml"
LIMIT_S = 60.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says


def python_fixtures():
    """tests/python/conftest.py, once: the package's and the daemon's places are its."""
    name = "python_fixtures"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "python" / "conftest.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def await_that(what: str, holds, limit_s=LIMIT_S):
    """What holds() returns as soon as it is true; AssertionError after the limit."""
    end = time.monotonic() + limit_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


def get(url: str, timeout=10.0) -> str:
    """The body; OSError when there is none."""
    with DIRECT.open(url, timeout=timeout) as reply:
        return reply.read().decode()


def _free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Trains until its input ends; "nan" gives one step a gradient with NaN.
_TRAINING = """
import select, sys, torch, bitpager
torch.set_num_threads(1)
session = bitpager.connect(socket=sys.argv[1], job=sys.argv[2], linger=0, device_quota=sys.argv[3])
p = torch.nn.Parameter(torch.ones(600_000))
optimizer = bitpager.optim.PagedAdamW8bit([p])
layer = bitpager.nn.Linear4bit.from_linear(torch.nn.Linear(256, 256))
said = False
while True:
    ready, _, _ = select.select([sys.stdin], [], [], 0.05)
    line = sys.stdin.readline() if ready else "step"
    if not line:
        break
    p.grad = torch.full_like(p, float("nan") if "nan" in line else 1e-3)
    try:
        optimizer.step()
    except bitpager.NonFiniteError:
        pass
    layer(torch.ones(1, 256))
    if not said:
        print("training", flush=True)
        said = True
"""


class Job:
    """A process that trains."""

    def __init__(self, path: str, name: str, quota: str):
        command = [sys.executable, "-c", _TRAINING, path, name, quota]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def await_training(self):
        """Returns when its first step is done."""
        assert self.process.stdout.readline() == "training\n", f"the job ended with {self.process.wait()}"
        return self

    def say(self, word: str):
        """Gives it a word."""
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def kill(self):
        """As the kernel does when memory is out."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Lets it end by itself."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class Node:
    """A bitpagerd that serves HTTP, in a short folder, and its jobs."""

    def __init__(self, *flags):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="bp-"))
        self.jobs = []
        self.daemon = python_fixtures().Daemon(self._folder, (*flags, "--http", "127.0.0.1:0"))
        self.address = self.status()["http"]

    def train(self, name: str, quota="0"):
        """A job that trains from now on."""
        self.jobs.append(Job(self.daemon.socket, name, quota))
        return self.jobs[-1]

    def status(self) -> dict:
        """The daemon's own snapshot."""
        import bitpager

        return bitpager.telemetry.status(socket=self.daemon.socket)

    def metrics(self) -> str:
        """What a scrape gets."""
        return get(f"http://{self.address}/metrics")

    def close(self):
        for job in self.jobs:
            job.stop()
        self.daemon.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


READY, TAKEN = "ready", "taken"


class Prometheus:
    """Debian's server, with tools/dashboards' rules without their waits, scraping `target` each half second."""

    def __init__(self, target: str):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="prom-"))
        rules = re.sub(r"(?m)^(\s+)for: \d+m$", r"\1for: 0s", RULES.read_text())
        (self._folder / RULES.name).write_text(rules)
        config = CONFIG.read_text()
        for given, wanted in (("15s", "500ms"), ('"127.0.0.1:9790"', f'"{target}"')):
            assert given in config
            config = config.replace(given, wanted)
        (self._folder / "prometheus.yaml").write_text(config)
        self._log = self._folder / "log"
        for _ in range(5):
            self._start()
            if await_that("Prometheus is ready", self._is_ready) == READY:
                return
        raise AssertionError(f"no port stayed free: {self._log.read_text()}")

    def _start(self):
        self.address = f"127.0.0.1:{_free_port()}"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder}/prometheus.yaml",
                    f"--storage.tsdb.path={self._folder}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "GOMAXPROCS": "1"},
            )

    def _is_ready(self):
        """READY, TAKEN (somebody was quicker to take the port), or None."""
        if self._process.poll() is not None:
            said = self._log.read_text()
            assert "address already in use" in said, said
            return TAKEN
        try:
            get(f"http://{self.address}/-/ready")
        except OSError:
            return None
        return READY

    def ask(self, path: str, **parameters):
        """The "data" of an API call; AssertionError, with its words, when Prometheus refuses it."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            reply = json.loads(get(url))
        except urllib.error.HTTPError as error:
            reply = json.loads(error.read())
        assert reply["status"] == "success", f"{parameters}: {reply.get('error')}"
        return reply["data"]

    def query(self, expression: str) -> list:
        """The series of an instant query."""
        return self.ask("query", query=expression)["result"]

    def firing(self) -> dict:
        """{alert: [labels]} of what fires now."""
        found = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)
