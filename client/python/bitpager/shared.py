"""Places parameters where the daemon can reach them.

A torch storage is moved into a shared file in place (its address changes, its views follow) and registered once per
session. Storages that cannot move, because other memory owners hold their address or /dev/shm is full, are left alone:
their tensors go through the session's slab at every step, and the reason is told once.
"""

from __future__ import annotations

import os
import resource
import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from . import _lib

_SHM = "/dev/shm"
_SHM_RESERVE_BYTES = 1 << 20


class SharedStorage:
    """A registered torch storage. `buffer` is 0 when it could not be shared; `reason` then says why."""

    __slots__ = ("reference", "address", "bytes", "buffer", "reason")

    def __init__(self, reference, address, size, buffer, reason):
        self.reference = reference
        self.address = address
        self.bytes = size
        self.buffer = buffer
        self.reason = reason


def locate(session, tensor: torch.Tensor) -> SharedStorage:
    """The shared storage behind `tensor`, registered now if it is new. Buffers of vanished storages are released."""
    storage = tensor.untyped_storage()
    with session._storages_lock:
        found = session._storages.get(storage._cdata)
        if found is not None and found.address == storage.data_ptr() and found.bytes == storage.nbytes():
            return found
        if found is not None:
            _release(session, session._storages.pop(storage._cdata))
        _sweep(session)
        made = _register(session, storage)
        session._storages[storage._cdata] = made
        return made


def _sweep(session) -> None:
    gone = [key for key, shared in session._storages.items() if shared.reference.expired()]
    for key in gone:
        _release(session, session._storages.pop(key))


def _release(session, shared: SharedStorage) -> None:
    if shared.buffer and not session.closed:
        _lib.check_idempotent(_lib.lib().bp_buffer_release, session.handle, shared.buffer)


def _register(session, storage) -> SharedStorage:
    descriptor, reason = _share(storage)
    buffer = _lib.c_uint64(0)
    if descriptor is not None:
        try:
            _lib.check_idempotent(
                _lib.lib().bp_buffer_register, session.handle, descriptor, storage.nbytes(), _lib.byref(buffer)
            )
        finally:
            if reason == "owned":
                os.close(descriptor)
        reason = None
    return SharedStorage(StorageWeakRef(storage), storage.data_ptr(), storage.nbytes(), buffer.value, reason)


def _share(storage):
    """(descriptor, "owned" or None) of the storage's shared file, or (None, why there is none)."""
    if storage.is_shared():
        if torch.multiprocessing.get_sharing_strategy() == "file_system":
            return _open_named(storage)
        return storage._share_fd_cpu_()[0], None
    if not storage.resizable():
        return None, "its memory belongs to another owner (NumPy, a mapped file)"
    free = _free_shm_bytes()
    if free < storage.nbytes() + _SHM_RESERVE_BYTES:
        return None, f"{_SHM} has {free} bytes left and {storage.nbytes()} are needed (containers: --shm-size)"
    if not _allow_one_more_file():
        return None, "this process has reached its limit of open files (ulimit -n)"
    try:
        return storage._share_fd_cpu_()[0], None
    except RuntimeError as error:
        return None, str(error).splitlines()[0]


def _open_named(storage):
    name = os.fsdecode(storage._share_filename_cpu_()[1])
    try:
        return os.open(_SHM + "/" + name.lstrip("/"), os.O_RDWR | os.O_CLOEXEC), "owned"
    except OSError as error:
        return None, f"its shared file cannot be opened ({error.strerror})"


def _free_shm_bytes() -> int:
    try:
        state = os.statvfs(_SHM)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize


def _allow_one_more_file() -> bool:
    """Torch keeps one descriptor per shared storage: raises the soft limit while the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return True
    with os.scandir("/proc/self/fd") as entries:
        used = sum(1 for _ in entries)
    if used + 64 < soft:
        return True
    if hard != resource.RLIM_INFINITY and soft >= hard:
        return used + 16 < soft
    wanted = soft * 2 if hard == resource.RLIM_INFINITY else min(soft * 2, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def drop_later(owner, session, function: str, handle: int):
    """A finalizer of `owner` that calls bp_<function>(session, handle), unless the session has ended by then."""
    finalizer = weakref.finalize(owner, _drop, weakref.ref(session), function, handle)
    finalizer.atexit = False
    return finalizer


def _drop(session_reference, function, handle):
    session = session_reference()
    if session is not None and not session.closed:
        getattr(_lib.lib(), function)(session.handle, handle)  # a failure leaves it to the session's end
