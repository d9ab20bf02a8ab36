"""Phase hints: the daemon learns where in a training iteration a process is, from hooks on the model and the optimizer.

    hooks = bitpager.hints.attach(model, optimizer)
    ... train, with any loop or Trainer ...
    hooks.detach()

Hints change when pages move, never a number.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping

import torch

from . import errors
from .optim import BlockOptimizer

_NO_GRAPH = -1


def attach(model, *optimizers, session=None, leave=False) -> PhaseHints:
    """Hooks that tell the daemon when a forward pass, a backward pass and a step begin: optimizer states that are not
    on the GPU come back while backward computes, in time for the step.

    model: the module that the loop calls (what PEFT or a Trainer wraps is fine: hooks are on the module itself).
    optimizers: bitpager's, wrapped by Accelerate or not; their sessions are told. session: told in their place.
    leave: have the states leave the GPU when forward begins, so that the memory is there for activations without a wait
    (copies beneath forward); worth it when activations and states do not fit together. Without it they leave when
    memory is asked for.

    Forward passes without gradients (evaluation) and those of gradient checkpointing, inside backward, give no hint.
    With gradient accumulation the states are called back in the last backward before a step alone, as many as there
    were before the step before it. A hint that cannot be given is left out: the step, not the hint, raises what is
    wrong. Returns the PhaseHints, whose detach() takes the hooks off; also a context manager that does."""
    return PhaseHints(model, optimizers, session, leave)


class PhaseHints:
    """The hooks of one attach(). phase: what was told last."""

    def __init__(self, model, optimizers, session, leave):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"attach() takes a module, then optimizers; got {type(model).__name__}")
        self._optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        for optimizer in self._optimizers:
            if not isinstance(optimizer, BlockOptimizer):
                raise TypeError(f"{type(optimizer).__name__} is not one of bitpager's optimizers: it has no pages")
        if not self._optimizers and session is None:
            raise ValueError("attach() needs an optimizer of bitpager, or a session to tell")
        self._session = session
        self._leave = bool(leave)
        self.phase = "idle"
        self._backwards = 0  # since the last step
        self._expected = 1  # backwards before a step
        self._hooks = [
            model.register_forward_pre_hook(self._forward),
            model.register_forward_hook(self._forwarded),
        ]
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._step))
            self._hooks.append(optimizer.register_step_post_hook(self._stepped))

    def detach(self) -> None:
        """Takes the hooks off and tells "idle". Does nothing the second time."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        if hooks:
            self._tell("idle")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.detach()

    def _sessions(self):
        if self._session is not None:
            return [self._session]
        found = {id(a.session): a.session for o in self._optimizers for a in o._registry.arenas}
        return list(found.values())

    def _tell(self, phase: str) -> None:
        if phase == self.phase:
            return
        self.phase = phase
        said = "leave" if phase == "forward" and self._leave else phase
        for session in self._sessions():
            if not session.closed:
                try:
                    session.hint_phase(said)
                except errors.Error:
                    pass  # the next request to this session tells why

    def _forward(self, *_) -> None:
        if torch.is_grad_enabled() and not _inside_backward():
            self._tell("forward")

    def _forwarded(self, _module, _inputs, output):
        if not torch.is_grad_enabled() or _inside_backward():
            return
        # The first of them whose gradient is known is where backward begins.
        begin = _Once(self)
        for tensor in _tensors(output):
            if tensor.requires_grad and not tensor.is_leaf:  # a leaf's hooks would stay
                tensor.register_hook(begin)

    def _backward(self) -> None:
        self._backwards += 1
        if self._backwards >= self._expected:
            self._tell("backward")

    def _step(self, *_) -> None:
        self._tell("step")

    def _stepped(self, *_) -> None:
        if self._backwards:
            self._expected, self._backwards = self._backwards, 0
        self._tell("idle")


class _Once:
    """A gradient hook of one forward pass's outputs, which counts for one backward. Holds no PhaseHints alive."""

    __slots__ = ("_hints", "_done")

    def __init__(self, hints):
        self._hints, self._done = weakref.ref(hints), False

    def __call__(self, grad):
        hints = self._hints()
        if hints is not None and not self._done and hints._hooks:
            self._done = True
            hints._backward()


def _inside_backward() -> bool:
    return torch._C._current_graph_task_id() != _NO_GRAPH


def _tensors(output):
    """The tensors in what a forward pass returns: tensors, sequences, mappings, dataclasses."""
    if isinstance(output, torch.Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (list, tuple)):
        parts = output
    elif dataclasses.is_dataclass(output):
        parts = vars(output).values()
    else:
        return
    for part in parts:
        yield from _tensors(part)


__all__ = ["PhaseHints", "attach"]
