"""Whether a list of tensors is like an earlier one in all but the addresses: dtype, sizes, strides, place, kind.

PyTorch's own guards, those of compiled code, look at all of that in one call, some six times faster than a pass in
Python for each property. They are no public interface: they are tried once, and where they are not there, or do not
tell apart what must be told apart, the passes do it.
"""

from __future__ import annotations

import torch

_stride = torch.Tensor.stride
_is_contiguous = torch.Tensor.is_contiguous
_count = torch.Tensor.numel
_is_negated = torch.Tensor.is_neg


class _Passes:
    def __init__(self, tensors):
        self._dtypes = [t.dtype for t in tensors]
        self._order = _is_contiguous if all(map(_is_contiguous, tensors)) else _stride  # the cheaper one that tells
        self._orders = list(map(self._order, tensors))
        self._counts = list(map(_count, tensors))

    def __call__(self, tensors) -> bool:
        return (
            [t.dtype for t in tensors] == self._dtypes
            and list(map(self._order, tensors)) == self._orders
            and list(map(_count, tensors)) == self._counts
            and not any(map(_is_negated, tensors))
        )


class _Guards:
    def __init__(self, tensors):
        # A tensor that is not one of CPU or GPU memory has no sizes and strides to compare.
        self._guards = torch._C._dynamo.guards.TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(t.size()) for t in tensors],
            dynamic_dims_strides=[list(t.stride()) for t in tensors],
        )

    def __call__(self, tensors) -> bool:
        return self._guards.check(*tensors)


def _guards_tell() -> bool:
    """Whether this PyTorch has guards that see every difference that matters here."""
    plain = torch.zeros(2, 2)
    others = (
        torch.zeros(2, 2, dtype=torch.bfloat16),
        torch.zeros(2, 2).t(),
        torch.zeros(2, 3),
        torch.zeros(4),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2, dtype=torch.complex64).conj().imag,  # negated, when somebody looks
    )
    try:
        guards = _Guards([plain, plain.clone()])
        return guards([torch.ones(2, 2), plain]) and not any(guards([plain, other]) for other in others)
    except Exception:  # whatever a function that is not public may do
        return False


Sameness = _Guards if _guards_tell() else _Passes
