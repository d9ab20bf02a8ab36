"""A fault of the GPU in the daemon itself: its clients are told, go on with work of their own, and it ends.

The fault comes from outside: a library that the test loads into the daemon (fault_preload.cc) runs a kernel that traps.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time

import gpu_daemon
import pytest

END_S = 60

TRAINING = """
import sys
import bitpager, gpu_training, torch
session = gpu_training.connect(sys.argv[1], sys.argv[2])
params = gpu_training.parameters(torch.bfloat16, gpu_training.SMALL)
optimizer = gpu_training.make_optimizer("AdamW", params, session)
step, error = 0, None
while error is None:
    step += 1
    try:
        gpu_training.train(optimizer, params, step, step)
        session.synchronize()
    except bitpager.Error as caught:
        error = caught
    if step == 3:
        gpu_training.say(ready=error is None)
torch.cuda.synchronize()
x = torch.ones(1000, device=gpu_training.DEVICE).sum().item()
gpu_training.say(error=type(error).__name__, text=str(error), works=x == 1000)
"""


@pytest.fixture(scope="session")
def fault_library(tmp_path_factory):
    """fault_preload.cc, compiled."""
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = next((c for c in [named, ["g++"], ["c++"], ["clang++"]] if c and shutil.which(c[0])), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler (g++ or CXX) to build the library with that makes the fault")
    library = tmp_path_factory.mktemp("fault") / "fault.so"
    source = gpu_daemon.HERE / "fault_preload.cc"
    command = [*compiler, "-std=c++17", "-O1", "-fPIC", "-shared", str(source), "-o", str(library), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, timeout=120)
    return library


@pytest.fixture
def doomed(make_daemon, fault_library, tmp_path, monkeypatch):
    """(a daemon, a function that makes a fault on its GPU)."""
    trigger = tmp_path / "fault"
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(fault_library))
        patched.setenv("BITPAGER_TEST_FAULT", str(trigger))
        daemon = make_daemon("--device-budget", "1GiB", "--host-budget", "1GiB")

    def fault():
        trigger.write_text("")
        until = time.monotonic() + END_S
        while not (said := trigger.read_text().strip()):
            assert time.monotonic() < until, "the daemon did not load the library that makes the fault"
            time.sleep(0.01)
        if said.startswith("cuModuleLoadData"):
            pytest.skip(f"this driver does not compile the kernel that makes the fault ({said})")
        assert said == "launched", said

    return daemon, fault


@pytest.fixture
def start_training(start_job, tmp_path):
    """start_training(daemon, name) -> Job that trains until its daemon fails."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    path = os.pathsep.join([str(gpu_daemon.HERE), os.environ.get("PYTHONPATH", "")])
    return lambda daemon, name: start_job(str(script), daemon.socket, name, PYTHONPATH=path)


def test_clients_are_told_of_a_fault_and_the_daemon_ends(doomed, start_training):
    daemon, fault = doomed
    jobs = [start_training(daemon, name) for name in ("one", "two")]
    for job in jobs:
        assert job.line() == {"ready": True}
    fault()
    for job in jobs:
        said = job.line()
        assert said["error"] == "DeviceFaultError", said
        assert said["works"], "the client's own GPU work must go on"
        job.finish()
    assert daemon.process.wait(END_S) == 1, daemon.log()
    assert "device fault" in daemon.log()


def test_a_new_daemon_serves_after_a_fault(doomed, make_daemon, start_job, start_training):
    daemon, fault = doomed
    expected = start_job("gpu_training.py", "train", daemon.socket, "before", 5).finish()["digest"]
    assert start_training(daemon, "one").line() == {"ready": True}
    fault()
    assert daemon.process.wait(END_S) == 1, daemon.log()
    successor = make_daemon("--device-budget", "1GiB", "--host-budget", "1GiB")
    assert start_job("gpu_training.py", "train", successor.socket, "after", 5).finish()["digest"] == expected
