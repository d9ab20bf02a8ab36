"""Adapters of PEFT over layers in pages.

PEFT's own LoraConfig trains, saves and loads adapters over them as over any Linear. What it cannot do alone is what
changes the base: merging (the base is dequantized, added to and quantized again) and DoRA (which needs the base's
norms). For these the config says which layer class to use:

    model = peft.get_peft_model(model, bitpager.peft.LoraConfig(r=16, target_modules="all-linear"))
    model = bitpager.peft.load_adapter(base, "adapter")        # PeftModel.from_pretrained with the same
    bitpager.peft.adopt(model).merge_and_unload()              # for a model made with PEFT's own config

Saved adapters are PEFT's, and load without bitpager. ImportError, with a hint, when peft is missing.
"""

from __future__ import annotations

try:
    import peft as _peft
except ImportError as error:
    raise ImportError('bitpager.peft needs peft, which is not installed. Hint: pip install "bitpager[hf]".') from error

from ..nn import Linear4bit
from .layer import LoraLinear4bit

__all__ = ["LoraConfig", "LoraLinear4bit", "adopt", "load_adapter", "lora_config"]


def lora_config(config=None, **keywords):
    """A peft.LoraConfig(**keywords), or the given one, that puts LoraLinear4bit around quantized layers.

    The mapping is no part of what PEFT saves: a config that was loaded again needs it again (see load_adapter)."""
    if config is None:
        config = _peft.LoraConfig(**keywords)
    elif keywords:
        raise ValueError("give either a config or its arguments")
    config._register_custom_module({Linear4bit: LoraLinear4bit})
    return config


def LoraConfig(*arguments, **keywords):  # noqa: N802 - typed in the place of peft.LoraConfig
    """peft.LoraConfig with the same arguments, ready for quantized layers; see lora_config."""
    return lora_config(_peft.LoraConfig(*arguments, **keywords))


def load_adapter(model, adapter, **keywords):
    """peft.PeftModel.from_pretrained(model, adapter, **keywords) whose layers can be merged, DoRA included."""
    config = _peft.PeftConfig.from_pretrained(adapter)
    if isinstance(config, _peft.LoraConfig):
        config.inference_mode = not keywords.get("is_trainable", False)
        keywords = {"config": lora_config(config), **keywords}
    return _peft.PeftModel.from_pretrained(model, adapter, **keywords)


def adopt(model):
    """Makes the LoRA layers that PEFT's own config put around quantized layers mergeable, in place. Returns `model`."""
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear and isinstance(module.get_base_layer(), Linear4bit):
            module.__class__ = LoraLinear4bit  # it adds methods, no state
    return model
