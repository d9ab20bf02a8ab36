"""Models that TRL's trainers load by name: in which dtype, when nobody says."""

from __future__ import annotations

import contextlib

from .. import dtypes
from .config import BitpagerConfig


def config_of(trainer: type, model, args, quantization):
    """`args` as TRL's SFTTrainer makes them of nothing, or of transformers' own, before it reads model_init_kwargs; as
    they are for other trainers, and where no model is to be loaded with our `quantization`."""
    is_sft = any(kind.__name__ == "SFTTrainer" for kind in trainer.__mro__)
    ours = isinstance(model, str) and isinstance(quantization, BitpagerConfig)
    if not is_sft or not ours or hasattr(args, "model_init_kwargs"):
        return args
    from trl import SFTConfig

    if args is None:
        return SFTConfig(f"{model.rstrip('/').split('/')[-1]}-SFT")
    return SFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})  # to_dict() hides the token


@contextlib.contextmanager
def said_dtype(model, args, quantization):
    """While it lasts, args.model_init_kwargs have a dtype, if `model` is a name and `quantization` (or theirs) is ours.
    TRL's own default is float32, for full fine-tuning; a quantized base would compute in it."""
    given = getattr(args, "model_init_kwargs", None)
    config = quantization or (given or {}).get("quantization_config")
    said = {"dtype", "torch_dtype"} & {*(given or ())}
    if said or args is None or not isinstance(model, str) or not isinstance(config, BitpagerConfig):
        yield
        return
    args.model_init_kwargs = {**(given or {}), "dtype": _dtype_for(args, config)}
    try:
        yield
    finally:
        args.model_init_kwargs = given


def _dtype_for(args, config) -> str:
    """One dtype for model, products and autocast: what was said of the products, else of the training. "auto", the
    checkpoint's, where neither says; it alone would leave a float32 checkpoint under bf16=True in float32."""
    if config.compute_dtype is not None:
        return dtypes.name_of(config.compute_dtype)
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "auto"
