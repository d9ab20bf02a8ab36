"""Group gpu-oom: full training of a 1B model whose activations need memory that its optimizer states hold. The same run
with all the memory it wants is the measure, in time and in every bit of its parameters; bitsandbytes' paged optimizer
makes the run under the same shortage beside it.

The shortage is a ballast tensor: with it, what an iteration needs at its peak exceeds what is free by three quarters of
the states. Two kinds of iteration: memory that activations took once stays in torch's cache; or it is given back behind
each iteration (torch.cuda.empty_cache), so that every one must get it anew. All these runs, the peer's too, are made of
operations that give the same bits each time, so that parameters that differ show what the shortage did.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass

import torch
from gpu_llama import ONE, Place, iterate, model_of, place_of, speed, theory_bytes, tokens_of
from gpu_machine import Bench
from gpu_sections import Report, Section
from gpu_work import load_peer
from rows import Row
from torch.nn.attention import SDPBackend, sdpa_kernel

LIMIT_S = 200
GIB = 1 << 30
DEVICE_BYTES, HOST_BYTES = 4 * GIB, 6 * GIB
PEER = "bitsandbytes PagedAdamW8bit"
SHORT_OF = 0.75  # of the states' bytes
SETTLE_S = 0.3
WARM = 2  # iterations before those that are timed


@contextlib.contextmanager
def _repeatable():
    """Runs of a model give the same bits. Flash attention's backward does so in torch's strict mode alone (warn_only
    leaves it as it is), cuDNN's never does. To be entered before anything uses cuBLAS."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass
class Run:
    """ms: of an iteration, median; peak: bytes of torch's at most; digest: of the parameters behind the last iteration;
    requests: for room."""

    ms: float
    peak: int
    digest: str
    requests: int = 0
    evicted: int = 0


def _digest(model) -> str:
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _iteration(place: Place, model, optimizer, shape, give_back: bool):
    ids = tokens_of(shape, place.device)

    def iteration() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if give_back and not place.tiny:
            torch.cuda.empty_cache()

    return iteration


def _reserved(place: Place) -> int:
    return 0 if place.tiny else torch.cuda.max_memory_reserved()


def _ballast(place: Place, peak: int, states: float):
    """Leaves less than an iteration's peak free, beside what the process holds by now."""
    if place.tiny:
        return torch.empty(1, dtype=torch.uint8)
    free = torch.cuda.mem_get_info()[0]
    needed = peak - torch.cuda.memory_reserved()
    size = int(free - needed + SHORT_OF * states)
    if size <= 0:
        raise RuntimeError(
            f"the card has {free / GIB:.1f} GiB free and the run needs {needed / GIB:.1f}: no ballast fits"
        )
    return torch.empty(size, dtype=torch.uint8, device=place.device)


def _settled(place: Place, session) -> None:
    """What was freed is free: the daemon's mappings of gradients would keep it."""
    place.synchronize()
    if session is not None:
        session.synchronize()
        session.release_gradients()
    place.free()
    if not place.tiny:
        time.sleep(SETTLE_S)


def _train(
    place: Place, shape, optimizer_of, repeats: int, give_back: bool, peak=None, states=0.0, session=None
) -> Run:
    """peak: of the same run without shortage; None: this is that run. session: ours; None: the peer's run."""
    torch.manual_seed(0)
    model = model_of(shape, place.device)
    model.gradient_checkpointing_disable()
    optimizer = optimizer_of(model.parameters())
    # The states are on the device before memory grows short.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    _settled(place, session)
    ballast = None if peak is None else _ballast(place, peak, states)
    if not place.tiny:
        torch.cuda.reset_peak_memory_stats()
    guard = None if session is None else session._allocator_guard
    before = 0 if guard is None else guard.stats().get("requests", 0)
    ms = iterate(place, _iteration(place, model, optimizer, shape, give_back), repeats, WARM)
    requests = 0 if guard is None else guard.stats().get("requests", 0) - before
    run = Run(ms, _reserved(place), "" if session is None else _digest(model), requests)
    del model, optimizer, ballast
    place.free()
    return run


def _ours(place: Place, shape, repeats: int, give_back: bool, name: str, peak=None, states=0.0) -> Run:
    import bitpager

    with place.session(name, DEVICE_BYTES, HOST_BYTES) as found:
        session = found.session
        if session._allocator_guard is None and not place.tiny:
            raise RuntimeError("the allocator does not ask for room here: " + str(bitpager.guard_allocator(session)))

        def optimizer_of(parameters):
            return bitpager.optim.PagedAdamW8bit(list(parameters), lr=1e-5, session=session)

        before = session.memory_stats()["stored_bytes"]
        run = _train(place, shape, optimizer_of, repeats, give_back, peak, states, session)
        session.synchronize()
        run.evicted = session.memory_stats()["stored_bytes"] - before
        return run


def _peer(bench: Bench, place: Place, shape, repeats: int, give_back: bool, peak: int, states: float) -> Run:
    peer = load_peer(bench.peers)

    def optimizer_of(parameters):
        return peer.optim.PagedAdamW8bit(list(parameters), lr=1e-5)

    return _train(place, shape, optimizer_of, repeats, give_back, peak, states)


def spike(give_back: bool):
    """A section."""

    def run(bench: Bench, report: Report) -> None:
        with _repeatable():
            _spike(bench, report, give_back)

    return run


def _spike(bench: Bench, report: Report, give_back: bool) -> None:
    place = place_of(bench)
    shape = place.shape(ONE, batch=4)
    repeats = bench.repeats(8, 3)
    states = theory_bytes(shape, "16") * (1 + 4 / 256)
    kind = "cache emptied each iteration" if give_back else "cache kept"
    work = f"{shape.name}, activations short of {SHORT_OF:.0%} of the states, {kind}"
    name = f"oom-{'back' if give_back else 'kept'}"
    room = _ours(place, shape, repeats, give_back, f"{name}-room")
    short = peer = None
    with report.guard(f"{work}: ours", "ms"):
        short = _ours(place, shape, repeats, give_back, f"{name}-short", room.peak, states)
    with report.guard(f"{work}: {PEER}", "ms"):
        peer = _peer(bench, place, shape, repeats, give_back, room.peak, states)
    if short is None:
        return
    told = f"{speed(shape, short.ms)}; {short.requests} requests for room, {short.evicted / GIB:.2f} GiB stored"
    report.add(Row(f"{work}: {told}", "ms", short.ms, peer and peer.ms, PEER, room.ms))
    differs = short.digest != room.digest
    compared = f"every bit of the parameters after {WARM + repeats} deterministic iterations, against the run with room"
    if differs:  # is it the shortage, or does the model not repeat itself?
        again = _ours(place, shape, repeats, give_back, f"{name}-again")
        compared += ": two runs with room " + ("are the same" if again.digest == room.digest else "differ too")
    report.add(Row(f"{work}: {compared}", "runs that differ", float(differs)))


def guarded(bench: Bench, report: Report) -> None:
    """A step that fails, is undone and made again by bitpager.guard(), against one that does not fail."""
    import bitpager

    place = place_of(bench)
    shape = place.shape(ONE, batch=2)
    with place.session("oom-guard", DEVICE_BYTES, HOST_BYTES) as found:
        model = model_of(shape, place.device)
        optimizer = bitpager.optim.PagedAdamW8bit(list(model.parameters()), lr=1e-5, session=found.session)
        ids, fails = tokens_of(shape, place.device), []

        def step() -> None:
            loss = model(input_ids=ids, labels=ids).loss
            if fails:
                fails.pop()
                _run_out(place)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        guarded_step = bitpager.guard(step, model, optimizer)
        repeats = bench.repeats(8, 3)
        plain = iterate(place, step, repeats)
        quiet = iterate(place, guarded_step, repeats)

        def failing() -> None:
            fails.append(1)
            guarded_step()

        once = iterate(place, failing, repeats, warm=1)
        work = f"{shape.name}, bitpager.guard()"
        report.add(Row(f"{work}: an iteration in which nothing fails", "ms", quiet, limit=plain))
        report.add(Row(f"{work}: one that fails behind forward and is made again", "ms", once, limit=2 * plain))
        found.session.synchronize()


def _run_out(place: Place) -> None:
    """What the allocator raises for more than there is."""
    if place.tiny:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    torch.empty(torch.cuda.get_device_properties(0).total_memory, dtype=torch.uint8, device=place.device)


# name, section, seconds that it may take, and with --quick
SECTIONS = [
    ("spike, kept", spike(False), 90, 35),
    ("spike, given back", spike(True), 90, 35),
    ("guard", guarded, 40, 25),
]


def sections(bench: Bench) -> list[Section]:
    return [Section(name, run, quick_s if bench.quick else limit_s) for name, run, limit_s, quick_s in SECTIONS]
