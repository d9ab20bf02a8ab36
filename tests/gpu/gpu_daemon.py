"""Private daemons on the first GPU, sessions with them, and jobs in processes of their own."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import gpu_training
import pytest
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
JOB_LIMIT_S = 180


def program(name: str) -> str:
    """Path of bitpagerd or bitpager."""
    named = os.environ.get("BITPAGERD")
    places = [pathlib.Path(named).parent] if named else []
    places += [ROOT / "bin", pathlib.Path(os.environ.get("BITPAGER_BUILD_DIR", ROOT / "build" / "release")) / "bin"]
    for place in places:
        if os.access(place / name, os.X_OK):
            return str(place / name)
    from bitpager import _lib

    found = _lib.program_path(name)
    if found is None:
        pytest.fail(f"{name} is not built. Hint: set BITPAGERD, or build the release preset")
    return str(found)


def uuid_of(index: int) -> str:
    """Of torch's GPU, as the daemon says it."""
    found = str(torch.cuda.get_device_properties(index).uuid)
    return found if found.startswith("GPU-") else f"GPU-{found}"


def no_managed_memory():
    """Why the daemon has no managed frames on torch's first GPU; None when it has."""
    concurrent_managed_access = 89
    driver = ctypes.CDLL("libcuda.so.1")
    device, value = ctypes.c_int(), ctypes.c_int()
    assert driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert driver.cuDeviceGetAttribute(ctypes.byref(value), concurrent_managed_access, device) == 0
    return None if value.value else f"{torch.cuda.get_device_name(0)} has no concurrent managed access"


class GpuDaemon:
    """A bitpagerd of this test's own; `socket` is its path. It makes no test of its own, which would take memory of the
    GPU for a while, unless `flags` say so."""

    def __init__(self, folder: pathlib.Path, flags):
        from private_daemon import Daemon

        self.socket = str(folder / "d.sock")
        if "--test-handles" not in flags:
            flags = ["--test-handles", "false", *flags]
        flags = ["--device", "cuda", "--poison-frames", *flags]
        self._daemon = Daemon(pathlib.Path(program("bitpagerd")), pathlib.Path(self.socket), flags, folder / "log", 30)
        self._daemon.__enter__()
        self.process = self._daemon._process

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self._daemon._stop()

    def log(self) -> str:
        return self._daemon.log_tail()

    def evict(self, job: str) -> None:
        """All pages of the job leave the device as soon as they can."""
        command = [program("bitpager"), "evict", job, "--socket", self.socket]
        subprocess.run(command, check=True, capture_output=True, timeout=10)


def first_gpu(status: dict) -> dict:
    """Its part of a snapshot of all GPUs."""
    (found,) = [d for d in status["devices"] if d["uuid"] == uuid_of(0)]
    return found


class Http:
    """A daemon's answers over HTTP; its address stands in its log."""

    def __init__(self, daemon):
        until = time.monotonic() + 10  # it serves clients first
        while time.monotonic() < until:
            for line in daemon.log().splitlines():
                if "http://" in line:
                    self.url = "http://" + line.rsplit("http://", 1)[1].strip()
                    return
            time.sleep(0.05)
        pytest.fail(f"no address in the log:\n{daemon.log()}")

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read().decode()

    def device(self) -> dict:
        """The first GPU's part of the snapshot."""
        return first_gpu(self.status())

    def status(self) -> dict:
        time.sleep(0.3)  # answers of a quarter of a second share one snapshot
        return json.loads(self.text("/api/status"))


def connect(daemon, job: str, **options):
    """A session of `job` for the first GPU."""
    import bitpager

    options = {"linger": 0, "spawn": False, "default": False, "device": gpu_training.DEVICE, **options}
    return bitpager.connect(socket=daemon.socket, job=job, **options)


class Job:
    """A program of this folder, running. It says one JSON object a line."""

    def __init__(self, script: str, *arguments, **environment):
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        self._errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)

    def line(self) -> dict:
        """The next thing it says."""
        text = self.process.stdout.readline()
        if not text:
            self.process.wait(JOB_LIMIT_S)
            pytest.fail(f"the job ended with code {self.process.returncode}:\n{self.errors()}")
        return json.loads(text)

    def finish(self, code: int = 0) -> dict:
        """Ends its input, waits for its end; the last thing that it said."""
        out, _ = self.process.communicate(timeout=JOB_LIMIT_S)
        assert self.process.returncode == code, f"code {self.process.returncode}:\n{out}{self.errors()}"
        return json.loads(out.strip().splitlines()[-1]) if out.strip() else {}

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:]
