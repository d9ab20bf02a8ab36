"""What a model takes in memory by scheme, worked out from its config before anything is loaded.

    python -m bitpager.plan CONFIG [--vram 24G] [--batch 1] [--context 2048] [--rank 16]     (also: bitpager plan ...)

CONFIG: a folder with config.json, such a file, or a model's name on the Hugging Face hub, whose config transformers
fetches. Decoders of the Llama family are counted from the config alone; any other architecture is counted by
transformers, where that is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

from .sizes import parse_bytes, print_bytes

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "gemma", "phi3")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # org/name
_RESERVE = 0.08  # of the GPU's memory, for its context and for fragments
_CODES = 0.5  # bytes of a 4-bit weight
_SCALES = {False: 4 / 64, True: 1 / 64 + 4 / 64 / 256}  # bytes of its share of the scales, by double quantization
_NAMES = {False: "NF4 + LoRA", True: "NF4, double quantization + LoRA"}  # by double quantization
_STATES_8BIT = 2 * (1 + 4 / 256)  # bytes of two Adam states of an element, with their scales


class Shape:
    """What a plan counts. linears: [(in, out, how many)] of the layers that would be quantized; others: parameters of
    everything else; hidden, layers, vocabulary: sizes; saved: 16-bit elements that a layer keeps for backward, a token
    (an estimate)."""

    def __init__(self, linears, others, hidden, layers, vocabulary, saved):
        self.linears = linears
        self.others = others
        self.hidden = hidden
        self.layers = layers
        self.vocabulary = vocabulary
        self.saved = saved

    @property
    def quantized(self) -> int:
        """Weights in linear layers that would be quantized."""
        return sum(inputs * outputs * count for inputs, outputs, count in self.linears)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.quantized + self.others

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA on all linear layers."""
        return sum(rank * (inputs + outputs) * count for inputs, outputs, count in self.linears)


class Scheme:
    """One row of a plan; all values in bytes. pages: what of weights and states is in pages, so that it may leave for
    host memory; total: everything on the GPU; least: with every page on the host but a window and the largest layer."""

    FIELDS = ("weights", "adapters", "gradients", "states", "activations", "total", "least", "host")

    def __init__(self, name, trains, weights, adapters, gradients, states, activations, pages, working):
        self.name = name
        self.trains = trains  # "all", "adapters"
        self.weights = int(weights)
        self.adapters = int(adapters)
        self.gradients = int(gradients)
        self.states = int(states)
        self.activations = int(activations)
        self.total = int(weights + adapters + gradients + states + activations + working)
        self.host = int(pages)
        self.least = int(self.total - pages + (min(pages, 48 << 20)))


class Plan:
    """schemes: list of Scheme; parameters; vram (None when it was not said); str() is a table and a recommendation."""

    def __init__(self, shape, schemes, vram, batch, context, rank, checkpointing):
        self.shape = shape
        self.schemes = schemes
        self.vram = vram
        self.batch = batch
        self.context = context
        self.rank = rank
        self.checkpointing = checkpointing

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.shape.parameters

    @property
    def room(self):
        """Bytes of the GPU that a job can count on, or None."""
        return None if self.vram is None else int(self.vram * (1 - _RESERVE))

    def verdict(self, scheme: Scheme) -> str:
        """One of "fits", "pages out" (fits while pages are on the host, slower), "too large", or "" without vram."""
        if self.room is None:
            return ""
        if scheme.total <= self.room:
            return "fits"
        return "pages out" if scheme.least <= self.room else "too large"

    def recommend(self) -> str:
        """A sentence: which scheme to take, or what would help."""
        if self.room is None:
            return "Say --vram to learn what fits."
        for wanted in ("fits", "pages out"):
            for scheme in sorted(self.schemes, key=_order):
                if scheme.trains == "adapters" and self.verdict(scheme) == wanted:
                    full = next((s for s in self.schemes if s.trains == "all" and self.verdict(s) == "fits"), None)
                    more = f" Training all parameters fits too, as {full.name}." if full else ""
                    how = "" if wanted == "fits" else " Pages will move between GPU and host, which costs time."
                    sizes = f"{print_bytes(scheme.total)} of {print_bytes(self.room)}"
                    return f"Adapters: {scheme.name}, {sizes}.{how}{more}"
        last = self.schemes[-1]
        missing = last.least - self.room
        half = last.activations // 2
        return (
            f"Nothing fits: {last.name} lacks {print_bytes(missing)} even with its pages on the host. A context of "
            f"{self.context // 2} would save about {print_bytes(half)}"
            + ("." if self.checkpointing else ", checkpointing more.")
        )

    def to_dict(self) -> dict:
        """For JSON: schema_version, parameters and integer bytes."""
        rows = [
            {"scheme": s.name, "trains": s.trains, "verdict": self.verdict(s)}
            | {f"{f}_bytes": getattr(s, f) for f in Scheme.FIELDS}
            for s in self.schemes
        ]
        return {
            "schema_version": 1,
            "parameters": self.parameters,
            "vram_bytes": self.vram,
            "schemes": rows,
            "recommendation": self.recommend(),
        }

    def __str__(self):
        head = ["scheme", *Scheme.FIELDS, ""]
        rows = [[s.name, *(print_bytes(getattr(s, f)) for f in Scheme.FIELDS), self.verdict(s)] for s in self.schemes]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
            for row in [head, *rows]
        ]
        said = (
            f"{self.parameters:,} parameters, {self.shape.quantized:,} of them in linear layers; batch {self.batch} of "
            f"{self.context} tokens, LoRA rank {self.rank}, checkpointing {'on' if self.checkpointing else 'off'}"
        )
        note = "total: all on the GPU. least: all pages but a window on the host. Activations are an estimate."
        return "\n".join([said, "", *(line.rstrip() for line in lines), "", note, self.recommend()])


def _order(scheme: Scheme) -> bool:
    """Sorts NF4 with double quantization before NF4 without, as audit() wants it; the rest keeps its order."""
    return scheme.name == _NAMES[False]


def plan(config, vram=None, batch=1, context=2048, rank=16, checkpointing=True) -> Plan:
    """A Plan for a model config.

    config: a folder with config.json, such a file, a model's name on the Hugging Face hub, a dict of a config's
    contents, or a transformers config. vram: bytes of the
    GPU, or "24G". batch, context: sequences and tokens of one pass. rank: of LoRA on all linear layers. checkpointing:
    of activations. Raises ValueError, with a hint, when there is no config or the architecture cannot be counted."""
    for name, value in (("batch", batch), ("context", context), ("rank", rank)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number; got {value!r}")
    shape = shape_of(_contents(config))
    vram = None if vram is None else parse_bytes(vram)
    return Plan(shape, _schemes(shape, batch * context, rank, checkpointing), vram, batch, context, rank, checkpointing)


def _schemes(shape: Shape, tokens: int, rank: int, checkpointing: bool):
    total, quantized, others = shape.parameters, shape.quantized, shape.others
    adapters = shape.adapters(rank)
    logits = tokens * shape.vocabulary * (2 + 4 + 4)  # 16-bit, as fp32, and their gradient
    kept = tokens * 2 * (shape.layers * shape.hidden + shape.saved if checkpointing else shape.layers * shape.saved)
    activations = logits + kept
    largest = 2 * max((inputs * outputs for inputs, outputs, _ in shape.linears), default=0)
    lora = dict(adapters=4 * adapters, gradients=4 * adapters, activations=activations)
    states = _STATES_8BIT * adapters
    rows = [
        Scheme("16-bit, AdamW", "all", 2 * total, 0, 2 * total, 8 * total, activations, 0, 0),
        Scheme(
            "16-bit, PagedAdamW8bit",
            "all",
            2 * total,
            0,
            2 * total,
            _STATES_8BIT * total,
            activations,
            _STATES_8BIT * total,
            0,
        ),
        Scheme("16-bit + LoRA", "adapters", 2 * total, states=states, pages=states, working=0, **lora),
    ]
    for double, name in _NAMES.items():
        packed = quantized * (_CODES + _SCALES[double])
        weights = packed + 2 * others
        rows.append(Scheme(name, "adapters", weights, states=states, pages=packed + states, working=largest, **lora))
    return rows


def _contents(config) -> dict:
    if isinstance(config, dict):
        return config
    if hasattr(config, "to_dict"):
        return config.to_dict()
    is_name = _HUB_NAME.fullmatch(str(config)) and not str(config).endswith(".json")
    if is_name and not os.path.exists(config) and not os.path.isdir(os.path.dirname(str(config))):
        return _from_hub(str(config))
    path = os.path.join(config, "config.json") if os.path.isdir(config) else config
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        hint = "Hint: a folder with config.json, or a model's name on the hub, like org/name."
        raise ValueError(f"cannot read a model config from {path}: {error}. {hint}") from error


def _from_hub(name: str) -> dict:
    """The config of a model on the Hugging Face hub, or of its copy in the cache."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ValueError(
            f"{name} is no folder here, and a config on the hub is fetched by transformers, which is not installed. "
            'Hint: pip install "bitpager[hf]", or a folder with config.json.'
        ) from error
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot read a model config: {name} is no folder here, and transformers cannot fetch it from the hub: "
            f"{_first_line(error)}. Hint: a folder with config.json, a network, or hf auth login "
            "for a model that asks for it."
        ) from error


def _first_line(error) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def shape_of(config: dict) -> Shape:
    """The Shape of a model config's contents."""
    config = {**config, **(config.get("text_config") or {})}
    if config.get("model_type") in _LLAMA_LIKE:
        return _llama_like(config)
    return _by_transformers(config)


def _llama_like(config: dict) -> Shape:
    try:
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        inner, heads, vocabulary = config["intermediate_size"], config["num_attention_heads"], config["vocab_size"]
    except KeyError as error:
        raise ValueError(f"the config lacks {error}") from error
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    if config["model_type"] == "phi3":
        linears = [(hidden, queries + 2 * keys, layers), (queries, hidden, layers)]
        linears += [(hidden, 2 * inner, layers), (inner, hidden, layers)]
    else:
        linears = [(hidden, queries, layers), (hidden, keys, 2 * layers), (queries, hidden, layers)]
        linears += [(hidden, inner, 2 * layers), (inner, hidden, layers)]
    biases = 0
    if config.get("attention_bias") or config["model_type"] == "qwen2":
        biases += layers * (queries + 2 * keys)
    if config.get("attention_bias"):
        biases += layers * hidden
    if config.get("mlp_bias"):
        biases += layers * (2 * inner + hidden)
    tied = config.get("tie_word_embeddings", config["model_type"] == "gemma")
    others = vocabulary * hidden * (1 if tied else 2) + (2 * layers + 1) * hidden + biases
    return Shape(linears, others, hidden, layers, vocabulary, 4 * hidden + 2 * queries + 2 * keys + 3 * inner)


def _by_transformers(config: dict) -> Shape:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"model_type {config.get('model_type')!r} is counted by transformers, which is not installed. Hint: pip "
            'install "bitpager[hf]".'
        ) from error
    import torch

    settings = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = _make_model(transformers, made)
    model.tie_weights()  # some versions leave that out on the meta device
    head = model.get_output_embeddings()
    linears = [
        (module.in_features, module.out_features, 1)
        for module in model.modules()
        if type(module) is torch.nn.Linear and module is not head
    ]
    quantized = sum(inputs * outputs for inputs, outputs, _ in linears)
    others = sum(p.numel() for p in model.parameters()) - quantized
    text = made.get_text_config()
    hidden = getattr(text, "hidden_size", None) or text.d_model
    layers = getattr(text, "num_hidden_layers", None) or text.num_layers
    per_layer = sum(outputs for _, outputs, _ in linears) // max(layers, 1) + 2 * hidden
    return Shape(linears, others, hidden, layers, text.vocab_size, per_layer)


def _make_model(transformers, config):
    """The model that the config's `architectures` names; without them, one with a language head."""
    for name in getattr(config, "architectures", None) or ():
        kind = getattr(transformers, name, None)
        if type(config) is getattr(kind, "config_class", None):
            return kind._from_config(config)
    kinds = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel"]
    if getattr(config, "is_encoder_decoder", False):  # BART has a decoder for CausalLM too, which is half of it
        kinds.insert(0, kinds.pop(1))
    for kind in kinds:
        try:
            return getattr(transformers, kind).from_config(config)
        except ValueError:
            continue
    raise ValueError(f"transformers has no model for {config.model_type!r}")


def main(arguments=None) -> int:
    """The command. Exit code 0, or 2 when the config or an argument does not do."""
    parser = argparse.ArgumentParser(prog="bitpager plan", description="What a model takes in memory, by scheme.")
    parser.add_argument("config", help="folder with config.json, the file, or a name on the hub")
    parser.add_argument("--vram", help='memory of the GPU, like "24G"')
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args(arguments)
    try:
        made = plan(said.config, said.vram, said.batch, said.context, said.rank, not said.no_checkpointing)
    except ValueError as error:
        print(f"bitpager plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(made.to_dict(), indent=2) if said.json else made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
