"""BitpagerConfig: what from_pretrained quantizes, and how."""

from __future__ import annotations

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from .. import dtypes, errors
from ..functional import BLOCKSIZES_4BIT
from ..quant_state import QUANT_TYPES

METHOD = "bitpager"
_STORAGES = ("uint8", "float16", "bfloat16", "float32")
# bitsandbytes' name -> ours
_NAMES = {
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
    "llm_int8_skip_modules": "skip_modules",
}
# Accepted because configs carry them; they say nothing about 4-bit weights in pages.
_WITHOUT_EFFECT = {
    "llm_int8_threshold",
    "llm_int8_has_fp16_weight",
    "llm_int8_enable_fp32_cpu_offload",
    "quant_method",
    "load_with",
}
# For who opens config.json because transformers does not know the method: it does once this was imported.
_LOAD_WITH = "import bitpager.hf, then from_pretrained"


class BitpagerConfig(QuantizationConfigMixin):
    """4-bit quantization of a model's linear layers, into the daemon's pages.

    quant_type: "nf4" or "fp4". double_quant: quantize the scales too, 0.37 bits a weight less. compute_dtype: of the
    products (a torch dtype or its name; None: the model's own, which is the fast and right one). quant_storage: dtype
    that packed bytes are saved as. blocksize: weights that share a scale. skip_modules: names of modules to leave alone
    (None: output head and what is tied to it, as transformers chooses).

    bitsandbytes' names (load_in_4bit, bnb_4bit_quant_type, bnb_4bit_use_double_quant, bnb_4bit_compute_dtype,
    bnb_4bit_quant_storage, llm_int8_skip_modules) mean the same. What is not given is NF4 with double quantization and
    the model's dtype, where bitsandbytes takes FP4 without it and float32. load_in_8bit=True raises UnsupportedError;
    unknown names raise TypeError, values outside their ranges ValueError.
    """

    def __init__(
        self,
        quant_type="nf4",
        double_quant=True,
        compute_dtype=None,
        quant_storage="uint8",
        blocksize=64,
        skip_modules=None,
        *,
        load_in_4bit=True,
        load_in_8bit=False,
        **keywords,
    ):
        # What BitsAndBytesConfig().to_dict() holds beside the names themselves.
        load_in_8bit = keywords.pop("_load_in_8bit", False) or load_in_8bit
        load_in_4bit = keywords.pop("_load_in_4bit", True) and load_in_4bit
        if load_in_8bit:
            raise errors.UnsupportedError(
                "load_in_8bit=True: 8-bit weights are not there yet, and 4 bits are not taken in their place. Hint: "
                "load_in_4bit=True, or transformers' BitsAndBytesConfig for 8 bits.",
                45,
                "UNSUPPORTED",
            )
        if not load_in_4bit:
            raise ValueError("load_in_4bit=False quantizes nothing. Hint: leave quantization_config out.")
        values = dict(
            quant_type=quant_type,
            double_quant=double_quant,
            compute_dtype=compute_dtype,
            quant_storage=quant_storage,
            skip_modules=skip_modules,
        )
        for name, value in keywords.items():
            if name in _NAMES:
                if value is not None:
                    values[_NAMES[name]] = value
            elif name not in _WITHOUT_EFFECT:
                known = [*values, "blocksize", "load_in_4bit", "load_in_8bit", *_NAMES]
                raise TypeError(f"BitpagerConfig has no argument {name!r}. It has: {', '.join(known)}.")
        self.quant_method = METHOD
        self.quant_type = values["quant_type"]
        self.double_quant = values["double_quant"]
        self.compute_dtype = _dtype(values["compute_dtype"], "compute_dtype")
        self.quant_storage = _dtype(values["quant_storage"], "quant_storage")
        self.blocksize = blocksize
        self.skip_modules = values["skip_modules"]
        self._check()

    def _check(self) -> None:
        if self.quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type must be one of {', '.join(QUANT_TYPES)}; got {self.quant_type!r}")
        if not isinstance(self.double_quant, bool):
            raise ValueError(f"double_quant must be True or False; got {self.double_quant!r}")
        if self.blocksize not in BLOCKSIZES_4BIT:
            raise ValueError(f"blocksize must be one of {BLOCKSIZES_4BIT}; got {self.blocksize!r}")
        if self.compute_dtype is not None and self.compute_dtype not in dtypes.FLOATS:
            raise ValueError(f"compute_dtype must be float32, float16 or bfloat16; got {self.compute_dtype}")
        if dtypes.name_of(self.quant_storage) not in _STORAGES:
            raise ValueError(f"quant_storage must be one of {', '.join(_STORAGES)}; got {self.quant_storage}")
        if self.skip_modules is not None and not (
            isinstance(self.skip_modules, (list, tuple)) and all(isinstance(name, str) for name in self.skip_modules)
        ):
            raise ValueError(f"skip_modules must be a list of module names; got {self.skip_modules!r}")

    @property
    def load_in_4bit(self) -> bool:
        """True. Never written to config.json, where it would send the checkpoint to bitsandbytes."""
        return True

    @property
    def load_in_8bit(self) -> bool:
        """False."""
        return False

    @property
    def bnb_4bit_quant_type(self) -> str:
        """quant_type, under the name that code written for bitsandbytes reads."""
        return self.quant_type

    @property
    def bnb_4bit_use_double_quant(self) -> bool:
        """double_quant."""
        return self.double_quant

    @property
    def bnb_4bit_compute_dtype(self):
        """compute_dtype; None where it is the model's own."""
        return self.compute_dtype

    @property
    def bnb_4bit_quant_storage(self) -> torch.dtype:
        """quant_storage."""
        return self.quant_storage

    @property
    def bits_per_weight(self) -> float:
        """Of a quantized weight, with its share of the scales."""
        return 4 + (8 / self.blocksize + 32 / self.blocksize / 256 if self.double_quant else 32 / self.blocksize)

    def to_dict(self) -> dict:
        """For config.json: primitives alone."""
        return {
            "quant_method": METHOD,
            "quant_type": self.quant_type,
            "double_quant": self.double_quant,
            "compute_dtype": None if self.compute_dtype is None else dtypes.name_of(self.compute_dtype),
            "quant_storage": dtypes.name_of(self.quant_storage),
            "blocksize": self.blocksize,
            "skip_modules": None if self.skip_modules is None else list(self.skip_modules),
            "load_with": _LOAD_WITH,
        }

    def to_diff_dict(self) -> dict:
        """As to_dict(): everything is written, so that other defaults do not change a checkpoint's meaning."""
        return self.to_dict()


def _dtype(value, name):
    if value is None or isinstance(value, torch.dtype):
        return value
    try:
        return dtypes.parse(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# register_quantization_config() refuses a second registration; a reloaded module must not fail.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = BitpagerConfig
