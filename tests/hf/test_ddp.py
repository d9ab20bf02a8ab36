"""DistributedDataParallel over ranks of one job on the CPU (gloo): each rank is a session of its own."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import pytest
import torch

pytest.importorskip("peft")
HERE = pathlib.Path(__file__).resolve().parent


def run(daemon, folder, out, world, script="ddp_rank.py"):
    """The results of `world` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "BITPAGER_SOCKET": daemon.socket,
        "BITPAGER_JOB": f"ddp-{world}",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), folder, str(out / f"{world}-{rank}.pt")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(out / f"{world}-{rank}.pt") for rank in range(world)]


def test_ranks_of_one_job_agree_and_learn_what_one_process_learns(shared_daemon, models, tmp_path):
    folder = models("llama")
    first, second = run(shared_daemon, folder, tmp_path, 2)
    (alone,) = run(shared_daemon, folder, tmp_path, 1)
    assert first["job"] == second["job"] == "ddp-2"
    for rank in (first, second):  # each is a session of the one job
        assert rank["sessions"] == {0: first["pid"], 1: second["pid"]} and rank["sessions_of_job"] == [2]
    assert torch.equal(first["packed"], second["packed"])
    for name, value in first["adapters"].items():
        assert torch.equal(value, second["adapters"][name]), name
    # Means over halves differ from the mean over all by rounding alone, which 8-bit states and signs of tiny
    # gradients may widen: most of the update is the same.
    moved = [name for name in alone["adapters"] if "lora_B" in name]
    for name in moved:
        one, two = first["adapters"][name].float(), alone["adapters"][name].float()
        assert torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.9, name


def test_trainer_trains_over_ranks(shared_daemon, models, tmp_path):
    first, second = run(shared_daemon, models("llama"), tmp_path, 2, "ddp_trainer_rank.py")
    assert first["job"] == second["job"] == "ddp-2" and first["optimizer"] == "PagedAdamW8bit"
    for name, value in first["adapters"].items():
        assert torch.equal(value, second["adapters"][name]), name
    assert any(bool(value.any()) for name, value in first["adapters"].items() if "lora_B" in name)
