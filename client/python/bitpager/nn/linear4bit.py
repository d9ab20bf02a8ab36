"""Linear4bit and its kinds: linear layers whose frozen weight lives, quantized to 4 bits, in the daemon's pages, or,
on a GPU with `in_process`, in this process.

Forward and backward dequantize the weight and multiply in the compute dtype; nothing large is kept between them. A
forward of few rows on a GPU reads the 4-bit weight directly, by a lease of its pages.
"""

from __future__ import annotations

import copy
import warnings
from typing import Optional

import torch
import torch.nn.functional as F

from .. import dtypes
from ..quant_state import QUANT_TYPES, QuantState
from ..weight import Weight
from .local_weight import LocalWeight
from .parameter import FourBitParameter, pages_of

try:  # torch.compile must not trace into ctypes
    from torch._compile import _disable_dynamo as _eager
except ImportError:  # pragma: no cover - the name is torch's own and may move

    def _eager(function):
        return function


def _matrix(pages: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight as the quantized tensor's own dtype holds it, then in `dtype`."""
    matrix = pages.dequantize()
    return matrix if matrix.dtype == dtype else matrix.to(dtype)


def _product(x, bias, pages):
    product = pages.multiply(x, bias)
    return F.linear(x, _matrix(pages, x.dtype), bias) if product is None else product


def _warn_of_wide_products(pages, dtype: torch.dtype) -> None:
    """No compute dtype was given, and the first input is float32 over a weight that came in 16 bits."""
    if dtype == torch.float32 and pages.dtype != torch.float32:
        warnings.warn(
            f"a layer quantized from {dtypes.name_of(pages.dtype)} has no compute_dtype, and its first input is "
            "float32: its products are computed in float32, which is slow. Hint: "
            f"compute_dtype={pages.dtype}, in the layer, in quantize_ or in BitpagerConfig.",
            stacklevel=4,
        )


class _FourBitProduct(torch.autograd.Function):
    """x W^T + bias with gradients to x and bias alone."""

    @staticmethod
    def forward(ctx, x, bias, pages):
        ctx.pages = pages
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _product(x, bias, pages)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            matrix = _matrix(ctx.pages, ctx.x_dtype)
            grad_x = torch.matmul(grad.to(ctx.x_dtype), matrix)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return grad_x, grad_bias, None


class Linear4bit(torch.nn.Linear):
    """A linear layer with a frozen 4-bit weight.

    input_features, output_features, bias: as torch.nn.Linear. compute_dtype: of the product (None: that of the first
    input). compress_statistics: double quantization. quant_type: "nf4" or "fp4". quant_storage: dtype that packed bytes
    are saved as. blocksize: elements that share one absmax. session: None for the default one of the weight's device.
    in_process: on a GPU, the weight is kept by this process as ordinary CUDA tensors; no daemon is needed.
    offload: as Weight's, for pages.

    Weights given as floats (constructor, load_state_dict) are quantized by quantize_() or at the first forward; packed
    ones are taken over by load_state_dict bit for bit. weight.shape is then that of the packed bytes,
    [ceil(n / 2), 1]; weight.quant_state.shape is [output_features, input_features]. The state dict has bitsandbytes'
    names. Raises QuotaError or BudgetError when the pages do not fit.
    """

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.uint8,
        device=None,
        *,
        blocksize=64,
        session=None,
        in_process=False,
        offload=None,
    ):
        if quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type must be 'nf4' or 'fp4'; got {quant_type!r}")
        super().__init__(input_features, output_features, bias, device)
        self.compute_dtype = compute_dtype
        self.compress_statistics = compress_statistics
        self.quant_type = quant_type
        self.quant_storage = quant_storage
        self.blocksize = blocksize
        self.session = session
        self.in_process = in_process
        self.offload = offload
        self.weight = FourBitParameter(self.weight.data, quant_storage=quant_storage)

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        compute_dtype=None,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.uint8,
        *,
        blocksize=64,
        session=None,
        in_process=False,
    ) -> Linear4bit:
        """A quantized layer with the values of `linear`; its bias is shared with it, its weight is not kept."""
        layer = cls.like(
            linear,
            compute_dtype,
            compress_statistics,
            quant_type,
            quant_storage,
            blocksize=blocksize,
            session=session,
            in_process=in_process,
        )
        return layer.quantize_(linear.weight)

    @classmethod
    def like(
        cls,
        linear: torch.nn.Module,
        compute_dtype=None,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.uint8,
        *,
        blocksize=64,
        session=None,
        in_process=False,
    ) -> Linear4bit:
        """A layer in the place of `linear`, which shares its bias and whose weight, on the meta device, has its shape
        and dtype: quantize_(tensor) or a state dict gives it values."""
        layer = Linear4bit(
            linear.in_features,
            linear.out_features,
            False,
            compute_dtype,
            compress_statistics,
            quant_type,
            quant_storage,
            "meta",
            blocksize=blocksize,
            session=session,
            in_process=in_process,
        )
        layer.__class__ = cls
        layer.weight = FourBitParameter(layer.weight.to(linear.weight.dtype), quant_storage=quant_storage)
        layer.bias = linear.bias
        return layer.train(linear.training)

    @property
    def is_quantized(self) -> bool:
        """True once the weight is in pages."""
        return getattr(self.weight, "pages", None) is not None

    @property
    def quant_state(self) -> Optional[QuantState]:
        """The weight's QuantState, or None before quantization."""
        return getattr(self.weight, "quant_state", None)

    def extents(self):
        """The handle of the weight's pages, for session.prefetch(model)."""
        return self.weight.pages.extents() if self.is_quantized else []

    @torch.no_grad()
    def quantize_(self, tensor=None, name=None) -> Linear4bit:
        """Quantizes `tensor` (None: the float weight) of shape [out_features, in_features] into pages, which replace
        the weight, on the tensor's device. Does nothing when there is nothing to quantize. Returns itself."""
        if tensor is None:
            if self.is_quantized:
                return self
            tensor = self.weight
        source = tensor.detach().as_subclass(torch.Tensor)
        dtypes.require_float(source, "the weight", "cuda" if source.is_cuda else "cpu")
        if tuple(source.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"the weight has shape {tuple(source.shape)}; {(self.out_features, self.in_features)} is needed"
            )
        if source.is_cuda and self.in_process:
            return self._take(
                LocalWeight.from_tensor(source, self.quant_type, self.blocksize, self.compress_statistics, name)
            )
        pages = Weight.from_tensor(
            source,
            quant_type=self.quant_type,
            blocksize=self.blocksize,
            nested=self.compress_statistics,
            name=name,
            session=self.session,
            offload=self.offload,
        )
        return self._take(pages)

    def take_packed_(self, packed: torch.Tensor, state: QuantState, name=None) -> Linear4bit:
        """Makes a packed tensor of shape [out_features, in_features], as it is, the weight: on the packed tensor's GPU,
        else on the layer's device. The layer's kind of quantization becomes that of `state`. Returns itself."""
        wanted = torch.Size((self.out_features, self.in_features))
        if state.shape is None or torch.Size(state.shape) != wanted:
            raise ValueError(f"the packed weight has shape {state.shape}; {tuple(wanted)} is needed")
        device = packed.device if packed.is_cuda else self.weight.device
        if device.type == "cuda":
            packed, state = packed.to(device), state.to(device)
        self.quant_storage = packed.dtype
        return self._take(pages_of(packed, state, name, self.session, self.in_process, offload=self.offload))

    def _take(self, pages) -> Linear4bit:
        self.quant_type = pages.quant_type
        self.blocksize = pages.blocksize
        self.compress_statistics = pages.nested
        self._parameters["weight"] = FourBitParameter(pages=pages, quant_storage=self.quant_storage)
        return self

    def dequantize(self) -> torch.Tensor:
        """The weight as a float tensor of shape [out_features, in_features]."""
        return self.weight.pages.dequantize() if self.is_quantized else self.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias, computed in compute_dtype, in x's dtype; gradients reach x and bias."""
        return self._forward_eagerly(x) if torch.compiler.is_compiling() else self._forward(x)

    @_eager
    def _forward_eagerly(self, x):
        return self._forward(x)

    def _forward(self, x):
        parameters = self._parameters
        pages = getattr(parameters["weight"], "pages", None)
        if pages is None:
            pages = self.quantize_().weight.pages
        dtype = self.compute_dtype
        if dtype is None:
            dtype = self.compute_dtype = x.dtype
            _warn_of_wide_products(pages, dtype)
        bias, given = parameters["bias"], x.dtype
        if bias is not None and bias.dtype != dtype:
            bias = bias.to(dtype)
        if given != dtype:
            x = x.to(dtype)
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            product = _FourBitProduct.apply(x, bias, pages)
        else:
            product = _product(x, bias, pages)
        return product if given == dtype else product.to(given)

    def extra_repr(self) -> str:
        """torch.nn.Linear's, and the kind of quantization."""
        nested = ", nested" if self.compress_statistics else ""
        return f"{super().extra_repr()}, {self.quant_type}, blocksize={self.blocksize}{nested}"

    def _apply(self, fn, recurse=True):
        """Casts and moves what is not quantized; codes and statistics keep their dtype and their pages."""
        if not self.is_quantized:
            return super()._apply(fn, recurse)
        self._move(fn(torch.empty(0, device=self.weight.device)).device)
        weight = self._parameters.pop("weight")
        try:
            return super()._apply(fn, recurse)
        finally:
            parameters = dict(self._parameters)
            self._parameters.clear()
            self._parameters.update({"weight": weight, **parameters})

    def _move(self, device: torch.device) -> None:
        """Takes the weight to another device, into pages of its default session (or this process's memory)."""
        pages = self.weight.pages
        if device.type == "meta" or device == pages.device:
            return
        if device.type not in ("cpu", "cuda"):
            dtypes.require_device(torch.empty(0, device=device), "a quantized layer's target", pages.device.type)
        packed, state = pages.export(self.quant_storage)
        local = self.in_process or isinstance(pages, LocalWeight)
        self.session = None
        self._take(pages_of(packed.to(device), copy.copy(state).to(device), local=local))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not self.is_quantized:
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        packed, state = self.weight.pages.export(self.quant_storage)
        destination[prefix + "weight"] = packed
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()
        for key, tensor in state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{key}"] = tensor

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        weight_key = prefix + "weight"
        statistics = {key: value for key, value in state_dict.items() if key.startswith(weight_key + ".")}
        saved = state_dict.get(weight_key)
        is_float = saved is not None and not statistics and saved.is_floating_point()
        if saved is None or (is_float and not self.is_quantized and self.weight.shape == saved.shape):
            return super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        try:
            if statistics:
                self._import(saved, statistics, len(weight_key) + 1)
            elif is_float:
                self.quantize_(saved)
            else:
                raise ValueError("the saved weight is packed but its statistics (weight.absmax ...) are missing")
        except ValueError as error:
            errors.append(f"{weight_key}: {error}")
        rest = {k: v for k, v in state_dict.items() if k != weight_key and k not in statistics}
        weight = self._parameters.pop("weight")
        super()._load_from_state_dict(rest, prefix, metadata, strict, missing, unexpected, errors)
        bias = self._parameters.pop("bias")
        self._parameters["weight"] = weight
        self._parameters["bias"] = bias

    def _import(self, packed, statistics, prefix_length) -> None:
        state = QuantState.from_dict({key[prefix_length:]: value for key, value in statistics.items()})
        self.take_packed_(packed, state)


class LinearNF4(Linear4bit):
    """Linear4bit with the NF4 type (https://arxiv.org/abs/2305.14314)."""

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_storage=torch.uint8,
        device=None,
        **keywords,
    ):
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "nf4",
            quant_storage,
            device,
            **keywords,
        )


class LinearFP4(Linear4bit):
    """Linear4bit with the FP4 type."""

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_storage=torch.uint8,
        device=None,
        **keywords,
    ):
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "fp4",
            quant_storage,
            device,
            **keywords,
        )
