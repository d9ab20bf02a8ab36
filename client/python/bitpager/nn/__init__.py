"""Layers whose frozen weights live, quantized, in the daemon's pages."""

from __future__ import annotations

from .linear4bit import Linear4bit, LinearFP4, LinearNF4
from .parameter import FourBitParameter
from .swap import dequantize_, quantize_

__all__ = ["FourBitParameter", "Linear4bit", "LinearFP4", "LinearNF4", "dequantize_", "quantize_"]
