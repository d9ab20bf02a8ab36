"""Paged steps behind 300 ms of forward and backward: how much longer an iteration takes than with all states resident.

The stand-in for a model has a 1B-Llama's parameters in buckets (the embedding, 16 layers). A bucket's forward and
backward are bf16 matmuls, a third of them in forward; its backward hands out new gradients. The processor waits for the
end of forward, as a program that reads its loss does.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager

import torch
from gpu_machine import DEVICE, PAGE_BYTES, STREAM_PAGES, Bench, session_of, synchronize
from gpu_sections import Report, Section
from gpu_work import LAYER, LAYERS, LLAMA, FreshGradients, parameters
from rows import Row

HOST_BYTES = 3 << 30
DEVICE_BYTES = 4 << 30
COMPUTE_MS = 300.0
SIDE = 8192
WARM = 3


class _Compute:
    """bf16 matmuls on random data."""

    def __init__(self):
        self._a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
        self._b = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
        self._out = torch.empty_like(self._a)

    def run(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._out)


class _Bucket(torch.autograd.Function):
    """x -> x. Gradients of the bucket's parameters are new tensors."""

    @staticmethod
    def forward(ctx, x, model, count, *params):
        ctx.model, ctx.count = model, count
        model.compute.run(count)
        ctx.params = params
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.model.compute.run(2 * ctx.count)
        return (grad, None, None, *(ctx.model.fresh.of(p) for p in ctx.params))


class Model:
    """`buckets`: lists of parameters in forward's order."""

    def __init__(self, matmul_ms: float):
        self.params = parameters(LLAMA, torch.bfloat16)
        self.fresh = FreshGradients(self.params)
        size = len(LAYER)
        layers = [self.params[1 + i * size : 1 + (i + 1) * size] for i in range(LAYERS)]
        self.buckets = [[self.params[0], self.params[-1]], *layers]
        total = COMPUTE_MS / matmul_ms / 3  # forward's
        self.counts = _spread(round(total), len(self.buckets))
        self.compute = _Compute()
        self._x = torch.ones(1, device=DEVICE, requires_grad=True)

    def forward(self) -> torch.Tensor:
        x = self._x
        for bucket, count in zip(self.buckets, self.counts):
            x = _Bucket.apply(x, self, count, *bucket)
        return x.sum()

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None


def _spread(total: int, places: int) -> list[int]:
    return [total * (i + 1) // places - total * i // places for i in range(places)]


class Plain:
    """One optimizer, one step behind backward."""

    def __init__(self, model: Model, session):
        import bitpager

        self.optimizer = bitpager.optim.PagedAdamW8bit(model.params, lr=1e-4, session=session).prepare()

    def step(self) -> None:
        self.optimizer.step()

    def end(self) -> None:
        self.optimizer.drop()


class Bucketed:
    """An optimizer for each bucket, stepped inside backward on a stream of its own as soon as the bucket's gradients
    are there; backward goes on meanwhile."""

    def __init__(self, model: Model, session):
        import bitpager

        self._stream = torch.cuda.Stream()
        self._hooks, self._optimizers = [], []
        for bucket in model.buckets:
            optimizer = bitpager.optim.PagedAdamW8bit(bucket, lr=1e-4, session=session).prepare()
            self._optimizers.append(optimizer)
            missing = [len(bucket)]
            for p in bucket:
                hook = self._hook(optimizer, bucket, missing)
                self._hooks.append(p.register_post_accumulate_grad_hook(hook))

    def _hook(self, optimizer, bucket, missing):
        def ready(_) -> None:
            missing[0] -= 1
            if missing[0]:
                return
            missing[0] = len(bucket)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                optimizer.step()
            for p in bucket:
                p.grad = None

        return ready

    def step(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers:
            optimizer.drop()


class Iterations:
    """Runs iterations and keeps what each cost. leave: states are sent away at the start of forward (breathing);
    hints: phases are told; empty: before an iteration every state is on the host."""

    def __init__(self, found, model: Model, stepper, empty: bool, leave: bool, hints: bool):
        self._found, self._model, self._stepper = found, model, stepper
        self._empty, self._leave, self._hints = empty, leave, hints
        self._forward_done = torch.cuda.Event()
        self.by_command = False  # leaving took a command, for the hint alone moved nothing
        self.samples = []

    def run(self, repeats: int) -> None:
        for index in range(WARM + repeats):
            sample = self._once(try_hint=index == 1)
            if index >= WARM:
                self.samples.append(sample)

    def median(self, key: str) -> float:
        return statistics.median(sample[key] for sample in self.samples)

    def _once(self, try_hint: bool) -> dict:
        session, model = self._found.session, self._model
        model.zero_grad()
        if self._empty:
            self._found.evict()
        synchronize()
        before = session.memory_stats()
        begun = time.perf_counter_ns()
        self._phase("forward")
        loss = model.forward()
        if self._leave:
            self._send_away(try_hint)
        self._forward_done.record()
        self._forward_done.synchronize()
        between = session.memory_stats()["resident_bytes"]
        self._phase("backward")
        loss.backward()
        self._phase("step")
        self._stepper.step()
        synchronize()
        ms = (time.perf_counter_ns() - begun) / 1e6
        self._phase("idle")
        time.sleep(0.02)  # trailing write-backs are counted with the iteration that caused them
        after = session.memory_stats()
        return {
            "ms": ms,
            "in": after["loaded_bytes"] - before["loaded_bytes"],
            "out": after["stored_bytes"] - before["stored_bytes"],
            "at forward": before["resident_bytes"],
            "behind forward": between,
        }

    def _phase(self, name: str) -> None:
        if self._hints:
            self._found.session.hint_phase(name)

    def _send_away(self, try_hint: bool) -> None:
        """The hint is enough where the daemon acts on it; one iteration finds out."""
        if try_hint:
            time.sleep(0.08)
            self.by_command = self._found.resident_bytes() > 0
        if self.by_command:
            self._found.begin_evict()


@contextmanager
def _iterations(bench: Bench, name: str, kind, budget: int, **how):
    with session_of(bench, name, budget, HOST_BYTES) as found:
        rate = bench.known.get("matmul")
        if not rate:
            raise RuntimeError("matmul's rate is not known: the section of the ceilings failed")
        model = Model(2 * SIDE**3 / rate * 1e3)
        stepper = kind(model, found.session)
        runs = Iterations(found, model, stepper, **how)
        yield runs
        found.session.synchronize()
        stepper.end()


COUNTS = {
    "moved in": "in",
    "moved out": "out",
    "on the device at forward's start": "at forward",
    "on the device behind forward": "behind forward",
}
RESIDENT = {"empty": False, "leave": False, "hints": False}


def resident(label: str, kind):
    """A section: the base of the others."""

    def run(bench: Bench, report: Report) -> None:
        work = f"iteration of {COMPUTE_MS:.0f} ms, all resident, {label}"
        with _iterations(bench, "stall-base", kind, DEVICE_BYTES, **RESIDENT) as runs:
            runs.run(bench.repeats(50, 10))
            report.tell(f"base {label}", runs.median("ms"))
            report.add(Row(work, "ms", runs.median("ms")))

    return run


def stall(case: str, label: str, kind, budget: int, **how):
    """A section: iterations with paging, minus the base named `label`."""
    work = f"stall {case}"

    def run(bench: Bench, report: Report) -> None:
        base = bench.known.get(f"base {label}")
        with _iterations(bench, f"stall-{case[1]}", kind, budget, **how) as runs:
            runs.run(bench.repeats(50, 10))
            moved_in, moved_out = runs.median("in"), runs.median("out")
            link = bench.ms_of(max(moved_in, moved_out), "both")
            name = work + (", evicted by command" if runs.by_command else "")
            if base is None:
                raise RuntimeError(f"there is no base to subtract; an iteration took {runs.median('ms'):.1f} ms")
            # In (a) the link's time shows; elsewhere it may hide, and 2% of the iteration is what it may cost.
            limit = link if case.startswith("(a)") else 0.02 * base
            report.add(Row(name, "ms", runs.median("ms") - base, limit=limit))
            report.add(Row(f"{work}: iteration", "ms", runs.median("ms"), limit=base))
            for text, key in COUNTS.items():
                report.add(Row(f"{work}: {text}", "MB an iteration", runs.median(key) / 1e6))

    return run


ONE_WINDOW = STREAM_PAGES * PAGE_BYTES
PLAIN, BUCKETS = "plain step", "steps in backward"


def stalls() -> list[Section]:
    streamed = {"empty": True, "leave": False, "hints": False}
    breathing = {"empty": False, "leave": True, "hints": True}
    a = "(a) one window, plain step behind backward"
    b = "(b) one window, steps inside backward in buckets"
    c = "(c) breathing: states leave during forward and return during backward"
    limit_s = 45
    return [
        Section("base, plain", resident(PLAIN, Plain), limit_s),
        Section("stall (a)", stall(a, PLAIN, Plain, ONE_WINDOW, **streamed), limit_s),
        Section("stall (c)", stall(c, PLAIN, Plain, DEVICE_BYTES, **breathing), limit_s),
        Section("base, buckets", resident(BUCKETS, Bucketed), limit_s),
        Section("stall (b)", stall(b, BUCKETS, Bucketed, ONE_WINDOW, **streamed), limit_s),
    ]
