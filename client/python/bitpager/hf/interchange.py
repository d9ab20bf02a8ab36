"""Whole checkpoints to and from bitsandbytes. Tensors are the same on both sides; config.json says whose they are."""

from __future__ import annotations

import json
import os

from .. import dtypes, errors
from ..nn import Linear4bit
from .config import BitpagerConfig

_PEER = "bitsandbytes"


def config_for(checkpoint, **keywords):
    """The model config of a checkpoint that bitsandbytes wrote (4-bit), made to load here:

        AutoModelForCausalLM.from_pretrained(path, config=bitpager.hf.config_for(path))

    checkpoint: what from_pretrained takes; keywords go to AutoConfig.from_pretrained. Configs without quantization, or
    with ours, come back as they are. UnsupportedError for 8-bit checkpoints and other methods."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, **keywords)
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return config
    saved = saved if isinstance(saved, dict) else saved.to_dict()
    if saved.get("quant_method") == "bitpager":
        return config
    if saved.get("quant_method") != _PEER or saved.get("load_in_8bit"):
        what = "8-bit" if saved.get("load_in_8bit") else f"quant_method {saved.get('quant_method')!r}"
        raise errors.UnsupportedError(
            f"{checkpoint} is quantized as {what}; 4-bit checkpoints of bitsandbytes can be taken over.",
            45,
            "UNSUPPORTED",
        )
    known = {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"}
    # What bitsandbytes takes for granted, not what we do: a missing key says fp4.
    theirs = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
    theirs.update((key, saved[key]) for key in known | {"llm_int8_skip_modules"} if saved.get(key) is not None)
    config.quantization_config = BitpagerConfig(**theirs).to_dict()
    return config


def save_for_bitsandbytes(model, folder, **keywords) -> None:
    """model.save_pretrained(folder, **keywords), with a config.json that sends the checkpoint to bitsandbytes.

    ValueError when the model is not quantized or has block sizes that bitsandbytes does not write (it has 64)."""
    layers = [module for module in model.modules() if isinstance(module, Linear4bit) and module.is_quantized]
    if not layers:
        raise ValueError("the model has no quantized layer. Hint: save_pretrained alone does for it.")
    ours = getattr(model.config, "quantization_config", None)
    if not isinstance(ours, BitpagerConfig):
        raise ValueError("the model was not loaded with BitpagerConfig")
    if any(layer.blocksize != 64 for layer in layers):
        raise ValueError("transformers loads bitsandbytes' layers with block size 64 only; this model has others")
    model.save_pretrained(folder, **keywords)
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        written = json.load(file)
    written["quantization_config"] = {
        "quant_method": _PEER,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": ours.quant_type,
        "bnb_4bit_use_double_quant": ours.double_quant,
        "bnb_4bit_compute_dtype": dtypes.name_of(ours.compute_dtype or model.dtype),
        "bnb_4bit_quant_storage": dtypes.name_of(ours.quant_storage),
        "llm_int8_skip_modules": None if ours.skip_modules is None else list(ours.skip_modules),
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(written, file, indent=2, sort_keys=True)
        file.write("\n")
