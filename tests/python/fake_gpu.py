"""What tests of steps on CUDA streams share without a GPU: a library that records what it is given stands in for
libbitpager.so, CPU tensors for memory of a GPU."""

from __future__ import annotations

import ctypes
import os

import torch
from bitpager import _lib
from bitpager import session as sessions
from bitpager.optim import gather, packed

UUID = "GPU-00000000-0000-0000-0000-000000000000"


class Library:
    """Plays libbitpager.so for one session on a GPU. `outcomes`: codes of the next bp_step_async calls."""

    def __init__(self):
        self.steps = []
        self.outcomes = []
        self.finished = []
        self.synchronized = 0
        self.expected = []  # (steps before, stream)
        self.imports = 1
        self.on_step = lambda: None
        self.extents = 100

    def bp_session_get_info(self, _, info):
        info._obj.device_kind = b"cuda"
        info._obj.device_uuid = UUID.encode()
        return 0

    def bp_code_name(self, code):
        return f"CODE_{code}".encode()

    def bp_last_error(self):
        return b"what the library says"

    def bp_arena_create(self, _, options, handle, info):
        self.extents += 1
        handle._obj.value = self.extents
        return 0

    def bp_arena_drop(self, *_):
        return 0

    def bp_arena_drop_later(self, *_):
        return 0

    def bp_disconnect(self, *_):
        return 0

    def bp_noop(self, *_):
        return 0

    def bp_arena_states(self, *_):
        return 0

    def bp_expect_step(self, _, stream):
        self.expected.append((len(self.steps), stream))
        return 0

    def bp_session_synchronize(self, _):
        self.synchronized += 1
        return 0

    def bp_poll_results(self, _, out):
        out = out._obj
        ctypes.memset(ctypes.addressof(out) + 4, 0, ctypes.sizeof(out) - 4)
        if self.finished:
            for key, value in self.finished.pop(0).items():
                setattr(out, key, value)
        return 0

    def bp_step_async(self, _, arena, table, count, groups, group_count, options, stream, submitted):
        code = self.outcomes.pop(0) if self.outcomes else 0
        if code:
            return code
        options = options._obj
        rows = (_lib.StepTensor * count).from_address(table)
        settings = (_lib.Group * group_count).from_address(groups)
        grads = (ctypes.c_uint64 * count).from_address(options.grads)
        self.steps.append(
            {
                "arena": arena,
                "stream": stream,
                "step": options.step,
                "propagate": options.propagate_nonfinite,
                "follows": options.follows,
                "rows": [
                    {name: getattr(row, name) for name, _ in row._fields_}
                    | {"step": row.step + options.steps_ahead, "grad": grad}
                    for row, grad in zip(rows, grads)
                ],
                "groups": [tuple(getattr(group, name) for name, _ in group._fields_) for group in settings],
            }
        )
        submitted._obj.ticket = len(self.steps)
        submitted._obj.imports = self.imports
        self.on_step()
        return 0


class GpuParameter(torch.nn.Parameter):
    """A CPU parameter that says it lies in a GPU."""

    is_cuda = True


def stand_in(monkeypatch) -> Library:
    """Puts a new Library in the place of the real one, and takes the rest of a GPU for granted."""
    made = Library()
    monkeypatch.setattr(_lib, "_library", made)
    monkeypatch.setattr(packed, "current_stream", lambda index: 77)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [])
    monkeypatch.setattr("bitpager.optim.base.device_uuid", lambda device: UUID)
    return made


READERS = ("compiled", "passes")


def read_with(reader, monkeypatch) -> None:
    """Has gradients read by the compiled gather, once a step was packed, or by passes in Python."""
    if reader == "compiled":
        assert gather.wait() is not None, gather.report()
    else:
        monkeypatch.setattr(gather, "library", lambda: None)


def open_session():
    """A session with the stand-in. To be closed while that is there: what is collected later would be dropped in the
    real library."""
    return sessions.Session(1, os.getpid())


def make_parameters(count=3, elements=5000, dtype=torch.bfloat16):
    return [GpuParameter(torch.zeros(elements + i, dtype=dtype)) for i in range(count)]


def give_gradients(parameters):
    for p in parameters:
        p.grad = torch.ones_like(p)


def segment(address, stream, device=0, total_size=0x1000):
    return {"address": address, "total_size": total_size, "stream": stream, "device": device}
