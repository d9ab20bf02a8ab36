"""bitpager for transformers: quantized loading, Trainer with paged optimizers, an audit of what was set up.

    from bitpager.hf import BitpagerConfig
    model = AutoModelForCausalLM.from_pretrained(id, quantization_config=BitpagerConfig(), device_map="auto")
    trainer = bitpager.hf.Trainer(model, TrainingArguments(optim="paged_adamw_8bit", ...), train_dataset=data)
    bitpager.hf.audit(model)

BitpagerConfig       what to quantize and how; takes bitsandbytes' keyword names too
config_for           a model config that makes a checkpoint which bitsandbytes wrote load here
save_for_bitsandbytes  a checkpoint that transformers loads with bitsandbytes
optimizer            (class, keywords) of TrainingArguments.optim, for any Trainer's optimizer_cls_and_kwargs
with_optimizers      a Trainer class (of transformers, TRL, your own) that reads its optim strings as ours
Trainer, SFTTrainer  transformers' and TRL's, made by it
MemoryCallback       bitpager/... figures in Trainer's logs, so in TensorBoard and Weights & Biases
audit                the production checklist as pass/fail lines, each with its fix
plan                 bytes of a model by scheme, and what fits (bitpager.plan)

Importing this module registers the quantization method "bitpager" with transformers. It must be imported before a
checkpoint that was saved with it is loaded. ImportError, with a hint, when transformers is missing or older than 5.0.
"""

from __future__ import annotations

_OLDEST = (5, 0)


def _require_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'bitpager.hf needs transformers, which is not installed. Hint: pip install "bitpager[hf]".'
        ) from error
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2] if part.isdigit())
    if version < _OLDEST:
        raise ImportError(
            f"bitpager.hf needs transformers {_OLDEST[0]}.{_OLDEST[1]} or newer; {transformers.__version__} is "
            "installed. Hint: pip install -U transformers."
        )


_require_transformers()

from ..plan import plan  # noqa: E402
from .audit import Audit, audit  # noqa: E402
from .config import BitpagerConfig  # noqa: E402
from .interchange import config_for, save_for_bitsandbytes  # noqa: E402
from .memory_callback import MemoryCallback  # noqa: E402
from .optimizers import optimizer, with_optimizers  # noqa: E402
from .quantizer import BitpagerQuantizer  # noqa: E402

__all__ = [
    "Audit",
    "BitpagerConfig",
    "BitpagerQuantizer",
    "MemoryCallback",
    "SFTTrainer",
    "Trainer",
    "audit",
    "config_for",
    "optimizer",
    "plan",
    "save_for_bitsandbytes",
    "with_optimizers",
]


def __getattr__(name):
    """Trainer and SFTTrainer are made at first use: TRL and Trainer take seconds to import."""
    if name == "Trainer":
        from transformers import Trainer as base
    elif name == "SFTTrainer":
        try:
            from trl import SFTTrainer as base
        except ImportError as error:
            raise ImportError(f"bitpager.hf.SFTTrainer needs trl: {error}. Hint: pip install trl.") from error
    else:
        raise AttributeError(f"module 'bitpager.hf' has no attribute {name!r}")
    made = globals()[name] = with_optimizers(base)
    return made
