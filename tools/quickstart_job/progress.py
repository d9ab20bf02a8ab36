"""Runs jobs as child processes and shows how they get on: bars in place on a terminal, else a line now and then."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

BAR = 24
LINE_EVERY_STEPS = 20


class Job:
    """A child process. `latest` is its newest progress, `result` its last word."""

    def __init__(self, title: str, command: list[str], log: Path, events: queue.Queue):
        self.title = title
        self.latest: dict = {}
        self.result: dict | None = None
        self._log = log
        self._begun = time.monotonic()
        environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONUNBUFFERED="1")
        self._errors = log.open("w")
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, stdin=subprocess.DEVNULL, text=True, env=environment
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.Queue) -> None:
        for line in self._process.stdout:
            if line.startswith("{"):
                events.put((self, json.loads(line)))
        events.put((self, {"event": "end", "code": self._process.wait()}))

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def error(self, code: int) -> str:
        tail = "\n".join("    | " + line for line in self._log.read_text(errors="replace").splitlines()[-15:])
        return f"{self.title} ended with {code} before its result. The end of {self._log}:\n{tail}"

    def line(self) -> str:
        done = self.latest.get("step", 0)
        steps = self.latest.get("steps", 1)
        full = BAR * done // steps
        losses = ""
        if done:
            losses = f"loss {self.latest['loss']:5.3f}  held-out {self.latest['heldout']:5.3f}"
        seconds = time.monotonic() - self._begun
        return f"  {self.title:<28} [{'#' * full}{'.' * (BAR - full)}] {done:>3}/{steps:<3} {losses}  {seconds:3.0f} s"


class Screen:
    """Shows jobs' lines."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._drawn = 0

    def update(self, jobs: list[Job], job: Job) -> None:
        if not self._in_place:
            if job.latest.get("step", 0) % LINE_EVERY_STEPS == 0:
                print(job.line(), flush=True)
            return
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A")
        for each in jobs:
            sys.stdout.write("\x1b[2K" + each.line()[:118] + "\n")
        self._drawn = len(jobs)
        sys.stdout.flush()


def follow(jobs: list[Job], events: queue.Queue, on_event) -> None:
    """Until every job has ended. on_event(job, event) may add to `jobs`. RuntimeError when a job fails; the others
    are then stopped."""
    screen, ended = Screen(), 0
    try:
        while ended < len(jobs):
            job, event = events.get()
            kind = event.pop("event")
            if kind == "step":
                job.latest = event
                screen.update(jobs, job)
            elif kind == "result":
                job.result = event
            elif kind == "end":
                ended += 1
                if event["code"] != 0 or job.result is None:
                    raise RuntimeError(job.error(event["code"]))
            else:
                on_event(job, kind)
    finally:
        for job in jobs:
            job.stop()
