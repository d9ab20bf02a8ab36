"""Jobs on one frozen base: its pages are held once, and nothing about it changes a number."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import bitpager
import pytest
import torch

HERE = pathlib.Path(__file__).resolve().parent
LAYERS, WIDTH = 12, 2048


class Job:
    """base_job.py as job `name` of a daemon."""

    def __init__(self, daemon, name, out):
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "base_job.py"), str(out), str(LAYERS), str(WIDTH)],
            env={**os.environ, "BITPAGER_SOCKET": daemon.socket, "BITPAGER_JOB": name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, event):
        """Its memory_stats() when it says `event`."""
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(30)} before it was {event}"
        said = json.loads(line)
        assert said["event"] == event
        return said["stats"]

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.go_on()
        assert self.process.wait(60) == 0
        return torch.load(self.out)


def held(job):
    return job["host_bytes"]


_alone = {}


@pytest.fixture
def alone(make_daemon, tmp_path):
    """The numbers of a job whose base is its own."""
    if not _alone:
        job = Job(make_daemon(*flags("128MiB"), "--share-weights", "false"), "alone", tmp_path / "alone.pt")
        assert job.told("loaded")["shared_bytes"] == 0
        job.go_on()
        job.told("trained")
        _alone.update(job.end())
    return _alone


def flags(budget):
    return ("--device-budget", budget, "--host-budget", "512MiB", "--page-size", "64KiB", "--window-pages", "4")


def equal(one, other):
    return one["losses"] == other["losses"] and all(map(torch.equal, one["adapters"], other["adapters"]))


@pytest.mark.parametrize("budget", ["128MiB", "4MiB"])
def test_a_second_job_adds_next_to_nothing(make_daemon, alone, tmp_path, budget):
    daemon = make_daemon(*flags(budget))
    first = Job(daemon, "first", tmp_path / "first.pt")
    base = held(first.told("loaded"))
    assert base > LAYERS * WIDTH * WIDTH // 2
    second = Job(daemon, "second", tmp_path / "second.pt")
    stats = second.told("loaded")
    assert stats["shared_bytes"] == base
    first.go_on()
    one = first.told("trained")
    second.go_on()
    two = second.told("trained")
    assert one["state_bytes"] == two["state_bytes"] > 0
    added = held(one) + held(two) - base - one["state_bytes"]
    print(f"base {base}, the second job adds {added}: {100 * added / base:.2f}%")
    assert added < 0.03 * base
    assert equal(second.end(), alone)
    assert equal(first.end(), alone)


def test_a_killed_first_loader_takes_nothing_along(make_daemon, alone, tmp_path):
    daemon = make_daemon(*flags("8MiB"))
    first = Job(daemon, "first", tmp_path / "first.pt")
    first.told("loaded")
    second = Job(daemon, "second", tmp_path / "second.pt")
    second.told("loaded")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(30)
    second.go_on()
    stats = second.told("trained")
    assert stats["shared_bytes"] == 0
    assert held(stats) >= LAYERS * WIDTH * WIDTH // 2, "all of it is the second's now"
    assert equal(second.end(), alone)


def test_a_weight_may_be_kept_to_itself(daemon):
    values = torch.randn(256, 256)
    with (
        bitpager.connect(socket=daemon.socket, job="one", default=False) as one,
        bitpager.connect(socket=daemon.socket, job="two", default=False) as two,
    ):
        mine = bitpager.Weight.from_tensor(values, session=one)
        own = bitpager.Weight.from_tensor(values, session=two, share=False)
        assert one.memory_stats()["shared_bytes"] == two.memory_stats()["shared_bytes"] == 0
        equal_one = bitpager.Weight.from_tensor(values, session=two)
        assert two.memory_stats()["shared_bytes"] > 0
        assert torch.equal(mine.dequantize(), own.dequantize())
        equal_one.quantize_(values + 1)
        assert two.memory_stats()["shared_bytes"] == 0
        assert torch.equal(mine.dequantize(), own.dequantize())
        assert not torch.equal(mine.dequantize(), equal_one.dequantize())
