"""Group gpu-train: training of Llama-architecture models with random weights: what 4 bits take, how long loading takes,
QLoRA beside bitsandbytes with its paged optimizer, by one job and by two at once, and full training with states that do
not fit."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace

from gpu_llama import (
    DTYPE,
    ONE,
    SEVEN,
    THIRTY,
    Peak,
    Place,
    adapt,
    base_of,
    iterate,
    linears_of,
    model_of,
    ours,
    place_of,
    plain_iteration,
    speed,
    theirs,
    theory_bytes,
    tokens_of,
)
from gpu_machine import STREAM_PAGES, WINDOW_PAGES, Bench
from gpu_pair import pair
from gpu_sections import Report, Section
from gpu_stall import Bucketed
from gpu_work import load_peer
from rows import Row

LIMIT_S = 500
GIB = 1 << 30
GB = 1e9
PEER = "bitsandbytes"
DEVICE_BYTES, HOST_BYTES = 8 * GIB, 12 * GIB
TIGHT = 0.75  # of the packed base
UNIT = "ms per 1,000 tokens"


def packed_bytes(model) -> int:
    return sum(m.weight.pages.packed_bytes for _, m in linears_of(model) if getattr(m.weight, "pages", None))


# ---- memory ----


def memory(bench: Bench, report: Report) -> None:
    place = place_of(bench)
    shape = base_of(place)
    work = f"{shape.name}, weights"
    with report.guard(f"{work}: 16 bits", "GB"):
        before = place.tensors_bytes()
        model = model_of(shape, place.device)
        found = place.tensors_bytes() - before
        report.add(Row(f"{work}: 16 bits", "GB", found / GB, limit=theory_bytes(shape, "16") / GB))
        del model
        place.free()
    for double, bits, name in ((False, "nf4", "NF4"), (True, "nf4+dq", "NF4, double quantization")):
        with report.guard(f"{work}: {name}", "GB"):
            mine, peer = _memory_of_ours(place, shape, double), None
            with report.guard(f"{work}: {name}: {PEER}", "GB"):
                peer = _memory_of_peer(bench, place, shape, double)
            limit = theory_bytes(shape, bits)
            report.add(Row(f"{work}: {name}", "GB", mine / GB, peer and peer / GB, PEER, limit / GB))


def _memory_of_ours(place: Place, shape, double: bool) -> int:
    before = place.tensors_bytes()
    with place.session("train-memory", DEVICE_BYTES, HOST_BYTES) as found:
        model = model_of(shape, place.device, ours(found.session, double))
        place.synchronize()
        pages = found.session.memory_stats()["pages"] * place.page_bytes
        total = pages + place.tensors_bytes() - before
        del model
        place.free()
    return total


def _memory_of_peer(bench: Bench, place: Place, shape, double: bool) -> int:
    before = place.tensors_bytes()
    model = model_of(shape, place.device, theirs(load_peer(bench.peers), double))
    place.free()
    total = place.tensors_bytes() - before
    del model
    place.free()
    return total


# ---- loading ----


def loading(bench: Bench, report: Report) -> None:
    """from_pretrained of a 16-bit checkpoint on the local disk, quantized as it loads. The checkpoint was just written,
    so that it comes from memory: what is measured is the work."""
    with report.guard(f"{PEER}'s import"):
        load_peer(bench.peers)  # transformers looks for it once, when it is imported
    from transformers import AutoModelForCausalLM

    place = place_of(bench)
    shape = base_of(place)
    shape, folder = _written(place, shape)
    try:
        work = f"from_pretrained, {shape.name}, NF4 and double quantization"

        def load(config) -> float:
            begun = time.perf_counter()
            model = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=config, dtype=DTYPE, device_map={"": place.device}
            )
            place.synchronize()
            took = time.perf_counter() - begun
            del model
            place.free()
            return took

        mine = peer = None
        with report.guard(f"{work}: ours", "s"), place.session("train-load", DEVICE_BYTES, HOST_BYTES) as found:
            import bitpager
            from bitpager.hf import BitpagerConfig

            bitpager.session._offer_default(found.session)  # where from_pretrained puts the pages
            mine = load(BitpagerConfig(compute_dtype=DTYPE))
        with report.guard(f"{work}: {PEER}", "s"):
            from transformers import BitsAndBytesConfig

            load_peer(bench.peers)
            peer = load(
                BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=DTYPE,
                )
            )
        report.add(Row(work, "s", mine, peer, PEER))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(place: Place, shape):
    """(shape, folder) of a checkpoint; of fewer layers when the disk has no room for it twice."""
    folder = tempfile.mkdtemp(prefix="bp-llama-")
    room = shutil.disk_usage(folder).free
    while theory_bytes(shape, "16") * 2 > room and shape.layers > 1:
        shape = replace(
            shape, layers=shape.layers // 2, name=f"{shape.name.split(' ')[0]} ({shape.layers // 2} layers)"
        )
    model = model_of(shape, place.device)
    model.save_pretrained(folder, max_shard_size="2GB")
    del model
    place.free()
    return shape, folder


# ---- QLoRA ----


def qlora(bench: Bench, report: Report) -> None:
    place = place_of(bench)
    shape = base_of(place)
    repeats = bench.repeats(12, 4)
    with report.guard(f"PyTorch's own kernels for {shape.name}"):
        _warm(place, shape)
    mine = {}
    for name, share in (("all resident", None), (f"{TIGHT:.0%} of the base resident", TIGHT)):
        work = f"QLoRA of {shape.name}, {name}"
        with report.guard(work, UNIT):
            mine[name] = _qlora_ours(place, shape, repeats, share, f"train-qlora-{int(100 * (share or 1))}")
    peer = None
    with report.guard(f"QLoRA of {shape.name}: {PEER}", UNIT):
        peer = _qlora_peer(bench, place, shape, repeats)
    for name, (ms, peak, pages) in mine.items():
        work = f"QLoRA of {shape.name}, {name}"
        theirs_ms, theirs_peak = peer if peer else (None, None)
        per = 1000 / shape.tokens
        beside = f" (theirs {speed(shape, theirs_ms)})" if peer else ""
        report.add(Row(f"{work}: {speed(shape, ms)}{beside}", UNIT, ms * per, peer and theirs_ms * per, PEER))
        label = f"{work}: peak of the card above idle contexts"
        report.add(Row(label, "GB", peak.bytes / GB, peer and theirs_peak.bytes / GB, PEER))
        label = f"{work}: of it PyTorch's reserved memory, beside {pages / GB:.2f} GB of pages"
        report.add(Row(label, "GB", peak.reserved_bytes / GB, peer and theirs_peak.reserved_bytes / GB, PEER))


def _warm(place: Place, shape) -> None:
    """An iteration of one layer in 16 bits: what PyTorch's own kernels and libraries take of the card, once in a
    process, is there before the first of the two is measured."""
    model = model_of(replace(shape, layers=1), place.device)
    adapt(model, place.device)
    ids = tokens_of(shape, place.device)
    model(input_ids=ids, labels=ids).loss.backward()
    del model
    place.free()


def _qlora_ours(place: Place, shape, repeats: int, share, name: str):
    """(milliseconds an iteration, Peak, most bytes of pages on the device). share: of the packed base that the device
    budget holds."""
    import bitpager

    budget = DEVICE_BYTES
    if share is not None:
        quantized = theory_bytes(shape, "nf4+dq") - 2 * (2 * shape.vocabulary + 2 * shape.layers + 1) * shape.hidden
        budget = max(int(share * quantized), (STREAM_PAGES + WINDOW_PAGES) * place.page_bytes)
    with place.session(name, budget, HOST_BYTES) as found, Peak(place) as peak:
        model = model_of(shape, place.device, ours(found.session))
        bitpager.nn.swap.release_sources(model)  # as from_pretrained() does
        params = adapt(model, place.device)
        optimizer = bitpager.optim.PagedAdamW8bit(params, lr=1e-4, session=found.session)
        place.free()
        ms = iterate(place, plain_iteration(model, optimizer, tokens_of(shape, place.device)), repeats)
        found.session.synchronize()
        pages = found.session.memory_stats()["peak_resident_bytes"]
        del model, optimizer, params
        place.free()
    return ms, peak, pages


def _qlora_peer(bench: Bench, place: Place, shape, repeats: int):
    peer = load_peer(bench.peers)
    with Peak(place) as peak:
        model = model_of(shape, place.device, theirs(peer))
        params = adapt(model, place.device)
        optimizer = peer.optim.PagedAdamW8bit(params, lr=1e-4)
        place.free()
        ms = iterate(place, plain_iteration(model, optimizer, tokens_of(shape, place.device)), repeats)
        del model, optimizer, params
        place.free()
    return ms, peak


# ---- full training ----


class _Buckets:
    """What Bucketed steps: the embedding's, each decoder layer's and the head's parameters, in forward's order."""

    def __init__(self, model):
        inner = model.model
        layers = [list(layer.parameters()) for layer in inner.layers]
        self.buckets = [[inner.embed_tokens.weight], *layers, [inner.norm.weight, model.lm_head.weight]]
        if sum(map(len, self.buckets)) != len(list(model.parameters())):
            raise RuntimeError("the model has other parameters than are known here")


@contextmanager
def _full(place: Place, shape, name: str, frames):
    """(session, model, ids) of full training. frames: pages of states on the device; None: all."""
    budget = DEVICE_BYTES if frames is None else frames * place.page_bytes
    with place.session(name, budget, HOST_BYTES) as found:
        model = model_of(shape, place.device)
        yield found, model, tokens_of(shape, place.device)
        found.session.synchronize()


def _plain(place, found, model, ids, repeats, leave=False):
    """(milliseconds, pages in, pages out) of an iteration with one step behind backward."""
    import bitpager

    optimizer = bitpager.optim.PagedAdamW8bit(model.parameters(), lr=1e-5, session=found.session).prepare()
    hooks = bitpager.hints.attach(model, optimizer, leave=True) if leave else None
    moved = _Moved(found, repeats)
    ms = iterate(place, moved.around(plain_iteration(model, optimizer, ids)), repeats)
    if hooks is not None:
        hooks.detach()
    optimizer.drop()
    return ms, *moved.pages()


def _inside(place, found, model, ids, repeats):
    """The same with the steps of each layer inside backward, on a stream of their own."""
    stepper = Bucketed(_Buckets(model), found.session)

    def iteration() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        stepper.step()

    moved = _Moved(found, repeats)
    ms = iterate(place, moved.around(iteration), repeats)
    stepper.end()
    return ms, *moved.pages()


class _Moved:
    """Pages that the last `repeats` iterations moved, each."""

    def __init__(self, found, repeats: int):
        self._found, self._repeats, self._before = found, repeats, []

    def around(self, iteration):
        def counted() -> None:
            self._before.append(self._found.session.memory_stats())
            iteration()

        return counted

    def pages(self):
        pages_in, pages_out = self._found.moved_since(self._before[-self._repeats])
        return pages_in / self._repeats, pages_out / self._repeats


def full_training(bench: Bench, report: Report) -> None:
    """All ways of stepping in one process, for they are compared with one another."""
    place = place_of(bench)
    shape = place.shape(ONE)
    repeats = bench.repeats(10, 4)
    states = 2 * theory_bytes(shape, "16") / 2 * (1 + 4 / 256)
    pages = int(states / place.page_bytes) + 1
    spills = (0, 100) if bench.quick else (0, 50, 100)
    ways = [("plain step", _plain), ("steps inside backward", _inside)]
    if place.tiny:
        ways = ways[:1]  # streams are a GPU's
    for label, run in ways:
        base = None
        for percent in spills:
            work = f"full training of {shape.name}, {label}, {percent}% of states spilled"
            with report.guard(work, "ms"):
                frames = None if not percent else max(STREAM_PAGES, round(pages * (100 - percent) / 100))
                name = f"train-full-{label.split()[0]}-{percent}"
                with _full(place, shape, name, frames) as (found, model, ids):
                    ms, pages_in, pages_out = run(place, found, model, ids, repeats)
                del model
                place.free()
                base = ms if not percent else base
                _slowdown(report, shape, work, ms, base, pages_in, pages_out)
    work = f"full training of {shape.name}, states leave in forward, return in backward"
    with report.guard(work, "ms"):
        with _full(place, shape, "train-full-breathe", None) as (found, model, ids):
            ms, pages_in, pages_out = _plain(place, found, model, ids, repeats)
            base, (ms, pages_in, pages_out) = ms, _plain(place, found, model, ids, repeats, leave=True)
        _slowdown(report, shape, work, ms, base, pages_in, pages_out)


def _slowdown(report: Report, shape, work: str, ms: float, base, pages_in: float, pages_out: float) -> None:
    share = "" if base is None else f", {100 * (ms / base - 1):+.1f}%"
    moved = f"{pages_in:,.0f}/{pages_out:,.0f} pages in/out"
    report.add(Row(f"{work}: {speed(shape, ms)}{share}, {moved}", "ms", ms, limit=base))


# Real QLoRA runs have batches of 1: there the base is most of what a job needs.
SMALL = replace(SEVEN, batch=1, context=512)

# name, section, seconds that it may take, and with --quick. The last one is left out where the group's time is over.
SECTIONS = [
    ("QLoRA", qlora, 120, 50),
    ("full training", full_training, 150, 50),
    ("two jobs on one base, 4 x 1024", pair(SEVEN), 130, 55),
    ("two jobs on one base, 1 x 512", pair(SMALL), 130, 55),
    ("memory", memory, 100, 35),
    ("loading", loading, 130, 45),
    ("two jobs on one 33B base, 1 x 512", pair(THIRTY, limit_s=140), 200, 60),
]


def sections(bench: Bench) -> list[Section]:
    return [Section(name, run, quick_s if bench.quick else limit_s) for name, run, limit_s, quick_s in SECTIONS]
