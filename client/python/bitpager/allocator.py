"""guard_allocator(): PyTorch's allocator asks the daemon for room before it takes more memory of a GPU.

The callback is C++ (allocator_guard.cc, compiled by compiled.py), because the allocator calls it with its lock held.
Where that cannot be done the daemon's watermark does the work: pages leave when the card's free memory falls under it,
a little later.
"""

from __future__ import annotations

import ctypes
import logging
import pathlib
import re
import threading
from ctypes import POINTER, Structure, byref, c_int, c_uint32, c_uint64, c_void_p

from . import _lib, compiled
from .compiled import Unavailable
from .sizes import parse_bytes, print_bytes

ABI_VERSION = 2
REQUEST_LIMIT_MS = 3000
REST_MS = 5000
PAUSE_MS = 1000
SWITCH = "BITPAGER_GUARD_ALLOCATOR"
_SOURCE = compiled.Source(pathlib.Path(__file__).with_name("allocator_guard.cc"), ABI_VERSION, "its callback")
# c10::FreeCudaMemoryCallbacksRegistry(), with the newer and the older ABI of std::string.
_REGISTRY = (
    "_ZN3c1031FreeCudaMemoryCallbacksRegistryB5cxx11Ev",
    "_ZN3c1031FreeCudaMemoryCallbacksRegistryEv",
)
_DECLARATIONS = (
    r"virtual\s+bool\s+Execute\(\)\s*=\s*0;",
    r"C10_DECLARE_REGISTRY\(\s*FreeCudaMemoryCallbacksRegistry,\s*FreeMemoryCallback\s*\)",
)
_WATERMARK = "pages leave at the daemon's watermark (--free-watermark) instead"
_log = logging.getLogger("bitpager")


class _Options(Structure):
    _fields_ = [
        ("reserve_bytes", c_uint64),
        ("limit_ms", c_uint32),
        ("rest_ms", c_uint32),
        ("pause_ms", c_uint32),
        ("reserved", c_uint32),
    ]


class _Counts(Structure):
    _fields_ = [(name, c_uint64) for name in ("looks", "requests", "refused", "failed", "waited_ms", "largest_bytes")]


class AllocatorGuard:
    """What guard_allocator() set up. active: the allocator asks for room; reason: why so, or why not; also str()."""

    def __init__(self, reason: str, library=None, ordinal: int = -1, session=None):
        self.reason = reason
        self.active = library is not None
        self._library = library
        self._ordinal = ordinal
        self._handle = session.handle if self.active else None

    def __str__(self):
        return self.reason

    def __repr__(self):
        return f"<bitpager.AllocatorGuard {'active' if self.active else 'inactive'}: {self.reason}>"

    def stats(self) -> dict:
        """{looks (segments that the allocator was about to take), requests (for room), refused and failed (of those),
        waited_ms, largest_bytes (asked for)} of this GPU since the process began; empty when not active."""
        if self._library is None:
            return {}
        counts = _Counts()
        self._library.bp_guard_read_counts(self._ordinal, byref(counts))
        return {name: getattr(counts, name) for name, _ in _Counts._fields_}

    def expect(self, size) -> None:
        """Makes `size` (bytes or "4GiB") the least that is asked for from now on."""
        if self.active:
            self._library.bp_guard_expect(self._ordinal, parse_bytes(size))

    def close(self) -> None:
        """The allocator no longer asks through this session. Waits for a request under way; closing the session does
        it too. Does nothing the second time."""
        if self.active:
            self.active = False
            self._library.bp_guard_detach(self._ordinal, self._handle)


def guard_allocator(session=None, reserve=None) -> AllocatorGuard:
    """Has PyTorch's allocator ask for room before it takes more memory of a GPU, so that pages leave instead of the
    training process running out of memory.

        bitpager.guard_allocator()                  # or nothing: done for every session of a GPU that opens
        bitpager.guard_allocator(reserve="8GiB")    # for single allocations larger than the usual reserve

    The allocator does not tell how much it is about to take. So a reserve is kept free while it grows: when less is
    free, pages leave until it is, and twice as much when it is asked for again within some seconds. An allocation that
    is larger than the reserve and than what is free still fails: bitpager.guard() then learns its size and retries.

    session: bitpager.Session of a GPU (None: the default one of torch's current GPU). reserve: bytes or "4GiB" (None:
    a 32nd of the GPU's memory, 512 MiB to 4 GiB). Called again for a session, it takes the new reserve.

    Never raises for what is missing: the returned AllocatorGuard says whether it is active and why, and so does one
    line of the logger "bitpager". BITPAGER_GUARD_ALLOCATOR=0 keeps sessions from doing it by themselves.
    """
    import torch

    from .session import cuda_index, session_for

    reserve_bytes = 0 if reserve is None else parse_bytes(reserve)
    try:
        _require_torch(torch)
        if session is None:
            session = session_for(torch.device("cuda", torch.cuda.current_device()))
        if session.device_kind != "cuda":
            raise Unavailable(f"the session's device is {session.device_uuid or session.device_kind}, not a GPU")
        library = _installed(torch)
    except Unavailable as why:
        _log.warning("allocator guard: not there, for %s; %s", why, _WATERMARK)
        return AllocatorGuard(str(why))
    if session._allocator_guard is not None:
        session._allocator_guard.close()
    ordinal = cuda_index(session.device_uuid)
    options = _Options(reserve_bytes, REQUEST_LIMIT_MS, REST_MS, PAUSE_MS)
    calls = (ctypes.cast(call, c_void_p) for call in (_lib.lib().bp_make_room, _lib.lib().bp_request_count))
    if library.bp_guard_attach(ordinal, session.handle, *calls, byref(options)) != 0:
        return AllocatorGuard(f"device {ordinal} is beyond those that can be guarded")
    kept = print_bytes(reserve_bytes) if reserve_bytes else "a 32nd of the GPU"
    reason = f"torch {torch.__version__} asks for room before it takes memory of cuda:{ordinal}; reserve: {kept}"
    _log.info("allocator guard: %s", reason)
    session._allocator_guard = AllocatorGuard(reason, library, ordinal, session)
    return session._allocator_guard


def guard_new_session(session) -> None:
    """What connect() does for a session of a GPU, unless BITPAGER_GUARD_ALLOCATOR is 0."""
    if compiled.is_switched_off(SWITCH):
        _log.info("allocator guard: switched off by %s; %s", SWITCH, _WATERMARK)
        return
    try:
        guard_allocator(session)
    except Exception as error:  # the session is worth having without it
        _log.warning("allocator guard: not there, for %s: %s; %s", type(error).__name__, error, _WATERMARK)


def _require_torch(torch) -> None:
    if not torch.cuda.is_available():
        raise Unavailable(f"torch {torch.__version__} sees no GPU")
    backend = torch.cuda.get_allocator_backend()
    if backend != "native":
        raise Unavailable(
            f"PyTorch's allocator is {backend!r}, which has no callbacks; PYTORCH_CUDA_ALLOC_CONF says so"
        )


# ---- the library ----

_lock = threading.Lock()
_library = None


def _installed(torch):
    """The library, compiled when it must be, with its callback registered; Unavailable says why not."""
    global _library
    with _lock:
        if _library is None:
            library = load(build(pathlib.Path(torch.__file__).parent, torch.__version__, compiled.cxx11(torch)))
            driver = compiled.open_library("libcuda.so.1")
            c10_cuda = compiled.open_library(str(pathlib.Path(torch.__file__).parent / "lib" / "libc10_cuda.so"))
            install(library, c10_cuda, driver)
            _library = library
        return _library


def load(path: pathlib.Path):
    """The compiled library with its functions declared."""
    library = compiled.open_library(str(path))
    try:
        library.bp_guard_abi_version.restype = c_uint32
        if library.bp_guard_abi_version() != ABI_VERSION:
            raise Unavailable(f"{path} is of another version; delete it")
        library.bp_guard_install.argtypes = (c_void_p, c_void_p, c_void_p)
        library.bp_guard_attach.argtypes = (c_int, c_void_p, c_void_p, c_void_p, POINTER(_Options))
        library.bp_guard_detach.argtypes = (c_int, c_void_p)
        library.bp_guard_detach.restype = None
        library.bp_guard_expect.argtypes = (c_int, c_uint64)
        library.bp_guard_expect.restype = None
        library.bp_guard_read_counts.argtypes = (c_int, POINTER(_Counts))
        library.bp_guard_read_counts.restype = None
    except AttributeError as error:
        raise Unavailable(f"{path} is not complete ({error}); delete it") from error
    return library


def install(library, c10_cuda, driver) -> None:
    """Registers the callback with the allocator of `c10_cuda` (libc10_cuda.so); once in a process."""
    addresses = []
    for owner, names in ((c10_cuda, _REGISTRY), (driver, ("cuCtxGetDevice",)), (driver, ("cuMemGetInfo_v2",))):
        found = next((name for name in names if hasattr(owner, name)), None)
        if found is None:
            raise Unavailable(f"{owner._name} has no {names[0]}")
        addresses.append(ctypes.cast(getattr(owner, found), c_void_p))
    if library.bp_guard_install(*addresses) != 0:
        raise Unavailable("another copy of bitpager in this process has registered its callback")


def build(torch_folder: pathlib.Path, version: str, cxx11: bool, folder=None) -> pathlib.Path:
    """Path of the library for this PyTorch, in `folder` (None: the user's cache); compiled when it is not there.

    Unavailable: no compiler, no headers, headers that declare something else, a folder that others can write."""
    _require_headers(torch_folder / "include")
    return compiled.build(_SOURCE, torch_folder, version, cxx11, folder)


def _require_headers(include: pathlib.Path) -> None:
    header = include / "c10" / "cuda" / "CUDACachingAllocator.h"
    try:
        text = header.read_text(errors="replace")
    except OSError as error:
        raise Unavailable(f"PyTorch's headers are not installed ({header}: {error.strerror})") from error
    if not all(re.search(pattern, text) for pattern in _DECLARATIONS):
        raise Unavailable(f"this PyTorch declares its allocator's callbacks otherwise ({header})")


__all__ = ["AllocatorGuard", "guard_allocator"]
