"""LoraLinear4bit: PEFT's LoRA layer around a layer in pages.

Training is PEFT's own code over the layer's product. What reads or writes the base as a matrix gets it opened: a plain
Linear with the dequantized weight stands in its place for that long, and is quantized again when it was written to.
"""

from __future__ import annotations

import contextlib
import types

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant


class LoraLinear4bit(Linear):
    """peft.tuners.lora.Linear over a bitpager.nn.Linear4bit: merging, unmerging and DoRA included.

    Merging rounds to 4 bits again: the merged layer differs from base and adapter by up to half a step of its codes,
    and unmerging does not give back the bits from before."""

    def update_layer(self, adapter_name, *arguments, **keywords):
        """As PEFT's: adds an adapter. DoRA's magnitudes start from the dequantized base."""
        config = keywords.get("config")
        if getattr(config, "use_dora", keywords.get("use_dora", False)):
            with self._opened(write=False):
                return super().update_layer(adapter_name, *arguments, **keywords)
        return super().update_layer(adapter_name, *arguments, **keywords)

    def resolve_lora_variant(self, **keywords):
        """As PEFT's, with DoRA over a layer in pages."""
        variant = super().resolve_lora_variant(**keywords)
        return PagedDora() if type(variant) is DoraLinearVariant else variant

    def merge(self, safe_merge=False, adapter_names=None):
        """Adds the adapters to the base and quantizes it again. See peft.tuners.lora.Linear.merge."""
        if self._is_open:
            return super().merge(safe_merge, adapter_names)
        with self._opened(write=True):
            return super().merge(safe_merge, adapter_names)

    def unmerge(self):
        """Takes merged adapters off the base and quantizes it again."""
        if self._is_open or not self.merged:
            return super().unmerge()
        with self._opened(write=True):
            return super().unmerge()

    @property
    def _is_open(self) -> bool:
        return type(self.base_layer) is torch.nn.Linear

    @contextlib.contextmanager
    def _opened(self, write: bool):
        paged = self.base_layer
        dtype = paged.weight.pages.dtype
        plain = torch.nn.Linear(paged.in_features, paged.out_features, False, "meta")
        plain.weight = torch.nn.Parameter(paged.dequantize().float(), requires_grad=False)
        plain.bias = paged.bias
        before = plain.weight.detach().clone() if write else None
        self.base_layer = plain
        try:
            yield
        finally:
            self.base_layer = paged
        if write and not torch.equal(before, plain.weight):
            paged.quantize_(plain.weight.to(dtype))


class PagedDora(DoraLinearVariant):
    """DoRA (https://arxiv.org/abs/2402.09353) whose base is read from pages in forward and not kept for backward."""

    @staticmethod
    def forward(module, active_adapter, x, result, **_):
        """x: the layer's input in the adapter's dtype; result: the base's output. Returns result with the adapter."""
        base = module.get_base_layer()
        dropout = module.lora_dropout[active_adapter]
        base_result = result
        if module.training and not isinstance(dropout, torch.nn.Identity):
            x = dropout(x)
            base_result = base(x)
        weight = torch.nn.Parameter(base.dequantize(), requires_grad=False)
        return result + module.lora_magnitude_vector[active_adapter](
            x,
            lora_A=module.lora_A[active_adapter],
            lora_B=module.lora_B[active_adapter],
            scaling=module.scaling[active_adapter],
            base_layer=types.SimpleNamespace(weight=weight, bias=base.bias),
            base_result=base_result,
            adapter_name=active_adapter,
        )
