"""Two QLoRA jobs at once on one base, in two processes, against two processes of bitsandbytes: memory and speed.

The section makes no CUDA call itself: the jobs are forked from it. The first of them watches the card's memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback

from gpu_machine import Bench
from gpu_sections import Report
from rows import Row

GIB = 1 << 30
GB = 1e9
PEER = "bitsandbytes"
BUDGETS = (8 * GIB, 12 * GIB)
START_LIMIT_S = 100


def pair(bench: Bench, report: Report) -> None:
    """Sections are run in processes of their own, which CUDA has not seen yet."""
    from gpu_llama import SEVEN, place_of, speed

    place = place_of(bench)
    shape = place.shape(SEVEN, **({"layers": 8, "name": "7B (8 of 32 layers)"} if bench.quick else {}))
    repeats = bench.repeats(10, 4)
    work = f"two QLoRA jobs at once on {shape.name}"
    mine = peer = None
    with report.guard(f"{work}: ours", "GB"):
        with place.daemon("train-pair", *BUDGETS) as path:
            mine = _run(bench, shape, repeats, str(path))
    with report.guard(f"{work}: {PEER}", "GB"):
        peer = _run(bench, shape, repeats, None)
    if mine is None:
        return
    bytes_, ms = mine
    peer_bytes, peer_ms = peer or (None, None)
    beside = f" (theirs {speed(shape, peer_ms / 2)})" if peer else ""
    report.add(
        Row(f"{work}: memory of the card above idle contexts", "GB", bytes_ / GB, peer and peer_bytes / GB, PEER)
    )
    per = 1000 / shape.tokens / 2
    name = f"{work}, both together: {speed(shape, ms / 2)}{beside}"
    report.add(Row(name, "ms per 1,000 tokens", ms * per, peer and peer_ms * per, PEER))


def _run(bench: Bench, shape, repeats: int, socket):
    """(peak bytes of the card above what was in use before, milliseconds of an iteration of both jobs)."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    jobs = [
        context.Process(target=_job, args=(bench, shape, repeats, socket, index, barrier, answers))
        for index in range(2)
    ]
    for job in jobs:
        job.start()
    try:
        found = {}
        for _ in jobs:
            index, answer = answers.get(timeout=START_LIMIT_S)
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
    from gpu_llama import Peak, adapt, iterate, model_of, ours, place_of, plain_iteration, theirs, tokens_of
    from gpu_work import load_peer

    place = place_of(bench)
    torch.set_num_threads(4)
    with contextlib.ExitStack() as stack:
        if socket is not None:
            import bitpager

            session = stack.enter_context(place.attached(socket, f"pair-{index}")).session
        place.used_bytes()
        barrier.wait(START_LIMIT_S)  # all contexts are there before anything is counted
        peak = stack.enter_context(Peak(place)) if index == 0 else None
        barrier.wait(START_LIMIT_S)
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
        barrier.wait(START_LIMIT_S)
        begun = time.perf_counter()
        iterate(place, iteration, repeats, warm=0)
        ms = (time.perf_counter() - begun) * 1e3 / repeats
        barrier.wait(START_LIMIT_S)  # the memory of both at work is seen
        if socket is not None:
            session.synchronize()
        del model, optimizer, iteration
    return (peak.bytes if peak else 0), ms
