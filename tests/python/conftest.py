"""Fixtures of the Python tests: the package from the source tree, and private daemons from the build folder."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
BUILD = pathlib.Path(os.environ.setdefault("BITPAGER_BUILD_DIR", str(ROOT / "build" / "release")))
PACKAGE = ROOT / "client" / "python"
if os.environ.get("BITPAGER_TEST_INSTALLED") != "1":
    sys.path.insert(0, str(PACKAGE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))

START_LIMIT_S = 10.0


class Daemon:
    """A bitpagerd of this test's own. `socket` is its path; stop() ends it and returns its exit code."""

    def __init__(self, folder, flags):
        program = os.environ.get("BITPAGERD") or str(BUILD / "bin" / "bitpagerd")
        if not os.access(program, os.X_OK):
            pytest.fail(f"{program} is not built. Hint: cmake --build {BUILD} --target bitpagerd bitpager_c")
        self.socket = str(folder / "d.sock")
        self.log = folder / "daemon.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([program, "--socket", self.socket, *flags], stdout=log, stderr=log)
        self._await_service()

    def _await_service(self):
        end = time.monotonic() + START_LIMIT_S
        while b"serving " not in self.log.read_bytes():  # its last word, when all of it is there
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                pytest.fail(f"bitpagerd did not serve {self.socket}:\n{self.log.read_text()}")
            time.sleep(0.005)

    def kill(self):
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                pytest.fail(f"bitpagerd did not stop within 10 s of SIGTERM:\n{self.log.read_text()}")
        return self.process.returncode


@pytest.fixture
def make_daemon():
    """make_daemon(*flags) -> Daemon; all are stopped when the test ends."""
    made, folders = [], []

    def make(*flags):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="bp-"))  # short: socket paths have 107 bytes
        folders.append(folder)
        made.append(Daemon(folder, flags))
        return made[-1]

    yield make
    import bitpager

    bitpager.disconnect()
    for daemon in made:
        daemon.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


SMALL = ("--device-budget", "64MiB", "--host-budget", "512MiB")


@pytest.fixture
def daemon(make_daemon):
    """A daemon with room for everything a small test does."""
    return make_daemon(*SMALL)


@pytest.fixture
def session(daemon):
    """A session of its own with `daemon`, which is not the default one."""
    import bitpager

    with bitpager.connect(socket=daemon.socket, job="test", linger=0, default=False) as made:
        yield made


@pytest.fixture
def overrides():
    """The process's GlobalOptimManager; what a test registers is forgotten with its end."""
    from bitpager.optim import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    yield manager
    manager.initialize()


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> (tensors, metadata) of tests/golden/<name>-golden.safetensors."""
    from safetensors import safe_open

    def load(name):
        with safe_open(str(GOLDEN / f"{name}-golden.safetensors"), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}

    return load


@pytest.fixture
def run_python():
    """run_python(source, *arguments, timeout=60, **environment) -> CompletedProcess of a new interpreter."""

    def run(source, *arguments, timeout=60, **environment):
        command = [sys.executable, "-c", source, *map(str, arguments)]
        env = {**os.environ, **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)

    return run
