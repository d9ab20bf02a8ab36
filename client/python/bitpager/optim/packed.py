"""Steps on CUDA streams: packed once, and sent again from step to step.

While the same parameters have gradients, a step changes three things: the gradients' addresses, the groups' settings
and the count of steps. Everything else is checked for being what it was, in one compiled call (gather.py) or, where
there is none, in a few passes over the list; any difference sends the optimizer the long way, which packs anew.
"""

from __future__ import annotations

import ctypes
import itertools
import operator

import torch

from .. import _lib
from ..arena import StreamCall
from . import gather
from .sameness import Sameness
from .streams import SegmentStreams, current_stream

_address = torch.Tensor.data_ptr
_gradient = operator.attrgetter("grad")


class _Replaced(Exception):
    """A gradient of the step in hand is not its parameter's any more: another thread was there."""


class _Gradients:
    """The gradients that a Gather took, as a sequence."""

    def __init__(self, parameters, addresses):
        self._parameters = parameters
        self._addresses = addresses

    def __getitem__(self, index):
        gradient = self._parameters[index].grad
        if gradient is None or gradient.data_ptr() != self._addresses[index]:
            raise _Replaced
        return gradient


class PackedStep:
    """One arena's step. rows: in the field order of bp_step_tensor, ascending by tensor; parameters, gradients, states:
    in the rows' order; groups: how many settings the rows' groups point into."""

    def __init__(self, arena, rows, parameters, gradients, states, groups: int):
        self.arena = arena
        self.device_index = parameters[0].device.index
        self.parameters = parameters
        self.states = states
        self.call = StreamCall(rows, groups)
        self.call.point_to(map(_address, gradients))
        self._places = list(map(_address, parameters))
        self.places = (ctypes.c_uint64 * len(parameters))(*self._places)  # the parameters' addresses
        self._is_same = Sameness(gradients)
        self._are_same_parameters = Sameness(parameters)
        self.elements = sum(map(torch.Tensor.numel, gradients))
        self._first_step = rows[0][2]  # that the packed rows say of the first tensor
        self._counts = {}  # step that they say -> states of those tensors
        for row, state in zip(rows, states):
            self._counts.setdefault(row[2], []).append(state)
        self.gradients = gradients  # of the step in hand
        self._gather = None
        self._asked_for_gather = False
        gather.library()  # has it compiled, for later steps

    @property
    def addresses(self):
        """The addresses of the gradients of the step in hand."""
        return self.call.grads

    def look(self) -> bool:
        """Takes the gradients of the next step. False when anything but their addresses has changed."""
        if self._gather is not None:
            if not self._gather.take(self.call.grads):
                return False
            self.gradients = _Gradients(self.parameters, self.call.grads)
            return True
        self.gradients = gradients = list(map(_gradient, self.parameters))
        try:
            addresses = list(map(_address, gradients))
            same = (
                self._is_same(gradients)
                and list(map(_address, self.parameters)) == self._places
                and self._are_same_parameters(self.parameters)
            )
        except (AttributeError, TypeError, RuntimeError):  # no gradient, or a sparse one
            return False
        if same:
            self.call.point_to(addresses)
            self._prepare_gather()
        return same

    def _prepare_gather(self) -> None:
        """The next look is a compiled one, if there is one by now."""
        if self._asked_for_gather:
            return
        library = gather.library()
        if library is not None:
            self._asked_for_gather = True
            self._gather = library.make(self.parameters, self.gradients)

    def submit(self, settings, step: int, propagate: bool, stream: int, follows: bool) -> None:
        """Sends the step in hand, and counts it with every parameter once it is on its way; an interrupt that comes
        later does not undo that."""
        ahead = self.states[0]["step"] + 1 - self._first_step
        self.call.fill(settings, step, ahead, propagate, follows)
        try:
            self.arena.step_on_stream(self.call, stream)
        finally:
            if self.call.submitted.ticket:
                try:
                    self._count(ahead)
                except KeyboardInterrupt:
                    self._count(ahead)  # to the end: it sets, it does not add
                    raise

    def _count(self, ahead: int) -> None:
        for packed, states in self._counts.items():
            count = packed + ahead
            for state in states:
                state["step"] = count

    def release(self) -> None:
        """The step in hand is on its way: its gradients need not be held."""
        self.gradients = ()
        if self._gather is not None:
            self._gather.release()

    @property
    def is_sent(self) -> bool:
        """The step in hand is on its way."""
        return self.call.submitted.ticket != 0


class _Rest:
    """Parameters that have no gradient."""

    def __init__(self, parameters):
        self._parameters = parameters
        self._gather = None
        self._asked_for_gather = not parameters

    def look(self) -> bool:
        """Whether they still have none."""
        if self._gather is not None:
            return self._gather.take(None)
        if not self._asked_for_gather and gather.library() is not None:
            self._asked_for_gather = True
            self._gather = gather.library().make((), (), self._parameters)
        return all(map(operator.is_, map(_gradient, self._parameters), itertools.repeat(None)))


class StreamSteps:
    """The steps of one optimizer's arenas on GPUs."""

    def __init__(self):
        self._packed = []  # (PackedStep, None: settings of the groups, else its own)
        self._parameters = []  # of each group
        self._expected = []  # (session, device index): who has parts
        self._rest = _Rest([])  # those without a gradient when it was packed
        self._state = None
        self._reusable = False
        self._segments = {}  # device index -> SegmentStreams
        self.sent = 0  # arenas whose part of the step in hand is on its way

    def expect(self) -> None:
        """Has the daemons and the GPUs make ready for a step that looks like the last one, while this thread prepares
        it. Whatever goes wrong, the step tells."""
        for session, index in self._expected:
            _lib.lib().bp_expect_step(session.handle, current_stream(index))

    def forget(self) -> None:
        """The next step is packed anew."""
        self._packed, self._expected, self._parameters, self._rest = [], [], [], _Rest([])
        self._state, self._reusable = None, False

    def pack(self, requests, groups, state, whole: bool) -> None:
        """Takes a step from {arena: Request}. whole: no other arena takes part, so it may be sent again."""
        # The smallest first: the daemon has applied it by the time that the largest is on its way.
        self._packed = sorted(
            (
                (request.pack(arena), None if request.plain else _flat(request.table))
                for arena, request in requests.items()
            ),
            key=lambda step: step[0].elements,
        )
        taken = {id(p) for step, _ in self._packed for p in step.parameters}
        self._expected = list({step.arena.session: step.device_index for step, _ in self._packed}.items())
        self._parameters = [list(group["params"]) for group in groups]
        self._rest = _Rest([p for group in self._parameters for p in group if id(p) not in taken])
        self._state = state
        self._reusable = whole and all(own is None for _, own in self._packed)

    def look(self, groups, state) -> bool:
        """Takes the same step with new gradients; False when it is not the same."""
        same = (
            self._reusable
            and self._state is state
            and len(groups) == len(self._parameters)
            and all(_are_the_same(group["params"], before) for group, before in zip(groups, self._parameters))
            and self._rest.look()
            and all([step.look() for step, _ in self._packed])
        )
        if not same:
            self.forget()
        return same

    def send(self, groups_settings, number: int, propagate: bool) -> None:
        """Sends the step in hand. The first interrupt waits until every arena's part is under way. groups_settings:
        tuples of settings of all groups; number: the optimizer's step."""
        interrupt, self.sent, last = None, 0, None
        settings = _flat(groups_settings)
        try:
            for step, _ in self._packed:
                step.call.submitted.ticket = 0  # of the step before: nothing of this one is on its way
            for step, own in self._packed:
                # All gradients were there before the first part, and nothing was enqueued since.
                follows, last = step.arena.session is last, step.arena.session
                parts = (step, settings if own is None else own, number, propagate, follows)
                try:
                    self._send_one(*parts)
                except KeyboardInterrupt as error:
                    interrupt = error
                    if not step.is_sent:
                        self._send_one(*parts)
                finally:
                    self.sent += step.is_sent
        except BaseException:
            self.forget()
            raise
        if interrupt is not None:
            raise interrupt
        if not self._reusable:
            self.forget()

    def _send_one(self, step, settings, number, propagate, follows) -> None:
        index = step.device_index
        if torch.cuda.current_device() == index:
            self._send_on_current(step, settings, number, propagate, follows, index)
            return
        with torch.cuda.device(index):
            self._send_on_current(step, settings, number, propagate, follows, index)

    def _send_on_current(self, step, settings, number, propagate, follows, index) -> None:
        stream = current_stream(index)
        step.submit(settings, number, propagate, stream, follows)
        segments = self._segments.get(index)
        if segments is None:
            segments = self._segments[index] = SegmentStreams(index)
        imports = step.call.submitted.imports
        try:
            segments.record(step.gradients, step.addresses, stream, imports)
        except _Replaced:  # and its memory goes with the step's hold on it: not before the step is done
            torch.cuda.current_stream(index).synchronize()
        segments.record(step.parameters, step.places, stream, imports)
        step.release()


def _are_the_same(objects, others) -> bool:
    return len(objects) == len(others) and all(map(operator.is_, objects, others))


def _flat(settings):
    return [value for group in settings for value in group]
