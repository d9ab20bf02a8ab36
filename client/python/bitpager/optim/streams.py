"""The CUDA stream that a step runs on, and which memory needs to be told of it.

The daemon reads gradients and parameters after step() has returned, while the caller's stream waits. Memory that is
freed meanwhile goes back to the pool of the stream it was allocated on. When that is the step's own stream, whoever
gets it next comes behind that wait, so nothing needs to be recorded; memory of any other stream does
(Tensor.record_stream). All memory of one segment of PyTorch's allocator belongs to one stream, so it is enough to look
at the segments, and only when memory was seen that had not been seen before.
"""

from __future__ import annotations

import ctypes
from array import array
from bisect import bisect_right

import torch

from . import gather

try:
    _raw_stream = torch._C._cuda_getCurrentRawStream
except AttributeError:  # a build without CUDA, or a torch that calls it otherwise

    def _raw_stream(index):
        return torch.cuda.current_stream(index).cuda_stream


def current_stream(index: int) -> int:
    """The handle of the device's current stream; 0: the default one."""
    return _raw_stream(index)


def within(addresses, begins, ends):
    """Indices of the addresses that lie in the ranges from begins[i] up to ends[i], which are sorted array("Q")s;
    faster for addresses that are a ctypes array of uint64."""
    library = gather.library() if isinstance(addresses, ctypes.Array) else None
    if library is not None:
        return library.find(addresses, begins, ends)
    places = (bisect_right(begins, address) - 1 for address in addresses)
    return [i for i, place in enumerate(places) if place >= 0 and addresses[i] < ends[place]]


class SegmentStreams:
    """Which memory of a device belongs to other streams than the one that steps run on."""

    def __init__(self, index: int, snapshot=None):
        self._index = index
        self._snapshot = snapshot or torch.cuda.memory_snapshot
        self._imports = None  # the session's count of registrations when the segments were looked at
        self._segments = []  # (begin, end, stream)
        self._foreign = {}  # stream -> (begins, ends) of all others' segments, or None when nothing is known

    def others(self, stream: int, imports: int):
        """(begins, ends) of the segments of other streams, sorted; None when memory must be taken for foreign."""
        if imports != self._imports:
            self._look()
            self._imports = imports
        found = self._foreign.get(stream, self)
        if found is self:
            found = self._foreign[stream] = self._segments_of_others(stream)
        return found

    def _look(self) -> None:
        self._foreign.clear()
        try:
            segments = self._snapshot()
            self._segments = sorted(
                (segment["address"], segment["address"] + segment["total_size"], segment["stream"])
                for segment in segments
                if segment["device"] == self._index
            )
        except (RuntimeError, NotImplementedError, KeyError):  # another allocator than PyTorch's own
            self._segments = None

    def _segments_of_others(self, stream):
        if self._segments is None:
            return None
        others = [(begin, end) for begin, end, owner in self._segments if owner != stream]
        return array("Q", (begin for begin, _ in others)), array("Q", (end for _, end in others))

    def record(self, tensors, addresses, stream: int, imports: int) -> None:
        """Records the current stream, whose handle is `stream`, with those tensors that lie in others' memory."""
        others = self.others(stream, imports)
        if others is not None and not others[0]:
            return
        found = range(len(addresses)) if others is None else within(addresses, *others)
        if found:
            current = torch.cuda.current_stream(self._index)
            for index in found:
                tensors[index].record_stream(current)
