"""Gradients of a step, read and checked in one compiled call (gradient_gather.cc) in place of passes in Python.

The library is compiled for the installed PyTorch in a thread that the first step on a GPU starts, once for each version
of PyTorch; meanwhile, and where it cannot be had, the passes of packed.py do it: the same answers, some hundred
microseconds later. The logger "bitpager" says at level info which it is, and so does report().
BITPAGER_COMPILED_GATHER=0 switches it off.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import pathlib
import sys
import threading
import weakref
from ctypes import POINTER, c_int, c_uint32, c_uint64, c_void_p

import torch

from .. import compiled
from ..compiled import Unavailable

ABI_VERSION = 1
SWITCH = "BITPAGER_COMPILED_GATHER"
_SOURCE = compiled.Source(
    pathlib.Path(__file__).with_name("gradient_gather.cc"), ABI_VERSION, "what reads gradients", ("c10",)
)
_INSTEAD = "gradients are read in Python, which takes longer"
_log = logging.getLogger("bitpager")


class Gather:
    """The parameters of one packed step. Holds them, and from take() to release() their gradients."""

    __slots__ = ("_take", "_release", "_handle", "_parameters", "_finalizer", "__weakref__")

    def __init__(self, library, handle: int, parameters):
        self._take = library.bp_gather_take
        self._release = library.bp_gather_release
        self._handle = c_void_p(handle)
        self._parameters = parameters  # the library knows where these objects are
        self._finalizer = weakref.finalize(self, library.bp_gather_free, handle)
        self._finalizer.atexit = False

    def take(self, addresses) -> bool:
        """Whether the parameters are where they were, and their gradients like the earlier ones in all but the
        addresses, which are written to `addresses`, a ctypes array of uint64. The gradients are held if so."""
        return self._take(self._handle, addresses) == 1

    def release(self) -> None:
        """Lets go of the gradients."""
        self._release(self._handle)


class Library:
    """The compiled functions, and where a tensor's Python object has its TensorImpl."""

    def __init__(self, path):
        self.functions = _load(path)
        self._offset = _offset_of_impl()

    def find(self, addresses, begins, ends):
        """As streams.within()."""
        found = (c_uint64 * len(addresses))()
        ranges = (begins.buffer_info()[0], ends.buffer_info()[0], len(begins))
        return found[: self.functions.bp_gather_find(addresses, len(addresses), *ranges, found)]

    def make(self, parameters, gradients, without=()):
        """The Gather of `parameters`, of which gradients like `gradients` are expected, and of `without`, which are to
        have none; None when not all of it can be told apart by looking at memory."""
        parameters, without = list(parameters), list(without)
        if not all(map(_has_plain_grad, set(map(type, parameters + without)))):
            return None
        handle = self.functions.bp_gather_make(
            self._offset,
            _pointers(map(id, parameters)),
            _pointers(p._cdata for p in parameters),
            _pointers(g._cdata for g in gradients),
            len(parameters),
            _pointers(map(id, without)),
            _pointers(p._cdata for p in without),
            len(without),
        )
        return None if handle is None else Gather(self.functions, handle, parameters + without)


_DISPATCHERS = (torch.Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)


def _has_plain_grad(kind) -> bool:
    """Whether .grad of tensors of this type is PyTorch's own, with nothing in between."""
    dispatcher = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    reads_plainly = kind.__getattribute__ is object.__getattribute__ and not hasattr(kind, "__getattr__")
    return kind.grad is torch.Tensor.grad and reads_plainly and dispatcher in _DISPATCHERS


def _pointers(values):
    values = list(values)
    return (c_void_p * len(values))(*values)


def _load(path):
    library = compiled.open_library(str(path), ctypes.PyDLL)  # called with the GIL held
    pointers = POINTER(c_void_p)
    try:
        library.bp_gather_abi_version.restype = c_uint32
        if library.bp_gather_abi_version() != ABI_VERSION:
            raise Unavailable(f"{path} is of another version; delete it")
        library.bp_gather_make.restype = c_void_p
        library.bp_gather_make.argtypes = (
            *(c_uint64, pointers, pointers, pointers, c_uint64),
            *(pointers, pointers, c_uint64),
        )
        library.bp_gather_take.restype = c_int
        library.bp_gather_take.argtypes = (c_void_p, POINTER(c_uint64))
        for name in ("bp_gather_release", "bp_gather_free"):
            getattr(library, name).restype = None
            getattr(library, name).argtypes = (c_void_p,)
        library.bp_gather_find.restype = c_uint64
        library.bp_gather_find.argtypes = (c_void_p, c_uint64, c_void_p, c_void_p, c_uint64, c_void_p)
    except AttributeError as error:
        raise Unavailable(f"{path} is not complete ({error}); delete it") from error
    return library


def _offset_of_impl() -> int:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise Unavailable("this Python has no GIL")
    tensors = [torch.zeros(1, device="cpu"), torch.nn.Parameter(torch.zeros(1, device="cpu"))]
    for offset in range(object.__basicsize__, torch.Tensor.__basicsize__ - 7, ctypes.sizeof(c_void_p)):
        if all(c_void_p.from_address(id(t) + offset).value == t._cdata for t in tensors):
            return offset
    raise Unavailable(f"torch {torch.__version__} keeps its tensors otherwise")


# ---- whether it tells ----


def _zeros(*sizes, dtype=torch.float32):
    return torch.zeros(*sizes, dtype=dtype, device="cpu")


def _parameter(gradient):
    """A parameter in memory of its own that has this gradient."""
    plain = gradient.detach() if gradient.layout is torch.strided else gradient.to_dense()
    made = torch.nn.Parameter(torch.empty_like(plain), requires_grad=False)
    made.grad = gradient
    return made


def _tells(library) -> bool:
    """Whether a Gather sees every difference that matters."""
    first, second = _parameter(_zeros(2, 3)), _parameter(_zeros(4, dtype=torch.bfloat16))
    bare = torch.nn.Parameter(_zeros(2), requires_grad=False)
    gather = library.make([first, second], [first.grad, second.grad], [bare])
    addresses = (c_uint64 * 2)()
    first.grad = torch.ones_like(first)
    seen = gather is not None and gather.take(addresses)
    if not seen or list(addresses) != [first.grad.data_ptr(), second.grad.data_ptr()]:
        return False
    gather.release()

    def differs(parameter, *, wanted=None, change=None, without=()):
        gather = library.make([parameter], [parameter.grad if wanted is None else wanted], without)
        if change is not None:
            change(parameter)
        return gather is None or not gather.take((c_uint64 * 1)())

    def give(value):
        return lambda parameter: setattr(parameter, "grad", value)

    def move(parameter):
        parameter.data = parameter.data.clone()

    def swap(parameter):
        torch.utils.swap_tensors(parameter, _parameter(_zeros(2, 2)))

    pair = _zeros(2, 2, dtype=torch.complex64)
    others = (
        _zeros(2, 2, dtype=torch.bfloat16),
        _zeros(2, 2).t(),
        _zeros(2, 3),
        _zeros(4),
        _zeros(2, 2).to_sparse(),
    )
    return (
        not differs(_parameter(_zeros(2, 2)), change=give(_zeros(2, 2)))
        and all(differs(_parameter(other), wanted=_zeros(2, 2)) for other in others)
        and differs(_parameter(pair.conj().imag), wanted=pair.imag)  # negated, when somebody looks
        and all(differs(_parameter(_zeros(2, 2)), change=change) for change in (give(None), move, swap))
        and differs(_parameter(_zeros(2, 2)), without=[bare], change=lambda _: setattr(bare, "grad", _zeros(2)))
    )


# ---- the library of this process ----

_lock = threading.Lock()
# Held while the library is tried, and for good from the interpreter's end on: no thread may be within PyTorch then.
_trying = threading.Lock()
atexit.register(lambda: _trying.acquire())
_thread = None
_library = None
_said = "no step on a GPU was made"


def _forget_thread() -> None:
    """In a forked child: its parent's thread, which may hold the locks, is not there."""
    global _lock, _trying, _thread
    _lock, _trying = threading.Lock(), threading.Lock()
    if _library is None:
        _thread = None


os.register_at_fork(after_in_child=_forget_thread)


def library():
    """The Library, or None: not there, or not yet. The first call has it compiled, in a thread."""
    if _library is None and _thread is None:
        _start()
    return _library


def report() -> str:
    """Whether gradients are read by compiled code, and why not."""
    return _said


def wait(timeout=compiled.COMPILE_LIMIT_S):
    """As library(), once the thread is done or `timeout` seconds have passed."""
    library()
    if _thread.ident is not None:
        _thread.join(timeout)
    return _library


def _start() -> None:
    global _thread, _said
    with _lock:
        if _thread is None:
            thread = threading.Thread(target=_obtain, name="bitpager-compile", daemon=True)
            try:
                thread.start()
            except RuntimeError as why:  # no more threads, or the interpreter is ending: steps work without it
                _said = f"not there: {why}; {_INSTEAD}"
            _thread = thread


def _obtain() -> None:
    global _library, _said
    try:
        if compiled.is_switched_off(SWITCH):
            raise Unavailable(f"switched off by {SWITCH}")
        folder = pathlib.Path(torch.__file__).parent
        path = compiled.build(_SOURCE, folder, torch.__version__, compiled.cxx11(torch))
        with _trying:
            made = Library(path)
            if not _tells(made):
                raise Unavailable(f"with torch {torch.__version__} it does not tell all gradients apart")
        _library = made
        _said = f"compiled for torch {torch.__version__}"
    except Unavailable as why:
        _said = f"not there: {why}; {_INSTEAD}"
    except Exception as error:  # steps work without it
        _said = f"not there: {type(error).__name__}: {error}; {_INSTEAD}"
    _log.info("gradient gather: %s", _said)
