"""What PyTorch puts around every optimizer's step(), done only where there is something to do: hooks, and a range for
the profiler. Its own wrapper takes ten to twenty microseconds of a step that finds neither.
"""

from __future__ import annotations

import functools

import torch
from torch.autograd import profiler as _profiler
from torch.optim import optimizer as _torch

_GLOBAL_HOOKS = tuple(
    getattr(_torch, name, None) for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
)
_OWN_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_records_thread = getattr(torch.autograd, "_profiler_enabled", None)


def _is_recorded() -> bool:
    """By a profiler of this thread, or of all."""
    return _records_thread() or getattr(_profiler, "_is_profiler_enabled", True)


def hooked(step):
    """step() as PyTorch's constructor would wrap it, which takes it for wrapped already. Where this PyTorch keeps hooks
    in other places, its own wrapper is used throughout."""
    wrap = getattr(torch.optim.Optimizer, "profile_hook_step", None)
    if wrap is None or _records_thread is None or None in _GLOBAL_HOOKS:
        return step
    with_hooks = wrap(step)

    @functools.wraps(step)
    def wrapper(self, *args, **kwargs):
        # A class that overrides step() was wrapped by PyTorch: the hooks are around that.
        if getattr(type(self).step, "__code__", None) is with_hooks.__code__:
            return step(self, *args, **kwargs)
        if any(_GLOBAL_HOOKS) or any(map(self.__dict__.get, _OWN_HOOKS)) or _is_recorded():
            return with_hooks(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    wrapper.hooked = True
    return wrapper
