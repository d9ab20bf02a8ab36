"""Optimizer arenas: the states of a list of tensors, in the daemon's pages."""

from __future__ import annotations

import ctypes
import hashlib
import struct

from . import _lib, errors
from .shared import drop_later

BLOCK = 256  # elements that share one absmax

# bp_step_tensor: tensor, group, step, param dtype, grad dtype, param buffer, offset, pointer, grad buffer, offset,
# pointer.
_ENTRY = struct.Struct("<IIQiiQQQQQQ")
_GROUP = struct.Struct("<ddddd")
assert _ENTRY.size == ctypes.sizeof(_lib.StepTensor) and _GROUP.size == ctypes.sizeof(_lib.Group)


def layout_hash(rule: int, bits: int, shapes) -> int:
    """64 bits that differ when the tensors, their order or the kind of state differ."""
    text = repr((rule, bits, [tuple(shape) for shape in shapes]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Arena:
    """States of `shapes` under one rule and width. Dropped with its owner, kept with its job when the session ends.

    rule: _lib.ADAM or _lib.LION; bits: 8 or 32; shapes: one per tensor, each with an element; name: the optimizer's;
    resume_step: None for fresh states, else the step that kept states must be at (StepMismatchError names both,
    NotFoundError when none are kept).
    """

    def __init__(self, session, rule, bits, evictable, name, shapes, resume_step=None):
        self.session = session
        self.rule = rule
        self.bits = bits
        self.name = name
        self.elements = [_count(shape) for shape in shapes]
        elements = (ctypes.c_uint64 * len(self.elements))(*self.elements)
        options = _lib.sized(_lib.ArenaOptions)
        options.rule, options.bits, options.evictable = rule, bits, int(bool(evictable))
        options.optimizer = name.encode()
        options.elements = elements
        options.tensors = len(self.elements)
        options.layout_hash = layout_hash(rule, bits, shapes)
        options.resume = int(resume_step is not None)
        options.step = resume_step or 0
        self.info = _lib.sized(_lib.ArenaInfo)
        handle = ctypes.c_uint64()
        _lib.check(
            _lib.lib().bp_arena_create(
                session.handle, ctypes.byref(options), ctypes.byref(handle), ctypes.byref(self.info)
            )
        )
        self.handle = handle.value
        self._finalizer = drop_later(self, session, "bp_arena_drop_later", self.handle)
        session._arenas[self.handle] = self
        self.on_nonfinite = None  # called with a _lib.Finished when a step on a stream left blocks out
        self.submitted = False  # the step that was asked for last has reached the library
        self._entries = ctypes.create_string_buffer(_ENTRY.size * len(self.elements))

    @property
    def state_count(self) -> int:
        """States of each element: 2 for Adam, 1 for Lion."""
        return 2 if self.rule == _lib.ADAM else 1

    def extents(self):
        """The arena's handle, for prefetch."""
        return [self.handle]

    def drop(self) -> None:
        """Gives the pages back, behind what was asked of the session before, which it waits for."""
        try:
            if self._finalizer.alive and not self.session.closed:
                _lib.check_idempotent(_lib.lib().bp_arena_drop, self.session.handle, self.handle)
        except errors.Error:
            self._finalizer.detach()  # it is gone, or goes with its session
            raise
        self._finalizer.detach()

    def step(self, entries, groups, step: int, propagate: bool, continues: bool = False):
        """Applies one step and waits for it.

        entries: tuples in the field order of bp_step_tensor, ascending by tensor. groups: tuples (lr, beta1, beta2,
        eps, weight_decay). continues: a further part of the session's step before, counted once.
        Returns (code, result) with code OK, NON_FINITE or INTERRUPTED (the request goes on;
        settle() waits for it); raises on every other code, and then nothing was applied, except after DaemonLostError.
        """
        _lib.settle(self.session.handle)
        buffer = self._entries
        for position, entry in enumerate(entries):
            _ENTRY.pack_into(buffer, position * _ENTRY.size, *entry)
        table = b"".join(_GROUP.pack(*group) for group in groups)
        options = _lib.sized(_lib.StepOptions)
        options.propagate_nonfinite = int(propagate)
        options.step = step
        options.continues = int(continues)
        result = _lib.sized(_lib.StepResult)
        submit = _lib.lib().bp_step
        arguments = (
            self.session.handle,
            self.handle,
            ctypes.addressof(buffer),
            len(entries),
            ctypes.cast(ctypes.c_char_p(table), ctypes.c_void_p),
            len(groups),
            ctypes.byref(options),
            ctypes.byref(result),
        )
        self.submitted = True
        code = submit(*arguments)
        if code == _lib.INTERRUPTED:
            _lib.note_interrupted()
        elif code not in (_lib.OK, _lib.NON_FINITE):
            raise _lib.error_of(code)
        return code, result

    def step_on_stream(self, call: StreamCall, stream: int) -> None:
        """Submits one step on a CUDA stream (its handle; 0: the default one) of the session's device, which is the
        current one, and does not wait. call.submitted.ticket is its number, 0 until it was submitted. Raises, and
        then nothing was submitted; a signal's handler may raise from here."""
        _lib.settle(self.session.handle)
        call.submitted.ticket = 0
        while True:
            code = call.submit(self.session.handle, self.handle, *call.arguments, stream, call.submitted_reference)
            if code == _lib.OK:
                return
            if code != _lib.INTERRUPTED:
                raise _lib.error_of(code)

    def read(self, tensor: int, planes, absmax) -> None:
        """Copies the states of one tensor out of the pages, into dense CPU tensors: planes[k] of n codes (uint8) or n
        fp32, absmax[k] of ceil(n / 256) fp32 (8-bit only, else empty)."""
        self._move(tensor, planes, absmax, write=0, step=0)

    def write(self, tensor: int, planes, absmax, step: int) -> None:
        """Copies states into the pages and marks the arena as being at `step`. Layouts as for read()."""
        self._move(tensor, planes, absmax, write=1, step=step)

    def _move(self, tensor, planes, absmax, write, step):
        pair = ctypes.c_void_p * 2
        plane_pointers = pair(*(plane.data_ptr() for plane in planes))
        absmax_pointers = pair(*(row.data_ptr() for row in absmax))
        _lib.check_idempotent(
            _lib.lib().bp_arena_states,
            self.session.handle,
            self.handle,
            tensor,
            write,
            step,
            plane_pointers,
            absmax_pointers,
        )


class StreamCall:
    """The packed arguments of a step on a stream, for one list of tensors; filled anew from step to step.

    rows: tuples in the field order of bp_step_tensor, ascending by tensor; groups: how many."""

    __slots__ = (
        "submit",
        "arguments",
        "options",
        "submitted",
        "submitted_reference",
        "grads",
        "_table",
        "_groups",
        "_packed",
        "_addresses",
    )

    def __init__(self, rows, groups: int):
        count = len(rows)
        self._table = ctypes.create_string_buffer(b"".join(_ENTRY.pack(*row) for row in rows), count * _ENTRY.size)
        self._packed = struct.Struct("<" + "ddddd" * groups)
        self._groups = ctypes.create_string_buffer(self._packed.size)
        self._addresses = struct.Struct(f"<{count}Q")
        self.grads = (ctypes.c_uint64 * count)()  # an address for each row
        self.options = _lib.sized(_lib.StreamStepOptions)
        self.options.grads = ctypes.addressof(self.grads)
        self.submitted = _lib.sized(_lib.Submitted)
        self.submitted_reference = ctypes.byref(self.submitted)
        self.submit = _lib.lib().bp_step_async
        self.arguments = (
            ctypes.addressof(self._table),
            count,
            ctypes.addressof(self._groups),
            groups,
            ctypes.byref(self.options),
        )

    def point_to(self, addresses) -> None:
        """Sets `grads`: an address for each row."""
        self._addresses.pack_into(self.grads, 0, *addresses)

    def fill(self, settings, step: int, steps_ahead: int, propagate: bool, follows: bool) -> None:
        """settings: lr, beta1, beta2, eps, weight_decay of each group, in one list; step: of the optimizer;
        steps_ahead: added to every row's step; follows: nothing was enqueued on the stream since the session's last
        step there."""
        self._packed.pack_into(self._groups, 0, *settings)
        options = self.options
        options.step, options.steps_ahead, options.propagate_nonfinite = step, steps_ahead, propagate
        options.follows = follows


def _count(shape) -> int:
    count = 1
    for size in shape:
        count *= size
    if count < 1:
        raise errors.InvalidArgumentError(f"a tensor of shape {tuple(shape)} has no states", 10, "INVALID_ARGUMENT")
    return count
