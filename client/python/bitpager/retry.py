"""guard(): a training step that ran out of memory is tried again, with the numbers of a run that never did."""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import traceback
import warnings

import torch

from . import errors
from .optim import BlockOptimizer
from .out_of_memory import Need, advice
from .sizes import print_bytes
from .undo import Buffers, Gradients, random_state, set_random_state

OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
# What CUDA's own libraries say, when it is they who get no memory.
_ALSO = re.compile(r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED")
ROOM_LIMIT_S = 10.0
SLACK_BYTES = 64 << 20


def guard(*parts, retries=2, session=None):
    """A training step that runs out of a GPU's memory is undone, room is made, and it is tried again. As a decorator:

        @bitpager.guard(model, optimizer)
        def train_step(batch):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

    or around a function that exists:

        step = bitpager.guard(train_step, model, optimizer)
        for batch in batches:
            loss = step(batch)

    The guarded function is the same function, with the same arguments and result. When it raises
    torch.OutOfMemoryError, what it had done is taken back: gradients as they were at its begin, buffers (BatchNorm's
    statistics), the random numbers of Python, NumPy, the CPU and every GPU, and a GradScaler's notes. Then its memory
    is freed, the daemon is asked to have pages leave for as much as the step needed, and it runs again: bit for bit
    as if nothing had happened. What else the function changes (a list, a counter, an iterator that it draws from) is
    its own affair: give it its batch as an argument.

    parts: the step (or not, as a decorator), then every module and optimizer that it uses, at least one optimizer; a
    torch.amp.GradScaler and torch.Generators may be among them. retries: how often it is tried again. session: asked
    for room beside those of the optimizers and quantized layers.

    What was submitted is never applied twice: when an optimizer's step was already on its way, the error is raised
    with a note that says so; catch it there and go on with the next batch. Optimizers that step inside backward
    (register_post_accumulate_grad_hook) are refused with ValueError, for their steps cannot be taken back.

    When room does not help, torch.OutOfMemoryError says what would, in bytes.

    It costs a copy of the gradients that are there when the step begins, in host memory and without waiting (none when
    the step ends with zero_grad()), a copy of the buffers on their device, and microseconds.

    `guarded.guard` counts: retried (steps tried again), room_bytes (asked for by the last of them)."""
    step = None
    if parts and callable(parts[0]) and not isinstance(parts[0], torch.nn.Module):
        step, parts = parts[0], parts[1:]
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 1:
        raise ValueError(f"retries must be at least 1; got {retries!r}")
    guarded = Guard(parts, retries, session)
    return guarded.around if step is None else guarded.around(step)


class Guard:
    """What guard() keeps of one step; its counts."""

    def __init__(self, parts, retries, session):
        self.modules, self.optimizers, self._scalers, self._generators = _sorted(parts)
        self._retries = retries
        self._session = session
        self.retried = 0
        self.room_bytes = 0
        self._begun = {}  # index of an optimizer that is not ours -> steps that it began
        for index, optimizer in enumerate(self.optimizers):
            if not isinstance(optimizer, BlockOptimizer):
                self._begun[index] = 0
                optimizer.register_step_pre_hook(self._counter(index))
        self._gradients = Gradients()
        self._buffers = Buffers(self.modules)

    def around(self, step):
        """`step`, guarded."""

        @functools.wraps(step)
        def guarded(*args, **kwargs):
            return self.run(step, args, kwargs)

        guarded.guard = self
        return guarded

    def run(self, step, args, kwargs):
        """step(*args, **kwargs), tried again while it runs out of memory."""
        self._refuse_fused()
        saved = self._save()
        for attempt in range(self._retries + 1):
            try:
                return step(*args, **kwargs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._sent() != saved["sent"]:
                    raise _told(error, _SENT) from None
                failure = _Failure(error)
            # Behind the except clause nothing holds the failed step's tensors any more.
            if attempt < self._retries:
                self._make_room(failure, saved, attempt)
        need = self._need(failure, saved)
        self._restore(saved)
        raise _told(failure.error, advice(need)) from None

    # ---- before ----

    def _counter(self, index):
        def count(*_) -> None:
            self._begun[index] += 1

        return count

    def _parameters(self):
        found = {}
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            found.update((id(p), p) for p in group["params"])
        for module in self.modules:
            found.update((id(p), p) for p in module.parameters())
        return list(found.values())

    def _refuse_fused(self) -> None:
        if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in self._parameters()):
            raise ValueError(
                "guard() cannot take steps back that are made inside backward: a parameter has a post-accumulate-grad "
                "hook. Hint: step behind backward, or leave guard() out; bitpager.guard_allocator() works with both."
            )

    def _sent(self):
        """Differs from before once any part of an optimizer's step may have been applied."""
        return [
            self._begun[index] if index in self._begun else optimizer.parts_sent
            for index, optimizer in enumerate(self.optimizers)
        ]

    def _save(self) -> dict:
        parameters = self._parameters()
        self._gradients.save(parameters)
        self._buffers.save()
        return {
            "sent": self._sent(),
            "parameters": parameters,
            "random": random_state(),
            "generators": [generator.get_state() for generator in self._generators],
            "scalers": [{k: dict(v) for k, v in scaler._per_optimizer_states.items()} for scaler in self._scalers],
            "allocated": _allocated(),
        }

    # ---- behind ----

    def _restore(self, saved) -> None:
        self._gradients.restore(saved["parameters"])
        self._buffers.restore()
        set_random_state(saved["random"])
        for generator, state in zip(self._generators, saved["generators"]):
            generator.set_state(state)
        for scaler, states in zip(self._scalers, saved["scalers"]):
            scaler._per_optimizer_states.clear()
            scaler._per_optimizer_states.update({k: dict(v) for k, v in states.items()})

    def _sessions(self):
        found = {} if self._session is None else {id(self._session): self._session}
        for optimizer in self.optimizers:
            if isinstance(optimizer, BlockOptimizer):
                found.update((id(s), s) for s in optimizer._stream_sessions())
        for parameter in (p for module in self.modules for p in module.parameters()):
            session = getattr(getattr(parameter, "pages", None), "session", None)
            if session is not None and not session.closed and session.device_kind == "cuda":
                found[id(session)] = session
        return list(found.values())

    def _need(self, failure, saved) -> Need:
        sessions = [s for s in self._sessions() if not s.closed]
        return Need.of(failure.device, failure.bytes, saved["allocated"], self.modules, sessions)

    def _make_room(self, failure, saved, attempt) -> None:
        """Frees what the step that failed took, and asks the daemon for what it needed, more at each attempt."""
        before = _reserved(failure.device)
        self._gradients.drop(saved["parameters"])
        for optimizer in self.optimizers:
            if isinstance(optimizer, BlockOptimizer):
                optimizer._streams.forget()  # it may hold the gradients that the failed step would have sent
        gc.collect()
        torch.clear_autocast_cache()
        sessions = self._sessions()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(failure.device)
            for session in sessions:
                with contextlib.suppress(errors.Error):  # making room tells
                    session.release_gradients()  # what the daemon maps stays taken when torch frees it
            torch.cuda.empty_cache()
        freed = max(0, before - _reserved(failure.device))
        wanted = freed + (failure.bytes + failure.bytes // 4 << attempt) + SLACK_BYTES
        said = _ask(sessions, wanted, failure.bytes)
        self._restore(saved)
        self.retried += 1
        self.room_bytes = wanted
        warnings.warn(
            f"a training step ran out of memory ({failure.text}); bitpager.guard() undid it, asked for "
            f"{print_bytes(wanted)} of room{said}, and tries again ({attempt + 1} of {self._retries})",
            RuntimeWarning,
            stacklevel=4,
        )


_SENT = (
    "bitpager.guard() does not try it again: an optimizer's step was on its way already, and what was submitted is "
    "never applied twice. The parameters are those behind that step. Hint: catch this error there and go on with the "
    "next batch; keep what needs memory before optimizer.step()."
)


def _sorted(parts):
    modules, optimizers, scalers, generators = [], [], [], []
    for part in parts:
        part = getattr(part, "optimizer", part) if not isinstance(part, torch.nn.Module) else part  # Accelerate's
        if isinstance(part, torch.nn.Module):
            modules.append(part)
        elif isinstance(part, torch.optim.Optimizer):
            optimizers.append(part)
        elif hasattr(part, "_per_optimizer_states"):
            scalers.append(part)
        elif isinstance(part, torch.Generator):
            generators.append(part)
        else:
            raise TypeError(
                f"guard() takes the step, modules, optimizers, GradScalers and torch.Generators; got "
                f"{type(part).__name__}"
            )
    if not optimizers:
        raise ValueError(
            "guard() needs the optimizers of the step, to know whether one was submitted already. Hint: "
            "bitpager.guard(step, model, optimizer)."
        )
    return modules, optimizers, scalers, generators


# ---- the error ----


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError and what CUDA's libraries raise in its place."""
    if isinstance(error, errors.Error):
        return False
    return isinstance(error, OutOfMemory) or (isinstance(error, RuntimeError) and bool(_ALSO.search(str(error))))


class _Failure:
    """What an out-of-memory error tells: bytes that were asked for (0: it does not say), device (None: not said)."""

    _UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

    def __init__(self, error):
        # Frames, its own and those of what it came from, hold the tensors of the step that failed.
        traceback.clear_frames(error.__traceback__)
        error.__context__ = error.__cause__ = None
        self.error = error.with_traceback(None)
        message = str(error)
        self.text = (message.strip().splitlines() or ["no message"])[0][:200]
        asked = re.search(r"[Tt]ried to allocate ([0-9.]+) (bytes|KiB|MiB|GiB|TiB)", message)
        self.bytes = int(float(asked.group(1)) * self._UNITS[asked.group(2)]) if asked else 0
        device = re.search(r"GPU ([0-9]+)", message)
        self.device = int(device.group(1)) if device else None
        if self.device is None and torch.cuda.is_initialized():
            self.device = torch.cuda.current_device()


def _told(error, more: str):
    """An error of the same kind that says more."""
    kind = OutOfMemory if isinstance(error, OutOfMemory) else RuntimeError
    return kind(f"{error}\n{more}")


def _allocated() -> dict:
    """{the current device: bytes of its tensors}."""
    if not torch.cuda.is_initialized():
        return {}
    device = torch.cuda.current_device()
    return {device: torch.cuda.memory_allocated(device)}


def _reserved(device) -> int:
    return torch.cuda.memory_reserved(device) if device is not None and torch.cuda.is_initialized() else 0


def _ask(sessions, wanted: int, need: int) -> str:
    """Asks each session for room; what is to be told of those that could not make it."""
    said = ""
    for session in sessions:
        allocator_guard = getattr(session, "_allocator_guard", None)
        if allocator_guard is not None and need:
            allocator_guard.expect(need + need // 4)
        try:
            session.make_room(wanted, timeout=ROOM_LIMIT_S)
        except (errors.Error, TimeoutError) as error:
            said = f" (not all could be made: {str(error).splitlines()[0]})"
    return said if sessions else ", which no session of a GPU could make"


__all__ = ["Guard", "guard"]
