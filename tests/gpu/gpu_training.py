"""Training whose every number follows from the step's index, so that two runs can be compared bit for bit; and, run as
a program, a job that trains so:

    gpu_training.py train SOCKET JOB STEPS [RULE DTYPE SIZE]   says {"steps", "digest"}
    gpu_training.py steady SOCKET JOB                          says {"ready": true}, then trains until its input ends
    gpu_training.py timed SOCKET JOB STEPS                     says {"ready": true}, then {"seconds"} of STEPS steps for
                                                               each line of its input
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
import time

import torch

DEVICE = "cuda:0"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Odd sizes, and some under the least size of 8-bit states; 46 million elements: 179 pages of 512 KiB for Adam.
SHAPES = [(4001, 3000), (3000, 4001), (12_000_001,), (10_000, 1000), (257,), (1,), (4096,), (5003,)]
SMALL = [(1000, 1001), (300_003,), (257,), (4097,)]
PACE_S = 0.003


def _placed(values: torch.Tensor, shape, misaligned: bool) -> torch.Tensor:
    """The values in memory that begins one element behind an allocation's begin, or at it."""
    if not misaligned:
        return values.view(shape)
    room = torch.empty(values.numel() + 1, dtype=values.dtype, device=values.device)
    room[1:] = values
    return room[1:].view(shape)


def parameters(dtype: torch.dtype, shapes=None, device=None) -> list[torch.nn.Parameter]:
    """Every second one is misaligned."""
    made = []
    generator = torch.Generator(DEVICE).manual_seed(11)
    for index, shape in enumerate(shapes or SHAPES):
        values = torch.randn(torch.Size(shape).numel(), generator=generator, device=DEVICE).to(dtype)
        made.append(torch.nn.Parameter(_placed(values.to(device or DEVICE), shape, index % 2 == 1)))
    return made


def set_gradients(params, step: int, misaligned: bool = True) -> None:
    """New gradients, of a size that differs from tensor to tensor and from step to step."""
    generator = torch.Generator(DEVICE).manual_seed(1000 + step)
    for p in params:
        p.grad = None
    for index, p in enumerate(params):
        values = torch.randn(p.numel(), generator=generator, device=DEVICE) * (10.0 ** -(index % 4))
        values = values.to(p.dtype).to(p.device)
        p.grad = _placed(values, p.shape, misaligned and index % 3 == 1)


def make_optimizer(rule: str, params, session, paged: bool = True, **settings):
    import bitpager

    cls = getattr(bitpager.optim, f"{'Paged' if paged else ''}{rule}8bit")
    return cls(params, **{"lr": 1e-3, "weight_decay": 0.1, "session": session, **settings})


def train(optimizer, params, first: int, last: int) -> None:
    """Steps first ... last."""
    for step in range(first, last + 1):
        set_gradients(params, step)
        optimizer.step()


def digest(tensors) -> str:
    """Of their bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        found.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of_states(optimizer) -> str:
    tensors = []
    for _, entry in sorted(optimizer.state_dict()["state"].items()):
        states = entry["__bnb_optimizer_quant_state__"]
        tensors += [states[key] for key in sorted(states) if key.startswith(("state", "absmax"))]
    return digest(tensors)


def cycles_per_second() -> float:
    """Of torch.cuda._sleep, once the GPU's clock no longer rises: an idle one begins at a fraction of it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles, rates, until = 20_000_000, [], time.monotonic() + 5
    while len(rates) < 5 or max(rates[-5:]) > 1.02 * min(rates[-5:]):
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        rates.append(cycles / begin.elapsed_time(end) * 1e3)
        if time.monotonic() > until:
            break
    return rates[-1]


def say(**what) -> None:
    print(json.dumps(what), flush=True)


def connect(socket: str, job: str):
    import bitpager

    return bitpager.connect(socket=socket, job=job, linger=0, spawn=False, default=False, device=DEVICE)


def _input_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _steady(socket: str, job: str) -> None:
    with connect(socket, job) as session:
        params = parameters(torch.bfloat16, SMALL)
        optimizer = make_optimizer("AdamW", params, session)
        steps = 0
        while True:
            steps += 1
            train(optimizer, params, steps, steps)
            if steps == 3:
                torch.cuda.synchronize()
                say(ready=True)
            if steps > 3 and _input_ended():
                break
            time.sleep(PACE_S)
        session.synchronize()
        say(steps=steps, digest=digest(params))


def _train(socket: str, job: str, steps: str, rule: str = "AdamW", dtype: str = "bf16", size: str = "small") -> None:
    with connect(socket, job) as session:
        params = parameters(DTYPES[dtype], SMALL if size == "small" else SHAPES)
        optimizer = make_optimizer(rule, params, session)
        train(optimizer, params, 1, int(steps))
        session.synchronize()
        say(steps=int(steps), digest=digest(params))


def _timed(socket: str, job: str, steps: str) -> None:
    """Steps alone: their gradients stay as they are."""

    def some(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            optimizer.step()
        session.synchronize()
        return time.perf_counter() - begun

    with connect(socket, job) as session:
        params = parameters(torch.bfloat16)
        optimizer = make_optimizer("AdamW", params, session)
        set_gradients(params, 1)
        cycles_per_second()
        some(int(steps))
        say(ready=True)
        for _ in sys.stdin:
            say(seconds=some(int(steps)))


if __name__ == "__main__":
    {"train": _train, "steady": _steady, "timed": _timed}[sys.argv[1]](*sys.argv[2:])
