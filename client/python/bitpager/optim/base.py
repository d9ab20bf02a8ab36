"""BlockOptimizer: what all optimizers here share. A torch.optim.Optimizer whose states live in the daemon's pages and
whose step is one request for each width of state."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import defaultdict

import torch

from .. import _lib, errors
from ..nn.parameter import warn_of_frozen
from ..session import default_session, device_uuid, session_for
from . import interchange, nonfinite
from .overrides import GlobalOptimManager
from .packed import StreamSteps
from .registry import Registry, gradient_of, refuse_gradient
from .request import GRAD_CODES, Request, settings_of
from .step_hooks import hooked as _hooked

try:  # torch.compile must not trace into ctypes
    from torch._compile import _disable_dynamo as _eager
except ImportError:  # pragma: no cover - the name is torch's own and may move

    def _eager(function):
        return function


_ON_NONFINITE = ("raise", "warn", "propagate")
_counters = defaultdict(itertools.count)


class BlockOptimizer(torch.optim.Optimizer):
    """Base of Adam, AdamW and Lion. See those for arguments; subclasses set `rule`.

    session: a bitpager.Session (None: the default one of each parameter's device, made at the first step).
    on_nonfinite: "raise", "warn" or "propagate"; on a GPU the first later call tells, see step(). name: under which the
    daemon keeps the states (None: class name and a count; the same from run to run when optimizers are made in the same
    order). resume_step: go on from the states that the daemon kept of the same (user, job, rank, name), which must be
    at this step.
    """

    rule = None

    def __init__(self, params, defaults, bits, min_8bit_size, evictable, session, on_nonfinite, name, resume_step):
        if bits not in (8, 32):
            raise ValueError(f"optim_bits must be 8 or 32; got {bits!r}")
        if on_nonfinite not in _ON_NONFINITE:
            raise ValueError(f"on_nonfinite must be one of {', '.join(_ON_NONFINITE)}; got {on_nonfinite!r}")
        self._configure(bits, min_8bit_size, evictable, session, on_nonfinite, name)
        super().__init__(_strip_names(params, self._names), defaults)
        kinds = type(self).__mro__[: type(self).__mro__.index(BlockOptimizer)]
        depth = sum("__init__" in vars(kind) for kind in kinds)  # constructors between here and the caller
        warn_of_frozen([p for group in self.param_groups for p in group["params"]], 3 + depth)
        if resume_step is not None:
            self._resume(resume_step)

    def _configure(self, bits, min_8bit_size, evictable, session, on_nonfinite, name):
        kind = type(self).__name__
        self._bits = bits
        self._min_8bit_size = min_8bit_size
        self._session = session
        self._names = {}
        self._loaded_bits = {}  # parameter -> width of the state that was loaded for it
        self._pending = {}  # parameter -> LoadedState, until its arena exists
        self._step_count = 0
        self.parts_sent = 0  # parts of steps, one for each arena, that were on their way: never to be sent again
        self.on_nonfinite = on_nonfinite
        self.name = name or f"{kind}-{next(_counters[kind])}"
        self._registry = Registry(self.rule, evictable, self.name, self._describe, self._report_late)
        self._streams = StreamSteps()
        self._notes = nonfinite.GradientNotes()

    # ---- what torch.optim.Optimizer and its users expect ----

    def add_param_group(self, param_group):
        """Adds a group; after steps its states come into arenas of their own. (name, parameter) pairs are accepted."""
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), torch.Tensor):
            param_group = dict(param_group, params=_strip_names(param_group["params"], self._names))
        self._streams.forget()
        super().add_param_group(param_group)

    @_hooked
    @_eager
    @torch.no_grad()
    def step(self, closure=None):
        """One step over all parameters that have a gradient; returns the closure's loss.

        Parameters on a GPU are stepped on its current stream: step() returns without waiting, what the stream gets
        afterwards runs behind the step, and errors are raised by the first later call that sees them (step(),
        state_dict(), session.synchronize()), which then does nothing else. Under CUDA graph capture it raises.

        Raises NonFiniteError (all finite blocks of that step are then updated), DaemonLostError, the admission errors
        of the first step, ValueError for gradients that cannot be stepped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._streams.expect()
        self._raise_failures()
        overridden = not GlobalOptimManager.get_instance().is_empty
        if not self._pending and not overridden and self._streams.look(self.param_groups, self.state):
            self._send_on_streams()
        else:
            self._submit(self._gather())
        return loss

    def state_dict(self):
        """Interchange form: state[i] = {"step": int, "__bnb_optimizer_quant_state__": {state1, absmax1, qmap1, ...}},
        tensors and primitives alone. The states are copied out of the daemon's pages."""
        self.synchronize()
        self._flush()
        light = self.state
        full = defaultdict(dict)
        for parameter, entry in light.items():
            full[parameter] = self._entry(parameter, entry)
        self.state = full
        try:
            return super().state_dict()
        finally:
            self.state = light

    @torch.no_grad()
    def load_state_dict(self, state_dict, move_to_device=True):
        """Loads a state_dict() of this class or of the bitsandbytes class of the same name. The width of each loaded
        state is kept. Earlier states are dropped. `state_dict` is not changed; move_to_device has no effect here."""
        state_dict = dict(state_dict)
        for hook in getattr(self, "_optimizer_load_state_dict_pre_hooks", {}).values():
            state_dict = hook(self, state_dict) or state_dict
        places = interchange.match_groups(self.param_groups, state_dict["param_groups"])
        loaded, rest = {}, {}
        for key, saved in state_dict["state"].items():
            parameter = places.get(key)
            if parameter is None:
                rest[key] = copy.deepcopy(saved)
            else:
                loaded[parameter] = interchange.parse(
                    saved, parameter, self._state_count, self._describe(parameter)
                ) or int(saved.get("step", 0))
        self._adopt(loaded, rest)
        self._load_groups(state_dict["param_groups"])
        self._flush()
        for hook in getattr(self, "_optimizer_load_state_dict_post_hooks", {}).values():
            hook(self)

    def __getstate__(self):
        return self._portrait()

    def __setstate__(self, state):
        if "portrait" not in state:  # torch's own callers pass parts of the base's state
            super().__setstate__(state)
            return
        self._configure(*state["portrait"])
        groups = state["param_groups"]
        super().__setstate__({"defaults": state["defaults"], "state": defaultdict(dict), "param_groups": groups})
        parameters = [p for group in groups for p in group["params"]]
        self._names.update((parameters[index], name) for index, name in state["names"].items())
        loaded = {}
        for index, saved in state["states"].items():
            parameter = parameters[index]
            parsed = interchange.parse(saved, parameter, self._state_count, self._describe(parameter))
            loaded[parameter] = parsed or saved["step"]
        self._adopt(loaded, {})
        self._step_count = state["step_count"]

    def __reduce__(self):
        return (_empty_of, (type(self),), self._portrait())

    def __deepcopy__(self, memo):
        """A copy with states of its own (under a name of its own), uploaded at its first use."""
        twin = _empty_of(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._portrait(), memo))
        return twin

    # ---- what bitpager adds ----

    @property
    def session(self):
        """The session in use, of the first parameter's device when there are several; connects when there is none."""
        if self._session is not None:
            return self._session
        if self._registry.arenas:
            return self._registry.arenas[0].session
        first = next((p for group in self.param_groups for p in group["params"]), None)
        return default_session() if first is None else session_for(first.device)

    def synchronize(self) -> None:
        """Waits until the steps on GPU streams are done and raises what they found."""
        for session in self._stream_sessions():
            session.synchronize()

    def prepare(self) -> BlockOptimizer:
        """Makes the arenas now, so that a refusal (quota, budget) comes before the first step. Returns itself."""
        self._admit()
        self._flush()
        return self

    def name_parameters(self, named_parameters) -> None:
        """Takes (name, parameter) pairs, as model.named_parameters() gives, for messages. Names given before stay."""
        mine = {p for group in self.param_groups for p in group["params"]}
        for name, parameter in named_parameters:
            if parameter in mine:
                self._names.setdefault(parameter, name)

    @torch.no_grad()
    def note_gradients(self) -> None:
        """Remembers how the gradients of the coming step are now, before something spreads NaN over all of them, as
        clipping by norm does: NonFiniteError then names those that had it first. Call it before clipping. One pass over
        the gradients; nothing is waited for."""
        self._notes.take(self._step_count + 1, (p for group in self.param_groups for p in group["params"]))

    def extents(self):
        """Handles of the optimizer's arenas, for session.prefetch(optimizer)."""
        return self._registry.extents()

    def drop(self) -> None:
        """Gives the pages back. The next step starts from fresh states."""
        self._streams.forget()
        self._registry.drop()
        self._notes = nonfinite.GradientNotes()
        self._pending.clear()
        self._loaded_bits.clear()
        self.state.clear()
        self._step_count = 0

    # ---- inside ----

    def _session_of(self, device):
        """The session for a torch.device; ValueError when the one that was given is for another device."""
        if self._session is None:
            return session_for(device)
        wanted = device_uuid(device)
        have = self._session.device_uuid
        if have and have != wanted:
            raise ValueError(
                f"a parameter is on {device} ({wanted}), the optimizer's session is for {have}. Hint: "
                "bitpager.connect(device=...), or leave session out."
            )
        return self._session

    def _stream_sessions(self):
        """The open sessions whose steps run on streams."""
        found = {id(a.session): a.session for a in self._registry.arenas if a.session.device_kind == "cuda"}
        return [session for session in found.values() if not session.closed]

    def _raise_failures(self) -> None:
        for session in self._stream_sessions():
            session.raise_failures()

    @property
    def _state_count(self) -> int:
        return 2 if self.rule == _lib.ADAM else 1

    def _describe(self, parameter) -> str:
        name = self._names.get(parameter)
        if name is not None:
            return name
        for group_index, group in enumerate(self.param_groups):
            for index, candidate in enumerate(group["params"]):
                if candidate is parameter:
                    return f"param_group {group_index}, parameter {index} of shape {tuple(parameter.shape)}"
        return f"a parameter of shape {tuple(parameter.shape)}"

    def _settings_of(self, parameter):
        """(optim_bits, min_8bit_size) with overrides."""
        manager = GlobalOptimManager.get_instance()
        for group_index, group in enumerate(self.param_groups):
            for index, candidate in enumerate(group["params"]):
                if candidate is parameter:
                    override = manager.settings_of(parameter, (group_index, index))
                    return override.get("optim_bits", self._bits), override.get("min_8bit_size", self._min_8bit_size)
        return self._bits, self._min_8bit_size

    def _bits_of(self, parameter) -> int:
        loaded = self._loaded_bits.get(parameter)
        if loaded is not None:
            return loaded
        bits, least = self._settings_of(parameter)
        if bits not in (8, 32):
            raise ValueError(f"optim_bits of {self._describe(parameter)} must be 8 or 32; got {bits!r}")
        return 32 if parameter.numel() < least else bits

    def _admit(self, resume_step=None) -> None:
        wanted = [
            p
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad or p.grad is not None or p in self._pending
        ]
        bits = {p: self._bits_of(p) for p in wanted if p not in self._registry.slots}
        self._streams.forget()
        self._registry.admit(self._session_of, wanted, bits.__getitem__, resume_step)

    def _resume(self, resume_step) -> None:
        if isinstance(resume_step, bool) or not isinstance(resume_step, int) or resume_step < 0:
            raise ValueError(f"resume_step must be a step count; got {resume_step!r}")
        self._admit(resume_step)
        self._step_count = resume_step
        for parameter in self._registry.slots:
            self.state[parameter]["step"] = resume_step

    def _flush(self) -> None:
        """Uploads states that wait for their arenas."""
        if not self._pending:
            return
        self._admit()
        for parameter in list(self._pending):
            state = self._pending[parameter]
            if parameter in self._registry.slots:
                interchange.write(self._registry.slots[parameter], state, self._step_count)
            del self._pending[parameter]

    def _gather(self):
        """{arena: Request} of this step."""
        self._flush()
        stepped = []
        for group_index, group in enumerate(self.param_groups):
            for index, p in enumerate(group["params"]):
                grad = p.grad
                if grad is not None:
                    known_place = grad.is_cpu or grad.is_cuda
                    if grad.layout is not torch.strided or grad.dtype not in GRAD_CODES or not known_place:
                        refuse_gradient(p, self._describe(p))
                    stepped.append((group_index, index, p))
        slots = self._registry.slots
        if any(p not in slots and p.numel() for _, _, p in stepped):
            self._admit()
        manager = GlobalOptimManager.get_instance()
        plain = [settings_of(group, None) for group in self.param_groups]
        requests, empty = {}, []
        for group_index, index, p in stepped:
            slot = slots.get(p)
            if slot is None:  # without elements
                empty.append(self.state[p])
                continue
            self._registry.locate(p, slot)
            override = manager.settings_of(p, (group_index, index))
            settings = settings_of(self.param_groups[group_index], override) if override else plain[group_index]
            request = requests.get(slot.arena)
            if request is None:
                request = requests[slot.arena] = Request(len(self.param_groups))
            request.add(slot, p, gradient_of(p), self.state[p], settings, group_index, bool(override))
        for state in empty:
            state["step"] = state.get("step", 0) + 1
        return requests

    def _submit(self, requests) -> None:
        """One request for each arena. After an interrupt the step is finished first, so that all parameters are at the
        same step; a second one leaves at once."""
        on_gpu = {a: r for a, r in requests.items() if a.session.device_kind == "cuda"}
        requests = {a: r for a, r in requests.items() if a not in on_gpu}
        if on_gpu:
            self._streams.pack(on_gpu, self.param_groups, self.state, whole=not requests)
            self._send_on_streams()
        if not requests:
            return
        self._step_count += not on_gpu
        interrupt, skipped_blocks, unknown = None, 0, False
        for position, (arena, request) in enumerate(requests.items()):
            request.count(1)
            arena.submitted = False
            try:
                try:
                    code, result = self._step_arena(arena, request, position > 0)
                except KeyboardInterrupt as error:
                    if arena.submitted:
                        raise
                    interrupt = error  # the library has not seen the step yet
                    code, result = self._step_arena(arena, request, position > 0)
                self.parts_sent += 1
                if code == _lib.NON_FINITE:
                    skipped_blocks += result.nonfinite_blocks
                if code == _lib.INTERRUPTED:
                    unknown = True
                    _lib.settle(arena.session.handle)
            except KeyboardInterrupt as error:
                if not arena.submitted:  # the second one
                    request.count(-1)
                    self._step_count -= 0 if position or on_gpu else 1
                    raise
                interrupt = error
                _lib.settle(arena.session.handle)
            except Exception as error:
                refused = isinstance(error, errors.Error) and not isinstance(error, errors.DaemonLostError)
                if arena.submitted and not refused:
                    self.parts_sent += 1  # perhaps
                    raise
                request.count(-1)
                self._step_count -= 0 if position or on_gpu else 1
                raise
        if interrupt is not None:
            raise interrupt
        if skipped_blocks or (unknown and self.on_nonfinite != "propagate"):
            self._report_nonfinite(requests, skipped_blocks)

    def _step_arena(self, arena, request, continues):
        propagate = self.on_nonfinite == "propagate"
        return arena.step(request.entries(), list(request.table), self._step_count, propagate, continues)

    def _send_on_streams(self) -> None:
        """Sends the step that self._streams has in hand."""
        settings = [settings_of(group, None) for group in self.param_groups]
        self._step_count += 1
        try:
            self._streams.send(settings, self._step_count, self.on_nonfinite == "propagate")
        except BaseException:
            self._step_count -= not self._streams.sent
            raise
        finally:
            self.parts_sent += self._streams.sent

    def _report_late(self, arena, finished) -> None:
        """A step on a stream left blocks out."""
        noted = self._notes.broken(finished.step)
        names = [self._describe(p) for p in noted]
        where = f"noted first in {nonfinite.shown(names)}"
        if not names:
            parameter = self._registry.parameter_at(arena, finished.first_nonfinite_tensor)
            names = ["a parameter" if parameter is None else self._describe(parameter)]
            where = f"the first in {names[0]}"
        self._tell_nonfinite(finished.step, finished.nonfinite_blocks, names, where, 6)

    def _report_nonfinite(self, requests, blocks) -> None:
        stepped = [p for r in requests.values() for p in r.parameters]
        noted = self._notes.broken(self._step_count)
        names = [self._describe(p) for p in noted or nonfinite.broken_now(stepped)]
        if names or blocks:
            where = f"{'noted first ' if noted else ''}in {nonfinite.shown(names)}"
            self._tell_nonfinite(self._step_count, blocks, names, where, 5)

    def _tell_nonfinite(self, step, blocks, names, where, depth) -> None:
        message = nonfinite.message(step, blocks, where, bool(self._names))
        if self.on_nonfinite == "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=depth)
        elif self.on_nonfinite == "raise":
            raise errors.NonFiniteError(message, tensors=names, blocks=blocks)

    def _entry(self, parameter, light) -> dict:
        """The full interchange entry for what `self.state` says in brief."""
        if not isinstance(parameter, torch.Tensor):
            return light
        step = light.get("step", 0)
        slot = self._registry.slots.get(parameter)
        if slot is not None:
            return {**light, **interchange.read(slot, parameter, step)}
        if parameter in self._pending:
            return {**light, **interchange.entry(self._pending[parameter])}
        state = interchange.fresh(parameter, self._state_count)
        state.step = step
        return {**light, **interchange.entry(state)}

    def _adopt(self, loaded, rest) -> None:
        """Makes `loaded` (parameter -> LoadedState, or a bare step) the optimizer's state, to be uploaded later."""
        self._streams.forget()
        self._registry.drop()
        self._notes = nonfinite.GradientNotes()
        self._pending = {p: state for p, state in loaded.items() if isinstance(state, interchange.LoadedState)}
        self._loaded_bits = {p: state.bits for p, state in self._pending.items() if p.numel()}
        self.state = defaultdict(dict)
        for parameter, state in loaded.items():
            self.state[parameter]["step"] = state if isinstance(state, int) else state.step
        self.state.update(rest)
        self._step_count = max((entry["step"] for p, entry in self.state.items() if p in loaded), default=0)

    def _load_groups(self, saved_groups) -> None:
        for group, saved in zip(self.param_groups, saved_groups):
            taken = {key: copy.deepcopy(value) for key, value in saved.items() if key not in ("params", "param_names")}
            group.update(taken)

    def _portrait(self) -> dict:
        """All that makes an equal optimizer elsewhere: primitives, tensors, parameters."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        states = {
            index: self._entry(p, self.state[p])
            for index, p in enumerate(parameters)
            if p in self.state and (p in self._registry.slots or p in self._pending or not p.numel())
        }
        settings = (self._bits, self._min_8bit_size, self._registry.evictable, None, self.on_nonfinite, None)
        return {
            "portrait": settings,
            "defaults": self.defaults,
            "param_groups": self.param_groups,
            "names": {index: self._names[p] for index, p in enumerate(parameters) if p in self._names},
            "states": states,
            "step_count": self._step_count,
        }


def _empty_of(cls):
    return cls.__new__(cls)


def _strip_names(params, names):
    """`params` without the names of (name, parameter) pairs, which go into `names`."""
    if isinstance(params, torch.Tensor):
        return params
    plain = []
    for item in params:
        if isinstance(item, dict):
            plain.append(item)  # its pairs are stripped by add_param_group
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            names[item[1]] = item[0]
            plain.append(item[1])
        else:
            plain.append(item)
    return plain
