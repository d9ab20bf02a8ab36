"""What the daemon says of its memory, beside what the driver and the OS say of it."""

from __future__ import annotations

import gc
import time

import gpu_daemon
import gpu_training
import pytest
import torch
from gpu_daemon import Http, first_gpu

PAGE = 512 << 10
# Frames come in segments of so many bytes; what the driver takes for itself beside them is less than one.
SEGMENT_BYTES = 64 << 20
HUGE_PAGE_BYTES = 2 << 20
FLAGS = ("--device-budget", str(640 * PAGE), "--host-budget", "1GiB", "--http", "127.0.0.1:0")
PATIENCE_S = 30


def used_bytes() -> int:
    """Of the whole GPU, as the driver says; nothing else may come or go on it meanwhile."""
    gc.collect()  # torch's first optimizer of a process lies in a cycle, and keeps its parameters
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def settled(read, enough_s: float = 1.0):
    """What read() says once it has said the same for a while."""
    end, last, since = time.monotonic() + PATIENCE_S, read(), time.monotonic()
    while time.monotonic() - since < enough_s:
        assert time.monotonic() < end, "it never settled"
        time.sleep(0.1)
        now = read()
        if now != last:
            last, since = now, time.monotonic()
    return last


def host_frames_bytes(process) -> int:
    """Resident bytes of the memory that a process has advised as the daemon does its host frames: in huge pages, and
    not copied at a fork."""
    resident, found, seen = 0, 0, False
    with open(f"/proc/{process.pid}/smaps") as file:
        for line in file:
            if line.startswith("Rss:"):
                found = int(line.split()[1]) * 1024
            elif line.startswith("VmFlags:") and {"hg", "dc"} <= set(line.split()):
                resident, seen = resident + found, True
    if not seen:
        pytest.skip("this system tells nothing of memory in huge pages")
    return resident


def begin(session, sizes=gpu_training.SMALL):
    params = gpu_training.parameters(torch.bfloat16, sizes)
    optimizer = gpu_training.make_optimizer("AdamW", params, session)
    gpu_training.train(optimizer, params, 1, 2)
    session.synchronize()
    return optimizer, params


def test_handles_are_tested_once_nobody_is_there(make_daemon):
    """The answer is this driver's; that there is one, and that nobody's memory was in the way, is ours."""
    used_bytes()  # this process's context is there, so that the session comes at once
    daemon = make_daemon(*FLAGS, "--test-handles", "true")
    http = Http(daemon)
    with gpu_daemon.connect(daemon, "early") as session:
        begin(session)
        before = used_bytes()
        until = time.monotonic() + 7
        while time.monotonic() < until:
            assert http.device()["ipc_survives"] == "not tested", "it was tested beside a session"
            assert used_bytes() <= before + (SEGMENT_BYTES // 2), "it was begun beside a session"
    until = time.monotonic() + PATIENCE_S
    while http.device()["ipc_survives"] == "not tested":
        assert time.monotonic() < until, http.device()["ipc_problem"]
    assert http.device()["ipc_survives"] in ("yes", "no"), http.device()["ipc_problem"]


def test_own_bytes_are_what_the_driver_says_we_took(make_daemon):
    daemon = make_daemon(*FLAGS)
    with gpu_daemon.connect(daemon, "warm") as session:
        begin(session)  # contexts, modules and queues, here and there, take what they take
        http = Http(daemon)
        # Only frames of a job that is there are compared: the warm one's are part of both figures.
        params = gpu_training.parameters(torch.bfloat16)
        optimizer = gpu_training.make_optimizer("AdamW", params, session)
        gpu_training.set_gradients(params, 1)
        torch.cuda.synchronize()
        # The client's tensors are there already; what comes now is the daemon's.
        before, ours_before = used_bytes(), http.device()["own_bytes"]
        optimizer.step()
        session.synchronize()
        after, device = used_bytes(), http.device()
        grown = device["own_bytes"] - ours_before
        assert grown >= SEGMENT_BYTES, "this shows nothing: no segment was needed"
        assert abs((after - before) - grown) <= SEGMENT_BYTES, (after - before, grown)
        assert device["used_bytes"] <= device["own_bytes"]
        free, total = torch.cuda.mem_get_info()
        assert abs(device["memory_total_bytes"] - total) <= SEGMENT_BYTES
        assert abs(device["memory_free_bytes"] - free) <= SEGMENT_BYTES


def test_memory_that_is_given_back_is_given_back(make_daemon):
    daemon = make_daemon(*FLAGS)
    with gpu_daemon.connect(daemon, "stays") as stays:
        begin(stays)
        http = Http(daemon)
        before, ours_before = used_bytes(), http.device()["own_bytes"]
        with gpu_daemon.connect(daemon, "goes") as goes:
            begin(goes, gpu_training.SHAPES)
            assert http.device()["own_bytes"] > ours_before, "this shows nothing: no segment was needed"
        end = time.monotonic() + PATIENCE_S
        while http.device()["own_bytes"] > ours_before:
            assert time.monotonic() < end, "segments that nobody needs stay"
        assert used_bytes() <= before + SEGMENT_BYTES


def test_pinned_host_memory_is_what_the_os_says(make_daemon):
    daemon = make_daemon(*FLAGS)
    with gpu_daemon.connect(daemon, "pins") as session:
        params = gpu_training.parameters(torch.bfloat16)
        optimizer = gpu_training.make_optimizer("AdamW", params, session)
        gpu_training.train(optimizer, params, 1, 2)
        session.synchronize()
        daemon.evict("pins")
        http = Http(daemon)
        device = settled(lambda: {k: http.device()[k] for k in ("pinned_host_bytes", "used_bytes")})
        assert device["used_bytes"] == 0
        pinned = device["pinned_host_bytes"]
        committed = http.status()["jobs"][0]["host_bytes"]
        assert pinned >= committed, "every frame that was stored is pinned"
        resident = host_frames_bytes(daemon.process)
        assert abs(resident - pinned) <= 2 * HUGE_PAGE_BYTES, (resident, pinned)  # the last page may be a huge one


def test_figures_of_jobs_add_up_while_they_train(make_daemon, start_job):
    # Less than one job's states: pages move whether or not the two train at the same time.
    daemon = make_daemon("--device-budget", str(160 * PAGE), "--host-budget", "1GiB", "--http", "127.0.0.1:0")
    http = Http(daemon)
    jobs = [start_job("gpu_training.py", "train", daemon.socket, name, 200, "AdamW", "bf16", "large") for name in "ab"]
    samples = 0
    while any(job.process.poll() is None for job in jobs):
        status = http.status()
        device = first_gpu(status)
        if not device["open"]:
            continue
        samples += 1
        for job_key, device_key in (
            ("resident_bytes", "used_bytes"),
            ("leased_bytes", "leased_bytes"),
            ("dirty_bytes", "dirty_bytes"),
        ):
            assert sum(job[job_key] for job in status["jobs"]) == device[device_key], job_key
        host = sum(job["host_bytes"] + job["buffer_bytes"] for job in status["jobs"])
        assert host == device["host_committed_bytes"]
        for reason, pages in device["evictions_by_reason"].items():
            parts = [j["evictions_by_reason"][reason] for j in status["jobs"] + status["past_jobs"]]
            assert sum(parts) == pages, reason
        assert device["used_bytes"] <= device["own_bytes"]
    assert samples > 2
    for job in jobs:
        job.finish()
    device = http.device()
    assert device["link"]["to_device_bytes_per_s"] > 1e9, "a GPU's link was measured"
    assert device["link"]["to_host_bytes_per_s"] > 1e9
    assert device["gpu"].isdigit() and device["uuid"].startswith("GPU-")
    text = http.text("/metrics")
    assert f'bitpager_device_own_bytes{{gpu="{device["gpu"]}",UUID="{device["uuid"]}"}}' in text
