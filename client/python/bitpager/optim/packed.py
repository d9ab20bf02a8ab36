"""Steps on CUDA streams: packed once, and sent again from step to step.

While the same parameters have gradients, a step changes three things: the gradients' addresses, the groups' settings
and the count of steps. Everything else is checked for being what it was, in a few passes over the list; any difference
sends the optimizer the long way, which packs anew.
"""

from __future__ import annotations

import operator

import torch

from .. import _lib
from ..arena import StreamCall
from .sameness import Sameness
from .streams import SegmentStreams, current_stream

_address = torch.Tensor.data_ptr
_gradient = operator.attrgetter("grad")


class PackedStep:
    """One arena's step. rows: in the field order of bp_step_tensor, ascending by tensor; parameters, gradients, states:
    in the rows' order; groups: how many settings the rows' groups point into."""

    def __init__(self, arena, rows, parameters, gradients, states, groups: int):
        self.arena = arena
        self.parameters = parameters
        self.states = states
        self.call = StreamCall(rows, groups)
        self.places = list(map(_address, parameters))
        self._is_same = Sameness(gradients)
        self.elements = sum(map(torch.Tensor.numel, gradients))
        self._first_step = rows[0][2]  # that the packed rows say of the first tensor
        self.gradients = gradients  # of the step in hand
        self.addresses = list(map(_address, gradients))

    def look(self) -> bool:
        """Takes the gradients of the next step. False when anything but their addresses has changed."""
        self.gradients = gradients = list(map(_gradient, self.parameters))
        try:
            self.addresses = list(map(_address, gradients))
            return self._is_same(gradients) and list(map(_address, self.parameters)) == self.places
        except (AttributeError, TypeError, RuntimeError):  # no gradient, or a sparse one
            return False

    def submit(self, settings, step: int, propagate: bool, stream: int, follows: bool) -> None:
        """Sends the step in hand, and counts it with every parameter once it is on its way; an interrupt that comes
        later does not undo that."""
        ahead = self.states[0]["step"] + 1 - self._first_step
        self.call.fill(self.addresses, settings, step, ahead, propagate, follows)
        try:
            self.arena.step_on_stream(self.call, stream)
        finally:
            if self.call.submitted.ticket:
                for state in self.states:
                    state["step"] += 1

    @property
    def is_sent(self) -> bool:
        """The step in hand is on its way."""
        return self.call.submitted.ticket != 0


class StreamSteps:
    """The steps of one optimizer's arenas on GPUs."""

    def __init__(self):
        self._packed = []  # (PackedStep, None: settings of the groups, else its own)
        self._rest = []  # parameters without a gradient when it was packed
        self._count = 0  # of all parameters
        self._state = None
        self._reusable = False
        self._segments = {}  # device index -> SegmentStreams
        self.sent = 0  # arenas whose part of the step in hand is on its way

    def expect(self) -> None:
        """Has the daemons and the GPUs make ready for a step that looks like the last one, while this thread prepares
        it. Whatever goes wrong, the step tells."""
        devices = {step.arena.session: step.parameters[0].device.index for step, _ in self._packed}
        for session, index in devices.items():
            _lib.lib().bp_expect_step(session.handle, current_stream(index))

    def forget(self) -> None:
        """The next step is packed anew."""
        self._packed, self._rest, self._state, self._reusable = [], [], None, False

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
        parameters = [p for group in groups for p in group["params"]]
        self._rest = [p for p in parameters if id(p) not in taken]
        self._count = len(parameters)
        self._state = state
        self._reusable = whole and all(own is None for _, own in self._packed)

    def look(self, groups, state) -> bool:
        """Takes the same step with new gradients; False when it is not the same."""
        same = (
            self._reusable
            and self._state is state
            and sum(len(group["params"]) for group in groups) == self._count
            and not any(p.grad is not None for p in self._rest)
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
        index = step.parameters[0].device.index
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
        segments.record(step.gradients, step.addresses, stream, imports)
        segments.record(step.parameters, step.places, stream, imports)
        step.gradients = ()


def _flat(settings):
    return [value for group in settings for value in group]
