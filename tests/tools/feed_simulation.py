"""A made-up node whose figures add up: what tests/tools/fake_feed.py serves.

Jobs stream pages through a device that is too small for them. Everything follows from the seed and the number of
ticks, so that two runs give the same figures.
"""

from __future__ import annotations

import random
import time

MIB = 1 << 20
BUFFER_BYTES = 3 * MIB  # of each job
REASONS = ("demand", "prefetch", "share", "limit", "command", "pressure", "closing")
BOUNDS_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2,
            0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # fmt: skip
KINDS = ("optimizer_state", "quantized_weight")

HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    '"><script>document.title="owned"</script>',
    "line\nbreak\ttab \x1b[31mred",
    "\u202eright-to-left",
    "naïve-Übung-训练-🙂",
    "__proto__",
    "constructor",
    "x" * 200,
    "",
)


class Histogram:
    def __init__(self):
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds):
        place = sum(seconds > bound for bound in BOUNDS_S)
        self.counts[place] += 1
        self.sum_s += seconds

    def body(self):
        return {"bounds_s": list(BOUNDS_S), "counts": list(self.counts), "sum_s": self.sum_s, "count": sum(self.counts)}


class Job:
    """One job on one device: cells of `per_cell` pages, of which some are resident and the rest on the host."""

    def __init__(self, number, name, pages, per_cell, rng, disk=False):
        self.id, self.name, self.pages = number, name, pages
        self.kind = KINDS[number % 3 == 1]
        self.on_disk = disk and self.kind == KINDS[1]
        self.sizes = [per_cell] * (pages // per_cell) + ([pages % per_cell] if pages % per_cell else [])
        self.resident = [0] * len(self.sizes)
        self.dirty = [0] * len(self.sizes)
        self.streaming = [0] * len(self.sizes)
        self.written = [False] * len(self.sizes)
        self.weight = 1 + number % 3
        self.step_s = rng.uniform(0.02, 0.4)
        self.phase = rng.random()
        self.steps = self.stall_ns = self.step_ns = self.step_last = self.stall_last = self.faults = 0
        self.moved = {way: dict.fromkeys(REASONS, 0) for way in ("to_device", "to_host", "dropped")}
        self.evictions = dict.fromkeys(REASONS, 0)

    def resident_pages(self):
        return sum(self.resident)


class Device:
    def __init__(self, index, kind, budget_pages, page_bytes):
        self.index, self.kind, self.budget_pages, self.page_bytes = index, kind, budget_pages, page_bytes
        self.uuid = f"GPU-{index:08x}-0000-4000-8000-000000000000" if kind == "cuda" else "CPU"
        self.jobs = []
        self.histograms = {name: Histogram() for name in ("step", "stall", "fault", "request")}


class Node:
    """jobs: names; pages: of all jobs together; devices: how many GPUs (0: the CPU); disk: weights lie on disk."""

    def __init__(self, jobs=("llama-sft", "vit-large"), pages=4000, devices=1, budget_share=0.55, cells=1024, seed=7,
                 disk=False):  # fmt: skip
        self.disk = disk
        self.rng = random.Random(seed)
        self.page_bytes = 2 * MIB
        self.begun = time.time()
        self.ticks = 0
        self.pid = 4242
        self.draining = False
        self.errors = {}
        self.sessions_lost = 0
        count = max(devices, 1)
        each = pages // max(len(jobs), 1)
        self.per_cell = max(1, -(-pages // (cells - len(jobs))))
        kind = "cuda" if devices else "cpu"
        self.devices = [Device(i, kind, int(pages / count * budget_share), self.page_bytes) for i in range(count)]
        for number, name in enumerate(jobs):
            size = max(4, int(each * (0.6 + 0.8 * (number % 4) / 3)))
            self.devices[number % count].jobs.append(Job(number + 1, name, size, self.per_cell, self.rng, disk))

    def tick(self):
        """One second passes."""
        self.ticks += 1
        for device in self.devices:
            weights = sum(job.weight for job in device.jobs) or 1
            for job in device.jobs:
                self._move(device, job, int(device.budget_pages * job.weight / weights * 0.97))

    def _move(self, device, job, share):
        """The job's window goes on; what is over the share leaves, dirty pages with a copy."""
        cells = len(job.sizes)
        job.streaming = [0] * cells
        job.phase = (job.phase + 0.07) % 1
        head = int(job.phase * cells)
        for place in range(head, min(cells, head + max(1, cells // 12))):
            come = job.sizes[place] - job.resident[place]
            job.moved["to_device"]["demand"] += come * device.page_bytes
            job.resident[place] = job.streaming[place] = job.sizes[place]
            job.written[place] = True
            job.dirty[place] = job.sizes[place] if job.kind == KINDS[0] else 0
        place = (head + cells // 2) % cells
        while job.resident_pages() > share:
            gone, dirty = job.resident[place], job.dirty[place]
            reason = self.rng.choice(("demand", "demand", "demand", "share", "pressure"))
            job.moved["to_host"][reason] += dirty * device.page_bytes
            job.moved["dropped"][reason] += (gone - dirty) * device.page_bytes
            job.evictions[reason] += gone
            job.resident[place] = job.dirty[place] = job.streaming[place] = 0
            place = (place + 1) % cells
        for _ in range(max(1, int(1 / job.step_s))):
            seconds = job.step_s * self.rng.uniform(0.9, 1.3)
            stall = seconds * self.rng.uniform(0.02, 0.3)
            device.histograms["step"].add(seconds)
            device.histograms["stall"].add(stall)
            job.steps += 1
            job.step_last, job.stall_last = int(seconds * 1e9), int(stall * 1e9)
            job.step_ns += job.step_last
            job.stall_ns += job.stall_last
            job.faults += 2

    def drop(self, name):
        """The job's process was killed."""
        for device in self.devices:
            device.jobs = [job for job in device.jobs if job.name != name]
        self.sessions_lost += 1

    def _job_body(self, device, job):
        resident = job.resident_pages() * device.page_bytes
        total = job.pages * device.page_bytes

        def of_kind(value):
            return {kind: value if kind == job.kind else 0 for kind in KINDS}

        host, disk = (0, total) if job.on_disk else (total, 0)
        return {
            "id": job.id, "name": job.name, "device": device.uuid, "uid": 1000, "sessions": 1, "lingering": False,
            "linger_left_ms": 0, "weight": float(job.weight), "device_quota_bytes": 0, "host_quota_bytes": 0,
            "pages": job.pages, "resident_bytes": resident, "host_bytes": host, "disk_bytes": disk,
            "leased_bytes": resident // 4 if job.kind == KINDS[1] else 0,
            "dirty_bytes": sum(job.dirty) * device.page_bytes,
            "buffer_bytes": BUFFER_BYTES, "bytes_by_kind": of_kind(total), "resident_bytes_by_kind": of_kind(resident),
            "host_by_kind": of_kind(host), "disk_by_kind": of_kind(disk),
            "share_bytes": device.budget_pages * device.page_bytes // 2,
            "loaded_bytes": sum(job.moved["to_device"].values()), "stored_bytes": sum(job.moved["to_host"].values()),
            "dropped_bytes": sum(job.moved["dropped"].values()), "steps": job.steps, "stall_ns": job.stall_ns,
            "step_ns": job.step_ns, "step_ns_last": job.step_last,
            "stall_ns_last": job.stall_last, "nonfinite_blocks": 0, "faults": job.faults,
            "evictions_by_reason": dict(job.evictions), "extents": [], "last_event": "attach",
            "saved_bytes": {"states_32bit": total * 3 if job.kind == KINDS[0] else 0,
                            "weights_16bit": total * 2 if job.kind == KINDS[1] else 0},
        }  # fmt: skip

    def _device_body(self, device):
        used = sum(job.resident_pages() for job in device.jobs)
        page, budget = device.page_bytes, device.budget_pages
        evictions = {reason: sum(job.evictions[reason] for job in device.jobs) for reason in REASONS}
        moved = {
            way: {reason: sum(job.moved[way][reason] for job in device.jobs) for reason in REASONS}
            for way in ("to_device", "to_host", "dropped")
        }
        return {
            "kind": device.kind, "uuid": device.uuid, "name": "Simulated", "open": True,
            "gpu": str(device.index) if device.kind == "cuda" else "cpu",
            "budget_bytes": budget * page, "used_bytes": used * page, "free_bytes": (budget - used) * page,
            "budget_frames": budget, "used_frames": used, "free_frames": budget - used,
            "host_budget_bytes": 4 * budget * page,
            "host_committed_bytes": sum((not job.on_disk) * job.pages * page + BUFFER_BYTES for job in device.jobs),
            "disk_budget_bytes": 2 * budget * page if self.disk else 0,
            "disk_committed_bytes": sum(job.on_disk * job.pages * page for job in device.jobs),
            "memory_total_bytes": 2 * budget * page, "memory_free_bytes": budget * page // 2,
            "own_bytes": budget * page, "pressure_ratio": used / budget if budget else 0.0,
            "link": {"to_device_bytes_per_s": 50_000_000_000, "to_host_bytes_per_s": 48_000_000_000},
            "evictions_by_reason": evictions, "moved_by_reason": moved,
            "histograms": {name: histogram.body() for name, histogram in device.histograms.items()},
        }  # fmt: skip

    def status(self):
        """The snapshot, as /api/status gives it."""
        devices = [self._device_body(device) for device in self.devices]
        jobs = [self._job_body(device, job) for device in self.devices for job in device.jobs]
        sessions = [
            {"id": job["id"], "pid": 1000 + job["id"], "uid": 1000, "job": job["name"], "device": job["device"],
             "rank": 0, "client": "simulated", "outstanding": 0} for job in jobs
        ]  # fmt: skip
        totals = {key: sum(job[key] for job in jobs) for key in
                  ("loaded_bytes", "stored_bytes", "dropped_bytes", "steps", "stall_ns", "nonfinite_blocks")}
        totals.update(requests=totals["steps"], sessions_opened=len(jobs), sessions_lost=self.sessions_lost)
        return {
            "schema_version": 1, "time_unix_ms": int((self.begun + self.ticks) * 1000), "version": "0.1.0",
            "pid": self.pid, "uptime_ms": self.ticks * 1000, "draining": self.draining, "private": False,
            "socket": "/run/bitpager/bitpager.sock", "policy": "scan", "page_bytes": self.page_bytes, "window_pages": 8,
            "host_budget_bytes": sum(device["host_budget_bytes"] for device in devices),
            "host_committed_bytes": sum(device["host_committed_bytes"] for device in devices),
            "devices": devices, "jobs": jobs, "sessions": sessions, "totals": totals, "errors": dict(self.errors),
        }  # fmt: skip

    @staticmethod
    def _away(job, i):
        return job.sizes[i] - job.resident[i] if job.written[i] else 0

    def page_map(self):
        """The map, as /api/pages gives it."""
        devices = []
        for device in self.devices:
            cells = [
                [number, job.resident[i] - job.streaming[i], job.dirty[i],
                 self._away(job, i), job.streaming[i], self._away(job, i) if job.on_disk else 0]
                for number, job in enumerate(device.jobs)
                for i in range(len(job.sizes))
            ]
            devices.append({
                "uuid": device.uuid, "gpu": str(device.index) if device.kind == "cuda" else "cpu", "kind": device.kind,
                "page_bytes": device.page_bytes, "pages": sum(job.pages for job in device.jobs),
                "pages_per_cell": self.per_cell, "jobs": [job.name for job in device.jobs], "cells": cells,
            })  # fmt: skip
        return {"schema_version": 1, "devices": devices}
