"""Two QLoRA jobs at once on one base, in two processes, against two processes of bitsandbytes: memory and speed. Both
sides train the same adapters on the same batches, with gradient checkpointing.

What the two have apart, beside activations: embedding, head and norms in 16 bits, adapters, their gradients and states.
So ours needs (base + 2 rest) / (2 base + 2 rest) of theirs, at best: with a rest of half the base two thirds, with a
quarter 60%.

The section makes no CUDA call itself: the jobs are forked from it. The first of them watches the card's memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable

from gpu_llama import (
    Peak,
    Shape,
    adapt,
    base_of,
    iterate,
    model_of,
    ours,
    place_of,
    plain_iteration,
    speed,
    theirs,
    theory_bytes,
    tokens_of,
)
from gpu_machine import Bench
from gpu_sections import Report
from gpu_work import load_peer
from rows import Row

GIB = 1 << 30
GB = 1e9
PEER = "bitsandbytes"
SPARE_BYTES, SPARE_HOST_BYTES = 4 * GIB, 8 * GIB  # of the budgets, beside the base
LIMIT_S = 100


def pair(base: Shape, limit_s: float = LIMIT_S) -> Callable:
    """A section: two jobs on this base, each with its batch and context. Sections are run in processes of their own,
    which CUDA has not seen yet. limit_s: in which a side loads and trains."""

    def run(bench: Bench, report: Report) -> None:
        _pair(bench, report, base_of(place_of(bench), base), limit_s)

    return run


def _pair(bench: Bench, report: Report, shape: Shape, limit_s: float) -> None:
    # Short iterations: more of them.
    repeats = bench.repeats(10, 4) if shape.tokens > 1024 else bench.repeats(20, 8)
    work = f"two QLoRA jobs at once on {shape.name}, each {shape.batch} x {shape.context} tokens"
    packed = int(theory_bytes(shape, "nf4+dq"))
    mine = peer = None
    with report.guard(f"{work}: ours", "GB"):
        with place_of(bench).daemon("train-pair", packed + SPARE_BYTES, packed + SPARE_HOST_BYTES) as path:
            mine = _run(bench, shape, repeats, str(path), limit_s)
    with report.guard(f"{work}: {PEER}", "GB"):
        peer = _run(bench, shape, repeats, None, limit_s)
    if mine is None:
        return
    bytes_, ms = mine
    peer_bytes, peer_ms = peer or (None, None)
    share = f", {bytes_ / peer_bytes:.0%} of theirs" if peer_bytes else ""
    name = f"{work}: memory of the card above idle contexts{share}"
    report.add(Row(name, "GB", bytes_ / GB, peer and peer_bytes / GB, PEER))
    per = 1000 / shape.tokens / 2
    beside = f" (theirs {speed(shape, peer_ms / 2)})" if peer else ""
    name = f"{work}, both together: {speed(shape, ms / 2)}{beside}"
    report.add(Row(name, "ms per 1,000 tokens", ms * per, peer and peer_ms * per, PEER))


def _run(bench: Bench, shape, repeats: int, socket, limit_s: float):
    """(peak bytes of the card above what was in use before, milliseconds of an iteration of both jobs)."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2, timeout=limit_s), context.Queue()
    jobs = [
        context.Process(target=_job, args=(bench, shape, repeats, socket, index, barrier, answers))
        for index in range(2)
    ]
    for job in jobs:
        job.start()
    try:
        found = {}
        for _ in jobs:
            index, answer = answers.get(timeout=limit_s)
            if isinstance(answer, str):
                raise RuntimeError(answer)
            found[index] = answer
        return found[0][0], max(answer[1] for answer in found.values())
    finally:
        for job in jobs:
            job.join(5)
            if job.is_alive():
                job.kill()
                job.join(5)


def _job(bench: Bench, shape, repeats: int, socket, index: int, barrier, answers) -> None:
    try:
        answer = _train(bench, shape, repeats, socket, index, barrier)
        answers.put((index, answer))
    except Exception as error:
        barrier.abort()
        traceback.print_exc()
        answers.put((index, f"job {index}: {type(error).__name__}: {str(error)[:300]}"))


def _train(bench: Bench, shape, repeats: int, socket, index: int, barrier):
    import torch

    place = place_of(bench)
    torch.set_num_threads(4)
    with contextlib.ExitStack() as stack:
        if socket is not None:
            import bitpager

            session = stack.enter_context(place.attached(socket, f"pair-{index}")).session
        place.used_bytes()
        barrier.wait()  # all contexts are there before anything is counted
        peak = stack.enter_context(Peak(place)) if index == 0 else None
        barrier.wait()
        if socket is None:
            peer = load_peer(bench.peers)
            model = model_of(shape, place.device, theirs(peer))
            optimizer = peer.optim.PagedAdamW8bit(adapt(model, place.device), lr=1e-4)
        else:
            model = model_of(shape, place.device, ours(session))
            bitpager.nn.swap.release_sources(model)  # as from_pretrained() does
            optimizer = bitpager.optim.PagedAdamW8bit(adapt(model, place.device), lr=1e-4, session=session)
        place.free()
        iteration = plain_iteration(model, optimizer, tokens_of(shape, place.device, seed=index))
        iterate(place, iteration, 1, warm=1)
        barrier.wait()
        begun = time.perf_counter()
        iterate(place, iteration, repeats, warm=0)
        ms = (time.perf_counter() - begun) * 1e3 / repeats
        barrier.wait()  # the memory of both at work is seen
        if socket is not None:
            session.synchronize()
        del model, optimizer, iteration
    return (peak.bytes if peak else 0), ms
