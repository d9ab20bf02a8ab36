"""Fixtures of the GPU tests: private daemons on the first GPU, jobs in processes of their own, recorded results.

Every test here is skipped, with the reason, where torch sees no GPU. Programs: BITPAGERD, else those of the bundle or
of the build folder. A test that hangs ends the run with its stack after HANG_S seconds. BITPAGER_GPU_MPS=1: all of it
under an MPS daemon of the run's own; tests of what MPS gives up are skipped.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pathlib
import shutil
import sys
import tempfile

import pytest
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN = ROOT / "tests" / "golden"
PACKAGE = ROOT / "client" / "python"
HANG_S = 240
BUILD_S = 600  # compiling against torch's headers, on a busy machine
UNDER_MPS = os.environ.get("BITPAGER_GPU_MPS") == "1"

sys.path[:0] = [str(HERE), str(ROOT / "tools"), str(ROOT / "tools" / "benchmarks")]
if PACKAGE.is_dir() and os.environ.get("BITPAGER_TEST_INSTALLED") != "1":
    os.environ.setdefault("BITPAGER_BUILD_DIR", str(ROOT / "build" / "release"))
    sys.path.insert(0, str(PACKAGE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))

from gpu_daemon import GpuDaemon, Job, connect  # noqa: E402 - behind the paths
from gpu_mps import mps  # noqa: E402


def no_gpu():
    """Why nothing here can run; None when it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return None


def pytest_collection_modifyitems(items):
    here = [item for item in items if HERE in pathlib.Path(item.fspath).parents]
    reason = no_gpu() if here else None
    for item in here:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif UNDER_MPS and item.get_closest_marker("isolation"):
            item.add_marker(pytest.mark.skip(reason="MPS: a fault in one client ends them all"))


def pytest_configure(config):
    config.addinivalue_line("markers", f"hang_s(seconds): how long the test may take; {HANG_S} without it")
    config.addinivalue_line("markers", "isolation: a client's fault ends that client alone, which MPS cannot promise")
    if not UNDER_MPS:
        return
    running = contextlib.ExitStack()
    try:
        running.enter_context(mps())  # before anything here makes a context
    except RuntimeError as why:
        raise pytest.UsageError(f"BITPAGER_GPU_MPS=1: {why}") from why
    config.add_cleanup(running.close)


@pytest.fixture(scope="session")
def plain_stderr(request):
    """Standard error as it was before pytest took it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        file = os.fdopen(os.dup(2), "w")
    yield file
    file.close()


@pytest.fixture(scope="session", autouse=True)
def compiled_allocator(plain_stderr, tmp_path_factory):
    """(the library of the allocator's callback, None), compiled anew and put where sessions look for it, so that no
    test's time goes into it; (None, why not)."""
    from bitpager import allocator, compiled

    faulthandler.dump_traceback_later(BUILD_S, exit=True, file=plain_stderr)
    try:
        folder = pathlib.Path(torch.__file__).parent
        fresh = tmp_path_factory.mktemp("allocator")
        made = allocator.build(folder, torch.__version__, compiled.cxx11(torch), fresh)
        kept = compiled.cache_folder() / made.name
        if not kept.exists():
            beside = kept.with_suffix(f".{os.getpid()}")
            shutil.copy(made, beside)
            os.replace(beside, kept)
        return made, None
    except compiled.Unavailable as why:
        return None, str(why)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def compiled_gather(compiled_allocator):
    """Whether gradients are read by compiled code, and why not, as gather.report() says. It is awaited: from here on
    steps take it."""
    from bitpager.optim import gather

    gather.wait()
    return gather.report()


@pytest.fixture(autouse=True)
def hang_guard(request, plain_stderr):
    """Ends the whole run, with its stack, when a test hangs in a call that nothing can interrupt."""
    marker = request.node.get_closest_marker("hang_s")
    faulthandler.dump_traceback_later(marker.args[0] if marker else HANG_S, exit=True, file=plain_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def make_daemon():
    """make_daemon(*flags) -> GpuDaemon; all are stopped when the test ends."""
    made, folders = [], []

    def make(*flags):
        folders.append(pathlib.Path(tempfile.mkdtemp(prefix="bp-gpu-")))
        made.append(GpuDaemon(folders[-1], flags))
        return made[-1]

    yield make
    import bitpager

    bitpager.disconnect()
    try:
        for daemon in made:
            daemon.stop()
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def daemon(make_daemon):
    """A daemon with room for everything a small test does."""
    return make_daemon("--device-budget", "1GiB", "--host-budget", "1GiB")


@pytest.fixture
def session(daemon):
    """A session with `daemon`, which is not the default one."""
    with connect(daemon, "test") as made:
        yield made


@pytest.fixture
def start_job():
    """start_job(script, *arguments, **environment) -> Job; all are ended with the test."""
    made = []

    def start(script, *arguments, **environment):
        made.append(Job(script, *arguments, **environment))
        return made[-1]

    yield start
    for job in made:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait()


@pytest.fixture(scope="session")
def gpu_golden():
    """gpu_golden(name) -> (tensors, metadata) of tests/golden/<name>.safetensors."""
    from safetensors import safe_open

    def load(name):
        with safe_open(str(GOLDEN / f"{name}.safetensors"), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}

    return load
