"""audit(): the production checklist for a quantized model, as lines that pass or fail, each failure with its fix."""

from __future__ import annotations

import torch

from .. import dtypes, machine, optim
from ..nn import Linear4bit
from ..out_of_memory import is_checkpointing
from ..sizes import print_bytes
from . import room

_LARGE = 1_000_000_000  # weights from which double quantization is worth a failure
_SMALL = 0.5  # of the size in 16 bits; up to here a model counts as quantized


class Line:
    """One line of an audit. passed: True, False, or None when there was nothing to judge; name: what was looked at;
    text: what was found; fix: what to do, "" when nothing."""

    def __init__(self, passed, name: str, text: str, fix: str = ""):
        self.passed = passed
        self.name = name
        self.text = text
        self.fix = fix

    def __str__(self):
        mark = {True: "pass", False: "FAIL", None: "note"}[self.passed]
        return f"[{mark}] {self.name}: {self.text}" + (f". Fix: {self.fix}" if self.fix else "")


class Audit:
    """The lines of an audit. `passed`: none failed. str() is what was printed."""

    def __init__(self, lines):
        self.lines = list(lines)

    @property
    def passed(self) -> bool:
        """No line failed."""
        return all(line.passed is not False for line in self.lines)

    def __getitem__(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    def __str__(self):
        return "\n".join(map(str, self.lines))


def audit(model: torch.nn.Module, optimizer=None, print_lines=True) -> Audit:
    """Looks at a quantized model, and the optimizer that is to train it, and prints a line for each of: layers, memory,
    type, double quantization, compute dtype, training, adapters, checkpointing, room, numbers, optimizer, torch.

    Nothing is changed. Returns the Audit."""
    layers = room.layers_of(model)
    lines = [_layers(layers)]
    if layers:
        lines += [
            _memory(model, layers),
            _type(layers),
            _double_quantization(layers),
            _compute_dtype(model, layers),
            _training(model),
            _adapters(model),
            _checkpointing(model),
            _room(model),
        ]
    lines += [_numbers(model), _optimizer(optimizer), _torch()]
    report = Audit(line for line in lines if line is not None)
    if print_lines:
        print(report)
    return report


def _layers(layers) -> Line:
    if not layers:
        return Line(
            False,
            "layers",
            "the model has no quantized layer",
            "import bitpager.hf before from_pretrained, and pass quantization_config=BitpagerConfig(), or call "
            "bitpager.nn.quantize_(model)",
        )
    waiting = sum(not layer.is_quantized for layer in layers)
    if waiting:
        return Line(False, "layers", f"{waiting} of {len(layers)} wait to be quantized", "run one forward pass")
    return Line(True, "layers", f"{len(layers)} linear layers in pages")


def _memory(model, layers) -> Line:
    """The whole model, adapters left out, beside what it takes in 16 bits."""
    packed = sum(layer.weight.pages.packed_bytes for layer in layers if layer.is_quantized)
    taken = sum(room.bytes_of(parameter) for _, _, parameter in room.base_parameters(model))
    wide = room.bytes_in_16_bits(model)
    linear, other = room.left_as_floats(model)
    text = (
        f"{print_bytes(taken)}, {taken / wide:.0%} of {print_bytes(wide)} in 16 bits: {print_bytes(packed)} of "
        f"quantized weights, {print_bytes(taken - packed)} of others"
    )
    if sum(other.values()) > room.LARGE_SHARE * wide:
        return Line(
            False,
            "memory",
            f"{text}, among them what are no plain linear layers: {room.name_largest(other)}",
            "only plain linear layers are quantized: take a model without such parameters, or reckon with these bytes",
        )
    if taken <= _SMALL * wide:
        return Line(True, "memory", text)
    if sum(linear.values()) > room.LARGE_SHARE * wide:
        return Line(None, "memory", f"{text}, among them linear layers left out by name: {room.name_largest(linear)}")
    return Line(None, "memory", f"{text}, which are embeddings and output head for the most part")


def _type(layers) -> Line:
    kinds = sorted({layer.quant_type for layer in layers})
    if kinds == ["nf4"]:
        return Line(True, "type", "NF4")
    return Line(
        False,
        "type",
        f"{', '.join(kinds)}: on weights that are spread normally FP4's mean error is a third more than NF4's, at the "
        "same size",
        'quant_type="nf4"',
    )


def _double_quantization(layers) -> Line:
    plain = [layer for layer in layers if not layer.compress_statistics]
    if not plain:
        return Line(True, "double quantization", "on")
    saved = room.saved_by_double_quantization(layers)
    text = f"off in {len(plain)} layers; it would save {print_bytes(saved)}"
    large = room.weights_of(plain) >= _LARGE
    return Line(False if large else None, "double quantization", text, "double_quant=True" if large else "")


def _compute_dtype(model, layers) -> Line:
    computed = {layer.compute_dtype for layer in layers}
    if None in computed:
        return Line(
            False,
            "compute dtype",
            "not said; the first input decides, which under float32 inputs is slow",
            "compute_dtype=torch.bfloat16, or load through BitpagerConfig, which takes the model's",
        )
    # Norms may be kept in float32 on purpose; embeddings say what flows through the model.
    own = {m.weight.dtype for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    text = ", ".join(sorted(map(dtypes.name_of, computed)))
    if computed == {torch.float32}:
        gpu = room.on_gpu(layers)
        fix = "load with dtype=torch.bfloat16 (in TRL's configs model_init_kwargs={'dtype': 'bfloat16'})"
        return Line(False if gpu else None, "compute dtype", f"{text}, which is slow", fix)
    if len(computed) == 1 and (not own or own == computed):
        return Line(True, "compute dtype", text)
    if len(computed) == 1 and own == {torch.float32} and (_is_adapted(model) or is_checkpointing(model)):
        return Line(True, "compute dtype", f"{text}; the rest is float32, as prepare_model_for_kbit_training makes it")
    return Line(
        False,
        "compute dtype",
        f"{text}, the model's is {', '.join(sorted(map(dtypes.name_of, own)))}: every layer casts",
        "load with dtype= and compute_dtype= alike",
    )


def _training(model) -> Line:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if _is_adapted(model) and trainable:
        return Line(True, "training", f"{trainable:,} parameters train over the frozen base")
    if not model.training:
        return Line(None, "training", "in eval mode, without trainable adapters")
    return Line(
        False,
        "training",
        f"in training mode without adapters: 4-bit weights never train, and what would are {trainable:,} parameters of "
        "embeddings, norms and biases",
        "peft.get_peft_model(model, bitpager.peft.LoraConfig(...)), or model.eval()",
    )


def _is_adapted(model) -> bool:
    """PEFT's layers of every kind keep what they adapt as `base_layer`."""
    return any(isinstance(getattr(module, "base_layer", None), torch.nn.Module) for module in model.modules())


def _adapters(model):
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return None
    from ..peft import LoraLinear4bit

    wrapped = [m for m in model.modules() if isinstance(m, LoraLayer) and isinstance(m.get_base_layer(), Linear4bit)]
    if not wrapped:
        return None
    stock = sum(not isinstance(m, LoraLinear4bit) for m in wrapped)
    if not stock:
        return Line(True, "adapters", f"LoRA on {len(wrapped)} quantized layers; they can be merged")
    return Line(
        None,
        "adapters",
        f"LoRA on {len(wrapped)} quantized layers, {stock} of which are PEFT's own: they train, and can neither merge "
        "nor use DoRA",
        "bitpager.peft.adopt(model) before merging, or bitpager.peft.LoraConfig in the place of peft's",
    )


def _checkpointing(model):
    on = is_checkpointing(model)
    if on is None or not any(p.requires_grad for p in model.parameters()):
        return None
    if on:
        return Line(True, "checkpointing", "activations are recomputed in backward")
    return Line(None, "checkpointing", "off: prepare_model_for_kbit_training(model) turns it on and saves activations")


def _room(model) -> Line:
    """What to do when memory runs out, in bytes, the largest first."""
    return Line(None, "room", f"if memory runs out: {room.advice(model)}")


def _numbers(model) -> Line:
    broken = [
        name
        for name, p in model.named_parameters()
        if getattr(p, "pages", None) is None and p.is_floating_point() and not bool(torch.isfinite(p.detach()).all())
    ]
    if not broken:
        return Line(True, "numbers", "all parameters are finite")
    return Line(
        False,
        "numbers",
        f"NaN or inf in {', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}",
        "go back to a checkpoint before it, then clip gradients or lower the learning rate; bfloat16 overflows less "
        "than float16",
    )


def _optimizer(optimizer):
    optimizer = getattr(optimizer, "optimizer", optimizer)  # as Accelerate wraps it
    if optimizer is None:
        return None
    kind = type(optimizer).__name__
    if not isinstance(optimizer, optim.BlockOptimizer):
        return Line(None, "optimizer", f"{kind} is not bitpager's: its states are not paged")
    if "Paged" in kind:
        return Line(True, "optimizer", f"{kind}: its states may leave the device")
    return Line(None, "optimizer", f"{kind} keeps its states on the device; Paged{kind} lets them leave")


def _torch() -> Line:
    found = machine.gpu_verdict()
    return Line(found.passed, "torch", found.text, found.fix)
