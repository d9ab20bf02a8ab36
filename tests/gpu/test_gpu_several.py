"""Two GPUs and one daemon: who is meant is told by UUID, whatever numbers a process has for them, and a job on each is
as fast as alone."""

from __future__ import annotations

import gpu_daemon
import pytest
import torch
from gpu_daemon import Http, uuid_of

PAGE = 512 << 10
STEPS = 400
ROUNDS = 5
MAY_COST = 1.05

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs two GPUs, torch sees {torch.cuda.device_count()}"
)
HTTP = ("--http", "127.0.0.1:0")
WIDE = ("--device-budget", "1GiB", "--host-budget", "1GiB", *HTTP)
# Of the 180 pages of a job some come over the link at each step.
TIGHT = ("--device-budget", str(120 * PAGE), "--host-budget", "1GiB", "--window-pages", "16", *HTTP)


def jobs_by_device(http) -> dict:
    """{UUID of each GPU that is open: names of the jobs on it}."""
    status = http.status()
    found = {device["uuid"]: [] for device in status["devices"] if device["open"]}
    for job in status["jobs"]:
        found[job["device"]].append(job["name"])
    return found


def train(start_job, daemon, name, visible):
    """A digest of what ten steps on the first of the GPUs `visible` make."""
    job = start_job(
        "gpu_training.py", "train", daemon.socket, name, 10, "AdamW", "bf16", "large", CUDA_VISIBLE_DEVICES=visible
    )
    return job.finish()["digest"]


@pytest.mark.parametrize("others", [False, True], ids=["alone", "before the first"])
def test_a_process_that_sees_the_second_gpu_first_is_served_there(make_daemon, start_job, others):
    daemon = make_daemon(*WIDE)
    http = Http(daemon)
    first, second = uuid_of(0), uuid_of(1)
    visible = f"{second},{first}" if others else second
    job = start_job("gpu_training.py", "steady", daemon.socket, "steady", CUDA_VISIBLE_DEVICES=visible)
    assert job.line() == {"ready": True}
    assert jobs_by_device(http) == {second: ["steady"]}
    # The daemon's own numbers are those of a process that sees all.
    with gpu_daemon.connect(daemon, "here", device="cuda:1") as session:
        assert session.device_uuid == second
    job.finish()


def test_jobs_on_two_gpus_get_the_numbers_that_they_get_alone(make_daemon, start_job):
    daemon = make_daemon(*TIGHT)
    visible = [uuid_of(0), uuid_of(1)]
    expected = [train(start_job, daemon, f"alone-{i}", visible[i]) for i in range(2)]
    jobs = [
        start_job(
            "gpu_training.py", "train", daemon.socket, f"both-{i}", 10, "AdamW", "bf16", "large",
            CUDA_VISIBLE_DEVICES=visible[i],
        )
        for i in range(2)
    ]  # fmt: skip
    assert [job.finish()["digest"] for job in jobs] == expected


def start_timed(start_job, daemon, index):
    job = start_job(
        "gpu_training.py", "timed", daemon.socket, f"timed-{index}", STEPS, CUDA_VISIBLE_DEVICES=uuid_of(index)
    )
    assert job.line() == {"ready": True}
    return job


def best_of_rounds(jobs) -> list:
    """The fastest round of each, all of them at work in each round."""
    best = [float("inf")] * len(jobs)
    for _ in range(ROUNDS):
        for job in jobs:
            job.process.stdin.write("go\n")
            job.process.stdin.flush()
        best = [min(before, job.line()["seconds"]) for before, job in zip(best, jobs)]
    return best


@pytest.mark.parametrize("flags", [WIDE, TIGHT], ids=["resident", "paged"])
def test_jobs_on_two_gpus_are_as_fast_as_alone(make_daemon, start_job, flags, capsys):
    daemon = make_daemon(*flags)
    alone = []
    for index in range(2):
        job = start_timed(start_job, daemon, index)
        alone += best_of_rounds([job])
        job.finish()
    jobs = [start_timed(start_job, daemon, index) for index in range(2)]
    together = best_of_rounds(jobs)
    for job in jobs:
        job.finish()
    said = [
        f"GPU {index}: {both / STEPS * 1e3:.3f} ms a step beside another, {one / STEPS * 1e3:.3f} alone"
        for index, (one, both) in enumerate(zip(alone, together))
    ]
    with capsys.disabled():  # the figures that README has
        print("", *said, sep="\n  ")
    for one, both, text in zip(alone, together, said):
        assert both <= MAY_COST * one, text
