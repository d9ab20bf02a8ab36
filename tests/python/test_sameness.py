"""What makes gradients other than those that a step was packed for, by PyTorch's guards and by passes in Python."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from bitpager.optim import sameness

KINDS = [sameness._Passes, *([sameness._Guards] if sameness._guards_tell() else [])]
OTHERS = {
    "dtype": torch.zeros(4, 6, dtype=torch.float16),
    "order": torch.zeros(6, 4).t(),
    "size": torch.zeros(4, 7),
    "negated": torch.zeros(4, 6, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_addresses_may_differ(kind):
    same = kind([torch.zeros(4, 6), torch.zeros(3, dtype=torch.bfloat16)])
    again = [torch.ones(4, 6), torch.ones(3, dtype=torch.bfloat16)]
    assert same(again) and same(again)
    for what, other in OTHERS.items():
        assert not same([other, again[1]]), what


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_and_sparse_ones_are_no_same(kind):
    same = kind([torch.zeros(4, 6)])
    for other in (None, torch.zeros(4, 6).to_sparse()):
        try:
            assert not same([other])
        except (AttributeError, TypeError, RuntimeError):
            pass  # what PackedStep.look() takes for other


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_not_kept(kind):
    first = torch.zeros(4, 6)
    seen = weakref.ref(first)
    same = kind([first])
    del first
    gc.collect()
    assert seen() is None
    assert same([torch.ones(4, 6)])


def test_this_torch_has_the_guards():
    """Of the versions that are tested: where they are gone, steps of many tensors take longer on the processor."""
    assert sameness.Sameness is sameness._Guards
