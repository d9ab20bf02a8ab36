"""Two LoRA jobs that load one model with from_pretrained: the base is held once, and both train and decode as alone."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

pytest.importorskip("peft")
HERE = pathlib.Path(__file__).resolve().parent


class Job:
    def __init__(self, daemon, name, model, out):
        self.out = out / f"{name}.pt"
        environment = {
            **os.environ,
            "BITPAGER_SOCKET": daemon.socket,
            "BITPAGER_JOB": name,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]]),
        }
        command = [sys.executable, str(HERE / "base_job.py"), model, str(self.out)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stats(self):
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(30)}"
        return json.loads(line)

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def numbers(self):
        self.go_on()
        assert self.process.wait(60) == 0
        return torch.load(self.out)


@pytest.mark.parametrize("budget", ["16MiB", "1MiB"])
def test_two_jobs_on_one_model_hold_it_once(make_daemon, models, tmp_path, budget):
    flags = ("--device", "cpu", "--device-budget", budget, "--host-budget", "256MiB")
    flags += ("--page-size", "16KiB", "--window-pages", "8")
    folder = models("llama")
    daemon = make_daemon(*flags)
    first = Job(daemon, "first", folder, tmp_path)
    base = first.stats()["weight_bytes"]
    second = Job(daemon, "second", folder, tmp_path)
    assert second.stats()["shared_bytes"] == base
    for job in (first, second):
        job.go_on()
    stats = [job.stats() for job in (first, second)]
    assert sum(each["weight_bytes"] for each in stats) == base
    one, two = first.numbers(), second.numbers()
    alone = Job(make_daemon(*flags, "--share-weights", "false"), "alone", folder, tmp_path)
    assert alone.stats()["shared_bytes"] == 0
    alone.go_on()
    alone.stats()
    reference = alone.numbers()
    for each in (one, two):
        assert each["losses"] == reference["losses"]
        assert torch.equal(each["tokens"], reference["tokens"])
