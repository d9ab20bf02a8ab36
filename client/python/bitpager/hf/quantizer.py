"""BitpagerQuantizer: how transformers' from_pretrained and save_pretrained deal with layers in pages.

Loading goes tensor by tensor: a float weight is read, quantized into pages and freed before the next one is read; a
packed one is taken over bit for bit. Saving exports packed tensors under bitsandbytes' names.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module

from .. import dtypes, errors
from ..functional import packed_bytes
from ..machine import gpu_verdict
from ..nn import FourBitParameter, Linear4bit, dequantize_
from ..nn.swap import release_sources
from ..quant_state import QuantState
from ..session import session_for
from ..sizes import print_bytes
from . import room
from .config import METHOD, BitpagerConfig

_PACKED_KEYS = [
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_map",
    "weight.absmax",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
    "weight",
]
_AWAY = ("cpu", "disk")
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers': read each tensor when its turn comes


class _Refusal:
    """In the place of a tensor that found no room. transformers collects what conversions raise into a report of
    tracebacks and goes on to the next tensor; what reading this raises comes out of from_pretrained as it is."""

    def __init__(self, error, model):
        self.__dict__["_error"] = room.while_loading(error, model)

    def __getattr__(self, name):
        _read_ahead_again()
        raise self._error


_has_set_one_by_one = False


def _read_one_by_one() -> None:
    """Else threads read ahead, in the worst case the whole checkpoint, onto the device where pages need room."""
    global _has_set_one_by_one
    if not os.environ.get(_ONE_BY_ONE):
        os.environ[_ONE_BY_ONE] = "1"
        _has_set_one_by_one = True


def _read_ahead_again() -> None:
    global _has_set_one_by_one
    if _has_set_one_by_one:
        os.environ.pop(_ONE_BY_ONE, None)
        _has_set_one_by_one = False


class Quantize(ConversionOps):
    """A float weight, in the dtype of the layer that it is for, into pages."""

    def convert(self, input_dict, model=None, **_):
        """{full name: tensor or [tensor]} -> {full name: FourBitParameter}."""
        result = {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            layer, _ = get_module_from_name(model, name)
            if layer.from_transposed:
                value = value.T.contiguous()
            try:
                layer.quantize_(value.to(layer.weight.dtype), name=name)
            except errors.Error as error:
                return {name: _Refusal(error, model)}
            result[name] = layer.weight
        return result


class TakePacked(ConversionOps):
    """A packed weight with its statistics into pages. Weights that are not packed pass."""

    def __init__(self, hf_quantizer):
        self.hf_quantizer = hf_quantizer  # its presence keeps transformers from casting the statistics

    def __deepcopy__(self, memo):
        return self  # copied for every tensor; a copy of the quantizer would be one of the model

    def convert(self, input_dict, model=None, full_layer_name=None, **_):
        """{"weight": ..., "weight.absmax": ...} -> {"weight": FourBitParameter}."""
        parts = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        packed = parts.pop("weight", None)
        layer, name = get_module_from_name(model, full_layer_name)
        if not isinstance(layer, Linear4bit) or name != "weight":
            if parts:
                raise ValueError(f"{full_layer_name} is packed in the checkpoint, but the model keeps it as it is")
            return input_dict
        if packed is None or not parts:
            raise ValueError(
                f"the checkpoint has {full_layer_name} {'without its statistics' if not parts else 'without its codes'}"
            )
        try:
            layer.take_packed_(packed, QuantState.from_dict(parts, packed.device), full_layer_name)
        except errors.Error as error:
            return {"weight": _Refusal(error, model)}
        return {"weight": layer.weight}

    @property
    def reverse_op(self):
        """Saving does not come back here: see _process_model_after_weight_loading."""
        raise NotImplementedError


class BitpagerQuantizer(HfQuantizer):
    """The quantization method "bitpager" of transformers. Made by from_pretrained; see BitpagerConfig."""

    requires_calibration = False

    def __init__(self, quantization_config, **keywords):
        super().__init__(copy.deepcopy(quantization_config), **keywords)  # what is noted in it is one model's
        self._model = None
        self._is_placed = False  # the device map stands

    def is_serializable(self, *_, **__) -> bool:
        """True: packed layers save and load."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: with adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: layers leave the graph for their product."""
        return True

    def param_element_size(self, model, param_name, param) -> float:
        """Bytes of an element of a placeholder: as quantized, while modules are given places by them. Nothing for
        layers in pages afterwards: what transformers then reserves by these sizes would stay with torch, beside the
        pages."""
        if not self.param_needs_quantization(model, param_name):
            return param.element_size()
        if self._is_placed:
            return 0
        return param.element_size() if self.pre_quantized else self.quantization_config.bits_per_weight / 8

    def param_needs_quantization(self, model, param_name, **_) -> bool:
        """True for the weights of the layers that were swapped."""
        layer, name = get_module_from_name(model, param_name)
        return isinstance(layer, Linear4bit) and name == "weight"

    def update_device_map(self, device_map):
        """Everything to the first GPU, or the CPU where there is none, when nothing was said."""
        if device_map is None:
            device_map = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
        return device_map

    def validate_environment(self, *_, device_map=None, **__) -> None:
        """Warns of a GPU that torch cannot use. Called again with the device map that transformers has worked out,
        which is the one that it goes on with."""
        if self._model is None:
            _warn_of_gpu()
        elif isinstance(device_map, dict):
            self._place(self._model, device_map)

    def _place(self, model, device_map: dict) -> None:
        keep_pages_home(model, device_map)
        self._is_placed = True

    def get_quantize_ops(self):
        """For weights that come as floats."""
        return Quantize()

    def get_weight_conversions(self):
        """For checkpoints with packed weights."""
        if not self.pre_quantized:
            return []
        operations = [TakePacked(self)]
        # By name: their order differs between versions of transformers.
        return [WeightConverter(source_patterns=_PACKED_KEYS, target_patterns="weight", operations=operations)]

    def _process_model_before_weight_loading(self, model, device_map=None, **_):
        config = self.quantization_config
        skipped = self.get_modules_to_not_convert(model, config.skip_modules, model._keep_in_fp32_modules)
        if config.skip_modules is None:  # the head; transformers looks for it by its weight, and it may have a bias
            skipped = {*skipped, [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]}
        swapped = [
            (name, module)
            for name, module in model.named_modules()
            if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
        ]
        if not swapped:
            raise ValueError(
                f"{type(model).__name__} has no linear layer to quantize outside {sorted(skipped)}. Hint: leave "
                "quantization_config out, or name fewer skip_modules."
            )
        config.skip_modules = sorted(skipped)  # loading it again leaves the same layers alone
        for name, module in swapped:
            model.set_submodule(name, self._swapped(module))
        self._model = model
        if isinstance(device_map, dict):
            self._place(model, device_map)
        _read_one_by_one()
        return model

    def _swapped(self, module):
        config = self.quantization_config
        transposed = isinstance(module, Conv1D)
        if transposed:
            module = _as_linear(module)
        layer = Linear4bit.like(
            module,
            config.compute_dtype or module.weight.dtype,
            config.double_quant,
            config.quant_type,
            config.quant_storage,
            blocksize=config.blocksize,
        )
        layer.from_transposed = transposed
        if self.pre_quantized:
            count = packed_bytes(module.weight.numel(), config.quant_storage) // config.quant_storage.itemsize
            empty = torch.empty((count, 1), dtype=config.quant_storage, device="meta")
            layer.weight = FourBitParameter(empty, quant_storage=config.quant_storage)
            layer._is_hf_initialized = True  # random values are for floats; see _keep_plain for what is missing
        return layer.requires_grad_(False)

    def _process_model_after_weight_loading(self, model, **_):
        self._model = None
        _read_ahead_again()
        for name, layer in list(model.named_modules()):
            if isinstance(layer, Linear4bit) and not layer.is_quantized:
                self._keep_plain(model, name, layer)
        kept = [c for c in getattr(model, "_weight_conversions", None) or [] if not _is_ours(c)]
        model._weight_conversions = kept  # saving writes packed weights as the layers export them
        # The one mark that makes PEFT, TRL, Trainer and Accelerate treat the base as quantized without bitsandbytes.
        model.is_loaded_in_8bit = True
        release_sources(model)
        self._warn_of_dtype(model)
        _warn_of_floats(model)
        return model

    def _keep_plain(self, model, name, layer) -> None:
        """A layer that the checkpoint does not have is new, and there to be trained: it stays an ordinary one."""
        plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=model.dtype)
        model._init_weights(plain)
        model.set_submodule(name, plain.train(layer.training))
        self.quantization_config.skip_modules.append(name)

    def _warn_of_dtype(self, model) -> None:
        wanted, own = self.quantization_config.compute_dtype, model.dtype
        layers = room.layers_of(model)
        if {layer.compute_dtype for layer in layers} == {torch.float32} and room.on_gpu(layers):
            room.warn_of_float32(model, "on a GPU")
        elif wanted is not None and own in dtypes.FLOATS and own != wanted:
            name = dtypes.name_of(wanted)
            load = f"from_pretrained(..., dtype={wanted}), with TRL model_init_kwargs={{'dtype': '{name}'}}"
            leave = "leave compute_dtype out"
            hint = {torch.float32: leave}.get(wanted, load if own == torch.float32 else f"{load}, or {leave}")
            warnings.warn(
                f"compute_dtype is {name}, the model's dtype {dtypes.name_of(own)}: every layer casts its inputs and "
                f"outputs. Hint: {hint}.",
                stacklevel=2,
            )

    def _dequantize(self, model, dtype=None):
        dequantize_(model, dtype)
        model.is_loaded_in_8bit = False
        return model


def _warn_of_gpu() -> None:
    if torch.cuda.is_available():
        return  # what is wrong with it is raised where it is used
    found = gpu_verdict()
    if found.passed is False:
        warnings.warn(f"{found}. The model is loaded nevertheless.", stacklevel=3)


def _warn_of_floats(model) -> None:
    """Of what is no linear layer, and large: a model of that kind is not much smaller than it was."""
    _, other = room.left_as_floats(model)
    size, wide = sum(other.values()), room.bytes_in_16_bits(model)
    if size > room.LARGE_SHARE * wide:
        warnings.warn(
            f"{print_bytes(size)} of this model's {print_bytes(wide)} in 16 bits are no plain linear layers and stay "
            f"as they are: {room.name_largest(other)}. Only such layers are quantized; transformers keeps experts of "
            "mixtures as parameters of three dimensions. Hint: reckon with these bytes, or take a model without them.",
            stacklevel=2,
        )


def keep_pages_home(model, device_map: dict) -> None:
    """Gives modules that hold quantized layers the device where the model runs, in place of "cpu" or "disk".

    Offloading moves a module's tensors there and back around each forward. Pages do this by themselves, as far as their
    budget asks for it, so the layers that use them stay where they compute; those of "disk" modules lie on the daemon's
    disk while they are not on the device, where it has one. Other modules are offloaded as said."""
    home = next((place for place in device_map.values() if place not in _AWAY), "cpu")
    quantized = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    to_disk = []
    for key, place in device_map.items():
        if place in _AWAY and place != home:
            inside = key + "." if key else ""
            held = [n for n in quantized if (n + ".").startswith(inside) or key.startswith(n + ".")]
            if held:
                device_map[key] = home
            if place == "disk":
                to_disk += [quantized[name] for name in held]
    if to_disk and _has_disk(to_disk[0].session or session_for(torch.device(home))):
        for layer in to_disk:
            layer.offload = "disk"


def _has_disk(session) -> bool:
    if session.memory_stats()["disk_budget_bytes"]:
        return True
    warnings.warn(
        "modules were to be offloaded to disk, but this daemon keeps no pages there: their quantized weights lie in "
        "host memory while they are not on the device. Hint: bitpagerd --disk-folder PATH.",
        stacklevel=2,
    )
    return False


def _as_linear(module) -> torch.nn.Linear:
    """A Linear of the meta device with the transposed shape of a Conv1D, and its bias."""
    inputs, outputs = module.weight.shape
    linear = torch.nn.Linear(inputs, outputs, False, "meta", module.weight.dtype)
    linear.bias = module.bias
    return linear


def _is_ours(conversion) -> bool:
    return any(isinstance(op, TakePacked) for op in getattr(conversion, "operations", ()))


def _tell_of_others(merge):
    """`merge`, which is given a checkpoint's own quantization and ours, and refuses the pair; with what to do about
    it where bitsandbytes wrote the checkpoint."""

    @functools.wraps(merge)
    def merged(quantization_config, quantization_config_from_args=None):
        saved = quantization_config
        saved = saved if isinstance(saved, dict) else saved.to_dict()
        if isinstance(quantization_config_from_args, BitpagerConfig) and saved.get("load_in_4bit"):
            raise ValueError(
                "this checkpoint is quantized already, by bitsandbytes. Its weights can be taken over as they are. "
                "Hint: from_pretrained(path, config=bitpager.hf.config_for(path)), without quantization_config."
            )
        return merge(quantization_config, quantization_config_from_args)

    merged.of_bitpager = True
    return merged


AUTO_QUANTIZER_MAPPING[METHOD] = BitpagerQuantizer  # see config.py
_merge = getattr(AutoHfQuantizer, "merge_quantization_configs", None)
if _merge is not None and not hasattr(_merge, "of_bitpager"):  # a reloaded module wraps it once
    AutoHfQuantizer.merge_quantization_configs = staticmethod(_tell_of_others(_merge))
