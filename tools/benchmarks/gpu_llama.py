"""Llama-architecture models with random weights, and training them: what gpu-train and gpu-oom measure.

A model is made on the meta device and filled layer by layer on its own device, quantized as it is filled, so that
neither the host nor the card ever holds more than the finished model and one layer. Adapters are the same small module
over every kind of linear layer, so that only the layers and the optimizers differ between ours and the peer's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here

from gpu_machine import DEVICE, PAGE_BYTES, Attached, Bench, private_daemon, program_of

DTYPE = torch.bfloat16
BLOCK = 64
SAMPLE_S = 0.004


@dataclass(frozen=True)
class Shape:
    """Of a Llama model, and of what it trains on: sequences of `context` tokens, `batch` of them."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    batch: int
    context: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context


SEVEN = Shape("7B", 4096, 11008, 32, 32, 32, 32000, 4, 1024)
THIRTY = Shape("33B", 6656, 17920, 60, 52, 52, 32000, 1, 512)
ONE = Shape("1B", 2048, 8192, 16, 32, 8, 32000, 8, 2048)
TINY = Shape("tiny", 64, 160, 2, 4, 2, 258, 2, 16)


@dataclass(frozen=True)
class Place:
    """Where a run takes place: the GPU, or with `tiny` this machine's processor and models of no size, which shows
    that the benchmark runs and measures nothing."""

    bench: Bench
    tiny: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else DEVICE

    def shape(self, shape: Shape, **changes) -> Shape:
        return TINY if self.tiny else replace(shape, **changes)

    def synchronize(self) -> None:
        if not self.tiny:
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if not self.tiny:
            torch.cuda.empty_cache()

    def tensors_bytes(self) -> int:
        """Of this process's tensors on the device."""
        return 0 if self.tiny else torch.cuda.memory_allocated()

    def used_bytes(self) -> int:
        """Of the card, by whomever."""
        if self.tiny:
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    @contextlib.contextmanager
    def daemon(self, name: str, device_bytes: int, host_bytes: int, *flags: str):
        """Path of the socket of a daemon of this run's own."""
        if self.tiny:
            device_bytes, host_bytes = min(device_bytes, 64 << 20), 512 << 20
        budgets = ["--device-budget", str(device_bytes), "--host-budget", str(host_bytes)]
        if not self.tiny:
            with private_daemon(self.bench, name, *budgets, *flags) as path:
                yield path
            return
        import tempfile
        from pathlib import Path

        from private_daemon import Daemon

        shape = ["--device", "cpu", "--page-size", "16KiB"]
        with tempfile.TemporaryDirectory(prefix="bp-bench-") as folder:
            path, log = Path(folder) / "d.sock", self.bench.logs / f"bench-{name}.log"
            with Daemon(program_of(self.bench, "bitpagerd"), path, [*shape, *budgets, *flags], log, start_s=30):
                yield path

    @contextlib.contextmanager
    def attached(self, path, job: str, device_quota=None):
        """An Attached at a running daemon; its session is the default one of its device meanwhile."""
        import bitpager

        quota = {} if device_quota is None else {"device_quota": device_quota}
        session = bitpager.connect(
            socket=str(path), job=job, linger=0, spawn=False, default=False, device=self.device, **quota
        )
        with session:
            yield Attached(session, job, path, program_of(self.bench, "bitpager"))

    @contextlib.contextmanager
    def session(self, name: str, device_bytes: int, host_bytes: int, *flags: str):
        with self.daemon(name, device_bytes, host_bytes, *flags) as path, self.attached(path, name) as found:
            yield found

    @property
    def page_bytes(self) -> int:
        return 16 << 10 if self.tiny else PAGE_BYTES


def place_of(bench: Bench) -> Place:
    return Place(bench, getattr(bench, "tiny_cpu", False))


QUICK_LAYERS = 8


def base_of(place: Place, shape: Shape = SEVEN) -> Shape:
    """A base for QLoRA; with --quick the first of its layers, and said so."""
    if not place.bench.quick:
        return place.shape(shape)
    return place.shape(shape, layers=QUICK_LAYERS, name=f"{shape.name} ({QUICK_LAYERS} of {shape.layers} layers)")


# ---- models ----


def config_of(shape: Shape):
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=max(2048, shape.context),
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def model_of(shape: Shape, device: str, quantize: Callable | None = None, seed: int = 1) -> torch.nn.Module:
    """A model in training mode with gradient checkpointing. quantize(linear on meta, weight): the layer in its place,
    for all linear layers but the head; None: all in 16 bits."""
    from transformers import AutoModelForCausalLM

    config = config_of(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    generator = torch.Generator(device).manual_seed(seed)

    def values(size) -> torch.Tensor:
        return torch.empty(size, dtype=DTYPE, device=device).normal_(0, 0.02, generator=generator)

    if quantize is not None:
        for name, linear in linears_of(model):
            model.set_submodule(name, quantize(linear, values(linear.weight.shape)))
    for name, parameter in list(model.named_parameters()):
        if not parameter.is_meta:
            continue
        filled = torch.ones(parameter.shape, dtype=DTYPE, device=device) if "norm" in name else values(parameter.shape)
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(filled))
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"these were left on the meta device: {', '.join(left[:5])}")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def linears_of(model) -> list:
    """(name, module) of the linear layers that are quantized."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    ]


def ours(session, double: bool = True) -> Callable:
    """A `quantize` for model_of: layers in pages of `session`."""
    import bitpager

    def quantize(linear, weight):
        layer = bitpager.nn.Linear4bit.like(linear, DTYPE, double, "nf4", blocksize=BLOCK, session=session)
        return layer.quantize_(weight)

    return quantize


def theirs(peer, double: bool = True) -> Callable:
    """A `quantize` for model_of: the peer's layers."""

    def quantize(linear, weight):
        layer = peer.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=DTYPE,
            compress_statistics=double,
            quant_type="nf4",
            device="meta",
        )
        packed = peer.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=double, quant_type="nf4", blocksize=BLOCK
        )
        layer.weight = packed.to(weight.device)
        return layer

    return quantize


class Adapted(torch.nn.Module):
    """base(x) + 2 x A^T B^T, with A and B of rank 16."""

    def __init__(self, base: torch.nn.Module, device: str, rank: int = 16):
        super().__init__()
        self.base = base
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features, dtype=DTYPE, device=device) * 0.01)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, dtype=DTYPE, device=device))

    def forward(self, x):
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


def adapt(model, device: str) -> list:
    """Adapters over every quantized layer of a frozen model; the parameters that train."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(2)
    trained = []
    for name, linear in linears_of(model):
        adapted = Adapted(linear, device)
        model.set_submodule(name, adapted)
        trained += [adapted.a, adapted.b]
    return trained


def theory_bytes(shape: Shape, bits: str) -> float:
    """Of the weights: "16", "nf4" or "nf4+dq"; blocks of 64, groups of 256 blocks."""
    kv = shape.hidden * shape.kv_heads // shape.heads
    layer = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * kv + 3 * shape.hidden * shape.inner
    quantized = shape.layers * layer
    rest = 2 * shape.vocabulary * shape.hidden + (2 * shape.layers + 1) * shape.hidden
    each = {"16": 2.0, "nf4": 0.5 + 4 / BLOCK, "nf4+dq": 0.5 + 1 / BLOCK + 4 / BLOCK / 256}[bits]
    return quantized * each + 2 * rest


# ---- training ----


def tokens_of(shape: Shape, device: str, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, shape.vocabulary, (shape.batch, shape.context), generator=generator).to(device)


def iterate(place: Place, iteration: Callable, repeats: int, warm: int = 2) -> float:
    """Median milliseconds of [iteration(); synchronize]."""
    times = []
    for index in range(warm + repeats):
        place.synchronize()
        begun = time.perf_counter_ns()
        iteration()
        place.synchronize()
        if index >= warm:
            times.append((time.perf_counter_ns() - begun) / 1e6)
    return statistics.median(times)


def plain_iteration(model, optimizer, ids) -> Callable:
    def iteration() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return iteration


class Peak:
    """The most memory of the card that was in use meanwhile, by whomever, above what was at the begin; sampled every
    few milliseconds. reserved_bytes: the most that this process's PyTorch had reserved meanwhile, likewise."""

    def __init__(self, place: Place):
        self._place = place
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bytes = self.reserved_bytes = 0

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.bytes = max(self.bytes, self._place.used_bytes() - self._begin)

    def __enter__(self) -> Peak:
        self._begin = self._place.used_bytes()
        if not self._place.tiny:
            torch.cuda.reset_peak_memory_stats()
            self._reserved = torch.cuda.memory_reserved()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if not self._place.tiny:
            self.reserved_bytes = torch.cuda.max_memory_reserved() - self._reserved


def speed(shape: Shape, ms: float) -> str:
    return f"{shape.tokens / ms * 1e3:,.0f} tokens/s"
