"""Private daemons on the first GPU, sessions with them, and jobs in processes of their own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import gpu_training
import pytest

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


class GpuDaemon:
    """A bitpagerd of this test's own on the first GPU; `socket` is its path."""

    def __init__(self, folder: pathlib.Path, flags):
        from private_daemon import Daemon

        self.socket = str(folder / "d.sock")
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
