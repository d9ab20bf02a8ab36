"""bitpager: 8-bit optimizer states and 4-bit weights in pages that one daemon per node owns.

    opt = bitpager.optim.PagedAdamW8bit(model.parameters(), lr=2e-4)
    bitpager.nn.quantize_(base_model)
    print(bitpager.memory_summary())

Without a running daemon the first use starts a private one, which ends with its last client.
"""

from __future__ import annotations

from . import functional, hints, nn, optim, telemetry
from .allocator import AllocatorGuard, guard_allocator
from .errors import (
    AlreadyExistsError,
    BudgetError,
    BusyError,
    DaemonLostError,
    DeviceFaultError,
    DrainingError,
    Error,
    ForkedChildError,
    InterruptedCallError,
    InvalidArgumentError,
    LayoutMismatchError,
    LibraryError,
    NonFiniteError,
    NotFoundError,
    NotResidentError,
    OutOfMemoryError,
    PermissionDeniedError,
    QuotaError,
    StepMismatchError,
    UnreachableError,
    UnsupportedError,
    VersionError,
)
from .memory import memory_stats, memory_summary, reset_peak_memory_stats
from .quant_state import QuantState
from .retry import guard
from .session import Session, connect, default_session, disconnect
from .weight import Weight

__version__ = "0.1.0"

_LAZY = ("hf", "peft", "plan")  # they need transformers or peft, or are rarely used


def __getattr__(name):
    """bitpager.hf, bitpager.peft and bitpager.plan are imported when they are first asked for."""
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AllocatorGuard",
    "AlreadyExistsError",
    "BudgetError",
    "BusyError",
    "DaemonLostError",
    "DeviceFaultError",
    "DrainingError",
    "Error",
    "ForkedChildError",
    "InterruptedCallError",
    "InvalidArgumentError",
    "LayoutMismatchError",
    "LibraryError",
    "NonFiniteError",
    "NotFoundError",
    "NotResidentError",
    "OutOfMemoryError",
    "PermissionDeniedError",
    "QuantState",
    "QuotaError",
    "Session",
    "StepMismatchError",
    "UnreachableError",
    "UnsupportedError",
    "VersionError",
    "Weight",
    "connect",
    "default_session",
    "disconnect",
    "functional",
    "guard",
    "guard_allocator",
    "hints",
    "memory_stats",
    "memory_summary",
    "nn",
    "optim",
    "reset_peak_memory_stats",
    "telemetry",
]
