"""Several jobs at one daemon: at once, killed in mid-step, faulting; the others' numbers stay what they are alone."""

from __future__ import annotations

import json
import os
import signal
import time

import gpu_daemon
import gpu_training
import pytest
import torch

PAGE = 512 << 10
KILLS = int(os.environ.get("BITPAGER_GPU_KILLS", "20"))
# Room for less than one victim's states: they are killed while pages move.
TIGHT = ("--device-budget", str(160 * PAGE), "--host-budget", "1GiB", "--window-pages", "16")
SLACK_BYTES = 96 << 20  # one segment of frames, and what the driver keeps


def alone(start_job, daemon, steps, *how):
    return start_job("gpu_training.py", "train", daemon.socket, "alone", steps, *how).finish()["digest"]


def begun(start_job, daemon):
    """A steady job that trains by now."""
    job = start_job("gpu_training.py", "steady", daemon.socket, "steady")
    assert job.line() == {"ready": True}
    return job


def test_two_jobs_at_once_do_not_disturb_each_other(make_daemon, start_job):
    daemon = make_daemon(*TIGHT)
    kinds = [("AdamW", "bf16", "large"), ("Lion", "fp32", "large")]
    expected = [alone(start_job, daemon, 40, *kind) for kind in kinds]
    jobs = [start_job("gpu_training.py", "train", daemon.socket, kind[0], 40, *kind) for kind in kinds]
    assert [job.finish()["digest"] for job in jobs] == expected


def free_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def resident_memory_bytes(process) -> int:
    """Of a process, in RAM; pinned frames are shared memory and count."""
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.hang_s(240 + 8 * KILLS)
def test_jobs_killed_in_mid_step_leave_others_and_memory_alone(make_daemon, start_job):
    daemon = make_daemon(*TIGHT)
    steady = begun(start_job, daemon)
    start_job("kill_loop.py", daemon.socket, 2).finish()
    before, before_host = free_bytes(), resident_memory_bytes(daemon.process)
    assert start_job("kill_loop.py", daemon.socket, KILLS).finish() == {"kills": KILLS}
    after, after_host = free_bytes(), resident_memory_bytes(daemon.process)
    noisy = steady.finish()
    assert noisy["digest"] == alone(start_job, daemon, noisy["steps"])
    assert after >= before - SLACK_BYTES, f"{(before - after) >> 20} MiB of the GPU are gone"
    assert after_host <= before_host + SLACK_BYTES, f"the daemon grew by {(after_host - before_host) >> 20} MiB"


def test_frames_of_killed_jobs_can_be_had_whole(make_daemon, start_job):
    daemon = make_daemon("--device-budget", str(240 * PAGE), "--host-budget", "256MiB")
    start_job("kill_loop.py", daemon.socket, 3).finish()
    with gpu_daemon.connect(daemon, "heir") as session:
        params = gpu_training.parameters(torch.bfloat16)
        # 180 pages that never leave: not to be had while one victim's are still held.
        optimizer = gpu_training.make_optimizer("AdamW", params, session, paged=False).prepare()
        gpu_training.train(optimizer, params, 1, 2)
        session.synchronize()
        assert session.memory_stats()["pages"] >= 179


WILD = """
import os, sys
import bitpager, gpu_training, torch
session = gpu_training.connect(sys.argv[1], "wild")
params = gpu_training.parameters(torch.bfloat16)
optimizer = gpu_training.make_optimizer("AdamW", params, session)
gpu_training.train(optimizer, params, 1, 3)
torch.cuda.synchronize()
gpu_training.set_gradients(params, 4)
try:
    wild = torch.cuda._compile_kernel('extern "C" __global__ void wild() { *(volatile int*)0x8 = 1; }', "wild")
    wild(grid=(1, 1, 1), block=(1, 1, 1), args=[])
except (AttributeError, TypeError, ImportError, OSError, RuntimeError):
    torch.zeros(4, device=gpu_training.DEVICE)[torch.tensor([1 << 30], device=gpu_training.DEVICE)]
# The fault keeps this step from ever being ready; it may raise here or be left to the daemon.
try:
    optimizer.step()
except Exception:
    pass
try:
    torch.cuda.synchronize()
    fault = ""
except Exception as error:
    fault = type(error).__name__ + ": " + str(error).splitlines()[0]
try:
    session.synchronize()
    told = ""
except bitpager.DeviceFaultError as error:
    told = str(error)
session.close()  # nobody waits for streams that never go on
gpu_training.say(fault=fault, told=told)
os._exit(0)
"""


@pytest.mark.isolation
def test_a_fault_in_one_client_leaves_the_others_working(daemon, start_job, tmp_path):
    steady = begun(start_job, daemon)
    script = tmp_path / "wild.py"
    script.write_text(WILD)
    path = os.pathsep.join([str(gpu_daemon.HERE), os.environ.get("PYTHONPATH", "")])
    wild = start_job(str(script), daemon.socket, PYTHONPATH=path)
    said = wild.finish()
    assert said["fault"], "the wild kernel did no harm: this test shows nothing"
    assert said["told"], "its own session did not tell it"
    assert daemon.process.poll() is None, daemon.log()
    noisy = steady.finish()
    assert noisy["digest"] == alone(start_job, daemon, noisy["steps"])


LOST = """
import sys, time
import bitpager, gpu_training, torch
cycles = int(float(sys.argv[2]) * gpu_training.cycles_per_second())
session = gpu_training.connect(sys.argv[1], "lost")
params = gpu_training.parameters(torch.bfloat16, gpu_training.SMALL)
optimizer = gpu_training.make_optimizer("AdamW", params, session)
gpu_training.train(optimizer, params, 1, 3)
torch.cuda.synchronize()
gpu_training.set_gradients(params, 4)
torch.cuda.synchronize()
busy = torch.cuda.Event()
torch.cuda._sleep(cycles)
busy.record()
optimizer.step()
gpu_training.say(queued=True)
busy.synchronize()
begun = time.monotonic()
torch.cuda.synchronize()
waited = time.monotonic() - begun
names = []
for call in (session.synchronize, optimizer.step):
    try:
        call()
        names.append("nothing")
    except bitpager.Error as error:
        names.append(type(error).__name__)
x = torch.ones(1000, device=gpu_training.DEVICE).sum().item()
gpu_training.say(waited=waited, names=names, works=x == 1000)
"""
BUSY_S = 1.0  # the stream reaches the step so long after it was queued
STOPPED_S = 1.3


@pytest.mark.parametrize("stopped", [False, True], ids=["at work", "stopped"])
def test_a_killed_daemon_lets_waiting_streams_go(daemon, start_job, tmp_path, stopped):
    """stopped: it is killed while the stream waits for it already."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    path = os.pathsep.join([str(gpu_daemon.HERE), os.environ.get("PYTHONPATH", "")])
    job = start_job(str(script), daemon.socket, BUSY_S, PYTHONPATH=path)
    assert job.line() == {"queued": True}
    if stopped:
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
    daemon.kill()
    killed = time.monotonic()
    said = job.line()
    if stopped:
        assert time.monotonic() - killed < 1.5
    else:
        assert said["waited"] < 1.0, said
    assert "DaemonLostError" in said["names"] and "nothing" not in said["names"][1:], said
    assert said["works"], "the client's own GPU work must go on"


@pytest.mark.parametrize("setting", ["", "expandable_segments:True"])
def test_numbers_do_not_depend_on_the_allocator(daemon, start_job, setting):
    """Expandable segments cannot be imported by IPC handle: they take another way."""

    with gpu_daemon.connect(daemon, "here") as session:
        params = gpu_training.parameters(torch.bfloat16)
        optimizer = gpu_training.make_optimizer("AdamW", params, session)
        gpu_training.train(optimizer, params, 1, 10)
        session.synchronize()
        expected = gpu_training.digest(params)
    job = start_job(
        "gpu_training.py", "train", daemon.socket, "there", 10, "AdamW", "bf16", "large",
        PYTORCH_CUDA_ALLOC_CONF=setting, PYTORCH_ALLOC_CONF=setting,
    )  # fmt: skip
    assert job.finish() == {"steps": 10, "digest": expected}


def test_visible_devices_are_told_apart_by_uuid(daemon, start_job):
    """What is cuda:0 in one process may be another number elsewhere; with one GPU at least the mapping is exercised."""
    uuid = str(torch.cuda.get_device_properties(gpu_training.DEVICE).uuid)
    uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    expected = alone(start_job, daemon, 5)
    job = start_job("gpu_training.py", "train", daemon.socket, "uuid", 5, CUDA_VISIBLE_DEVICES=uuid)
    assert job.finish()["digest"] == expected
    with gpu_daemon.connect(daemon, "by-uuid", device=uuid) as session:
        assert session.device_uuid == uuid, json.dumps(session.info())
