"""Constructor arguments that all optimizers share: what is accepted and what is refused."""

from __future__ import annotations


def reject_unsupported(kind: str, amsgrad, percentile_clipping, block_wise) -> None:
    """Arguments of the peer that change results and are not implemented raise."""
    if amsgrad:
        raise ValueError(f"{kind} does not support amsgrad=True")
    if percentile_clipping not in (None, 100):
        raise ValueError(f"{kind} does not support percentile_clipping. Hint: torch.nn.utils.clip_grad_norm_.")
    if not block_wise:
        raise ValueError(f"{kind} keeps 8-bit states in blocks only: block_wise=False is not supported")


def resolve(kind: str, fixed_bits, optim_bits, min_8bit_size, args):
    """(bits, min_8bit_size). A class that names its width accepts optim_bits at its default or at that width."""
    bits = optim_bits
    if fixed_bits is not None:
        if optim_bits not in (32, fixed_bits):
            raise ValueError(f"{kind} has {fixed_bits}-bit states; optim_bits={optim_bits!r} contradicts its name")
        bits = fixed_bits
    if args is not None:
        bits = _entry(args, "optim_bits", bits)
        min_8bit_size = _entry(args, "min_8bit_size", min_8bit_size)
        if _entry(args, "max_unorm", 0.0):
            raise ValueError(f"{kind} does not support args.max_unorm")
        if _entry(args, "skip_zeros", False):
            raise ValueError(f"{kind} does not support args.skip_zeros")
    if min_8bit_size < 0:
        raise ValueError(f"min_8bit_size must not be negative; got {min_8bit_size}")
    return bits, min_8bit_size


def _entry(args, name, default):
    return args.get(name, default) if isinstance(args, dict) else getattr(args, name, default)


def parse_betas(betas):
    """Two floats, from a pair or from text like "(0.9, 0.999)"."""
    if isinstance(betas, str):
        betas = tuple(float(part) for part in betas.strip("() ").split(","))
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers; got {betas!r}")
    return tuple(betas)


def check_ranges(lr, betas, eps, weight_decay) -> None:
    """ValueError for values outside their ranges (NaN included)."""
    if not float(lr) >= 0.0:
        raise ValueError(f"invalid learning rate: {lr}")
    if not float(eps) >= 0.0:
        raise ValueError(f"invalid epsilon: {eps}")
    for index, beta in enumerate(betas):
        if not 0.0 <= float(beta) < 1.0:
            raise ValueError(f"invalid beta at index {index}: {beta}")
    if not float(weight_decay) >= 0.0:
        raise ValueError(f"invalid weight decay: {weight_decay}")
