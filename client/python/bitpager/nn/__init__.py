"""Layers whose frozen weights live, quantized, in the daemon's pages."""

from __future__ import annotations

from ..not_there import refuse
from .linear4bit import Linear4bit, LinearFP4, LinearNF4
from .parameter import FourBitParameter
from .swap import dequantize_, quantize_

_NOT_YET = (
    "Linear8bitLt",
    "Int8Params",
    "OutlierAwareLinear",
    "SwitchBackLinearBnb",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
)


def __getattr__(name):
    if name in _NOT_YET:
        words = (
            f"bitpager.nn has no {name} yet: 8-bit weights and quantized embeddings are not there, and 4 bits are not "
            f"taken in their place. It has: {', '.join(__all__)}."
        )
        refuse(__name__, name, words)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["FourBitParameter", "Linear4bit", "LinearFP4", "LinearNF4", "dequantize_", "quantize_"]
