"""What every benchmark needs of the machine: cold caches, medians, the memory's ceiling, a daemon, the peer."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

FLUSH_BYTES = 256 << 20  # beyond any last-level cache here
REPEATS = 7


@dataclass(frozen=True)
class Setting:
    """Where programs and peers are, and the ceiling in bytes a second."""

    programs: Path
    logs: Path
    ceiling: float
    peer: object | None  # the bitsandbytes module


_flush = torch.ones(FLUSH_BYTES // 4)


def cool() -> None:
    """Fills the caches with something else."""
    _flush.add_(1.0)


def median_ms(prepare: Callable[[], None], work: Callable[[], None], repeats: int = REPEATS) -> float:
    """Median wall time of `work`; each time behind `prepare` and with cold caches. Two runs to warm up."""
    times = []
    for index in range(repeats + 2):
        prepare()
        cool()
        begun = time.perf_counter_ns()
        work()
        if index >= 2:
            times.append(time.perf_counter_ns() - begun)
    return statistics.median(times) / 1e6


def memory_ceiling() -> float:
    """Bytes a second, read and written together: the better of an update in place and a copy, all threads."""
    a, b = torch.ones(64 << 20), torch.ones(64 << 20)
    moved = 2 * a.numel() * 4
    best = min(median_ms(lambda: None, lambda: a.mul_(1.0)), median_ms(lambda: None, lambda: b.copy_(a)))
    return moved / (best / 1e3)


def load_peer(folder: Path):
    """bitsandbytes from `folder`; None, with a line that says why, when it is not to be had."""
    if not folder.is_dir():
        return None
    sys.path.append(str(folder))
    try:
        import bitsandbytes

        return bitsandbytes
    except Exception as error:  # whatever a foreign package raises on import, the rest is still worth measuring
        print(f"bitsandbytes does not load ({error}): its column stays empty")
        return None


@contextmanager
def session_of(setting: Setting, name: str, *flags: str):
    """A bitpager session at a daemon of its own."""
    import bitpager
    from private_daemon import Daemon

    with tempfile.TemporaryDirectory(prefix="bitpager-bench-") as folder:
        path = Path(folder) / "d.sock"
        with (
            Daemon(
                setting.programs / "bitpagerd", path, ["--device", "cpu", *flags], setting.logs / f"bench-{name}.log"
            ),
            bitpager.connect(socket=str(path), job=name, spawn=False, default=False) as session,
        ):
            yield session
