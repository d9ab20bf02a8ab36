"""Adam and AdamW. Both use one rule with decoupled decay, as bitsandbytes does; they differ in the default decay."""

from __future__ import annotations

from .. import _lib
from .arguments import check_ranges, parse_betas, reject_unsupported, resolve
from .base import BlockOptimizer


class Adam(BlockOptimizer):
    """Adam (https://arxiv.org/abs/1412.6980); its states stay resident.

    m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps sqrt(1-b2^t));
    then p *= 1 - lr weight_decay.

    params: parameters, (name, parameter) pairs or groups; lr: float or tensor; optim_bits: 8 or 32, of the states;
    min_8bit_size: parameters with fewer elements keep 32-bit states; args: an object with optim_bits and
    min_8bit_size that take precedence; is_paged: as the Paged classes; amsgrad, percentile_clipping, block_wise: only
    their defaults. Keywords of bitpager: see BlockOptimizer. Raises ValueError on values outside their ranges.
    """

    rule = _lib.ADAM
    _fixed_bits = None  # 8 or 32 in the classes that say so in their name
    _paged = False

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
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
        reject_unsupported(kind, amsgrad, percentile_clipping, block_wise)
        bits, least = resolve(kind, self._fixed_bits, optim_bits, min_8bit_size, args)
        betas = parse_betas(betas)
        check_ranges(lr, betas, eps, weight_decay)
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        evictable = self._paged or is_paged
        super().__init__(params, defaults, bits, least, evictable, session, on_nonfinite, name, resume_step)


class Adam8bit(Adam):
    """Adam with 8-bit states that stay resident. Arguments: see Adam."""

    _fixed_bits = 8


class Adam32bit(Adam):
    """Adam with 32-bit states that stay resident. Arguments: see Adam."""

    _fixed_bits = 32


class PagedAdam(Adam):
    """Adam whose states may be paged out. Arguments: see Adam."""

    _paged = True


class PagedAdam8bit(Adam8bit):
    """Adam with 8-bit states that may be paged out. Arguments: see Adam."""

    _paged = True


class PagedAdam32bit(Adam32bit):
    """Adam with 32-bit states that may be paged out. Arguments: see Adam."""

    _paged = True


class AdamW(Adam):
    """AdamW (https://arxiv.org/abs/1711.05101); its states stay resident. Arguments: see Adam."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
        **keywords,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, optim_bits, args, min_8bit_size, is_paged, **keywords
        )


class AdamW8bit(AdamW):
    """AdamW with 8-bit states that stay resident. Arguments: see Adam."""

    _fixed_bits = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit states that stay resident. Arguments: see Adam."""

    _fixed_bits = 32


class PagedAdamW(AdamW):
    """AdamW whose states may be paged out. Arguments: see Adam."""

    _paged = True


class PagedAdamW8bit(AdamW8bit):
    """AdamW with 8-bit states that may be paged out. Arguments: see Adam."""

    _paged = True


class PagedAdamW32bit(AdamW32bit):
    """AdamW with 32-bit states that may be paged out. Arguments: see Adam."""

    _paged = True
