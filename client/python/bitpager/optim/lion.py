"""Lion (https://arxiv.org/abs/2302.06675)."""

from __future__ import annotations

from .. import _lib
from .arguments import check_ranges, parse_betas, reject_unsupported, resolve
from .base import BlockOptimizer


class Lion(BlockOptimizer):
    """Lion; its states stay resident.

    p *= 1 - lr weight_decay; p -= lr sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g.

    params: parameters, (name, parameter) pairs or groups; lr: float or tensor; optim_bits: 8 or 32, of the state;
    min_8bit_size: parameters with fewer elements keep 32-bit states; args: an object with optim_bits and
    min_8bit_size that take precedence; is_paged: as the Paged classes. Keywords of bitpager: see BlockOptimizer.
    Raises ValueError on values outside their ranges.
    """

    rule = _lib.LION
    _fixed_bits = None  # 8 or 32 in the classes that say so in their name
    _paged = False

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
        *,
        session=None,
        on_nonfinite="raise",
        name=None,
        resume_step=None,
        percentile_clipping=100,
        block_wise=True,
    ):
        kind = type(self).__name__
        reject_unsupported(kind, False, percentile_clipping, block_wise)
        bits, least = resolve(kind, self._fixed_bits, optim_bits, min_8bit_size, args)
        betas = parse_betas(betas)
        check_ranges(lr, betas, 0.0, weight_decay)
        defaults = dict(lr=lr, betas=betas, eps=0.0, weight_decay=weight_decay)
        evictable = self._paged or is_paged
        super().__init__(params, defaults, bits, least, evictable, session, on_nonfinite, name, resume_step)


class PagedLion(Lion):
    """Lion whose states may be paged out. Arguments: see Lion."""

    _paged = True


class _SizedLion(Lion):
    """The classes with their width in the name take no optim_bits."""

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
        **keywords,
    ):
        super().__init__(params, lr, betas, weight_decay, 32, args, min_8bit_size, is_paged, **keywords)


class Lion8bit(_SizedLion):
    """Lion with 8-bit states that stay resident. Arguments: see Lion, without optim_bits."""

    _fixed_bits = 8


class Lion32bit(_SizedLion):
    """Lion with 32-bit states that stay resident. Arguments: see Lion, without optim_bits."""

    _fixed_bits = 32


class PagedLion8bit(Lion8bit):
    """Lion with 8-bit states that may be paged out. Arguments: see Lion, without optim_bits."""

    _paged = True


class PagedLion32bit(Lion32bit):
    """Lion with 32-bit states that may be paged out. Arguments: see Lion, without optim_bits."""

    _paged = True
