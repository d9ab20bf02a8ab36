"""Optimizers whose states live in the daemon's pages: {Adam, AdamW, Lion} x {plain, 8bit, 32bit} x {plain, Paged}."""

from __future__ import annotations

from ..not_there import refuse
from .adam import (
    Adam,
    Adam8bit,
    Adam32bit,
    AdamW,
    AdamW8bit,
    AdamW32bit,
    PagedAdam,
    PagedAdam8bit,
    PagedAdam32bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
)
from .base import BlockOptimizer
from .lion import Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit
from .overrides import GlobalOptimManager

__all__ = [
    "Adam",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "BlockOptimizer",
    "GlobalOptimManager",
    "Lion",
    "Lion8bit",
    "Lion32bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
]

_NOT_YET = ("AdEMAMix", "PagedAdEMAMix", "Adagrad", "LAMB", "LARS", "RMSprop", "SGD")


def __getattr__(name):
    if name.removesuffix("8bit").removesuffix("32bit") in _NOT_YET:
        refuse(__name__, name, f"bitpager.optim has no {name} yet. It has: {', '.join(sorted(__all__))}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
