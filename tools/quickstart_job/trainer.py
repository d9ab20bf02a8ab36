"""The training loop that both jobs share: steps, held-out losses, the counting of page moves, progress lines.

A job is a process of its own. It writes one JSON object a line to stdout; its errors go to stderr.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import settings
import torch
from model import loss_of
from text import Text, windows


def tell(event: str, **fields) -> None:
    """One progress line to the parent."""
    print(json.dumps({"event": event, **fields}), flush=True)


def settle(seed: int) -> None:
    """One torch thread and fixed seeds: the same run gives the same bits."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


class PageCounter:
    """Pages moved against the optimum. passes(usage) is the least number of loads of a step that finds the pages
    as `usage` says; the first step finds pages that were never written, which need none."""

    def __init__(self, session, passes: Callable[[dict], float]):
        self._session = session
        self._passes = passes
        self._first = self._before = session.memory_stats()
        self.optimum_pages = 0.0
        self.resident_bytes: list[int] = []

    def after_step(self) -> None:
        if self.resident_bytes:
            self.optimum_pages += self._passes(self._before)
        self._before = self._session.memory_stats()
        self.resident_bytes.append(self._before["resident_bytes"])

    def summary(self, page_bytes: int) -> dict:
        last = self._before
        counted = self.resident_bytes[len(self.resident_bytes) // 2 :] or [0]
        return {
            "pages": last["pages"],
            "state_bytes": last["state_bytes"],
            "weight_bytes": last["weight_bytes"],
            "host_bytes": last["host_bytes"],
            "resident_bytes": sum(counted) // len(counted),
            "pages_in": (last["loaded_bytes"] - self._first["loaded_bytes"]) / page_bytes,
            "pages_out": (last["stored_bytes"] - self._first["stored_bytes"]) / page_bytes,
            "optimum_pages": self.optimum_pages,
            "stall_s": (last["stall_ns"] - self._first["stall_ns"]) / 1e9,
        }


@dataclass
class Outcome:
    """Losses in nats per byte; heldout pairs are (step, loss), the first at step 0."""

    losses: list[float] = field(default_factory=list)
    heldout: list[tuple[int, float]] = field(default_factory=list)
    step_s: float = 0.0  # in optimizer.step, all together
    seconds: float = 0.0

    def report(self) -> dict:
        return asdict(self)


def heldout_loss(model: torch.nn.Module, data: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(settings.SEED)
    batch = windows(data, settings.HELDOUT_WINDOWS, settings.CONTEXT, generator)
    with torch.no_grad():
        return loss_of(model, batch).item()


def train(model, optimizer, text: Text, steps: int, after: Callable[[int], None]) -> Outcome:
    """Trains for `steps`; calls after(step) behind each step, counted from 1."""
    outcome, begun = Outcome(), time.monotonic()
    generator = torch.Generator().manual_seed(settings.SEED)
    base_lr = [group["lr"] for group in optimizer.param_groups]
    outcome.heldout.append((0, heldout_loss(model, text.heldout)))
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, base_lr):
            group["lr"] = lr * settings.decay(step, steps)
        loss = loss_of(model, windows(text.train, settings.BATCH, settings.CONTEXT, generator))
        loss.backward()
        stepping = time.monotonic()
        optimizer.step()
        outcome.step_s += time.monotonic() - stepping
        optimizer.zero_grad(set_to_none=True)
        outcome.losses.append(loss.item())
        after(step + 1)
        if (step + 1) % settings.HELDOUT_EVERY == 0 or step + 1 == steps:
            outcome.heldout.append((step + 1, heldout_loss(model, text.heldout)))
        tell("step", step=step + 1, steps=steps, loss=loss.item(), heldout=outcome.heldout[-1][1])
    outcome.seconds = time.monotonic() - begun
    return outcome


def state_bytes(parameters) -> int:
    """Of the two Adam states as such, without the rest of their pages: 8-bit codes and an fp32 scale for 256 of
    them, or fp32 for parameters under 4096 elements."""
    total = 0
    for parameter in parameters:
        n = parameter.numel()
        total += 8 * n if n < 4096 else 2 * (n + 4 * -(-n // 256))
    return total


def digest(model: torch.nn.Module) -> str:
    """SHA-256 over the bytes of every parameter, in order of their names."""
    sha = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        sha.update(name.encode())
        sha.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()
