"""Sessions: the attachment of this process to a bitpagerd, and the default one that optimizers and layers share.

A session may be used from any thread (the library serialises its calls). A forked child gets ForkedChildError. The
default sessions, one for each device in use, are closed by atexit; the daemon frees what a session used when its
process ends in any way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import threading
import warnings
import weakref

from . import _lib, errors
from .allocator import guard_new_session
from .sizes import parse_bytes

_log = logging.getLogger("bitpager")
_default = None
_by_device = {}  # UUID -> Session: the default ones of devices that _default is not for
_default_lock = threading.RLock()


def _encode(text):
    return None if text is None else os.fsencode(text)


class Session:
    """One attached process of a job. Made by `bitpager.connect`; usable as a context manager, which closes it."""

    def __init__(self, handle: int, pid: int):
        self._handle = handle
        self._pid = pid
        self._storages = {}  # cdata of a torch storage -> SharedStorage; owned by shared.py
        self._storages_lock = threading.Lock()
        self._arenas = weakref.WeakValueDictionary()  # extent -> Arena, to tell whose step failed
        self._finished = _lib.sized(_lib.Finished)
        self._finished_reference = ctypes.byref(self._finished)
        self._allocator_guard = None  # allocator.AllocatorGuard, of a GPU
        info = self.info()
        self.device_kind = info["device_kind"]
        self.device_uuid = info["device_uuid"]
        self.synchronous = info["synchronous"]
        self.leases = info["leases"]

    @property
    def handle(self) -> int:
        """The bp_session pointer; raises when closed or when this process is a fork of the one that connected."""
        if self._pid != os.getpid():
            raise errors.ForkedChildError(
                f"this session belongs to process {self._pid}; this is its forked child {os.getpid()}. "
                "Hint: keep optimizers and quantized layers out of forked workers, or call bitpager.connect() there.",
                _lib.FORKED_CHILD,
                "FORKED_CHILD",
            )
        if self._handle is None:
            raise errors.Error("this session is closed. Hint: call bitpager.connect() again.", 10, "INVALID_ARGUMENT")
        return self._handle

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self._handle is None or self._pid != os.getpid()

    def close(self) -> None:
        """Detaches. The job's pages are dropped, or kept for its linger time. Does nothing the second time."""
        handle, self._handle = self._handle, None
        if handle is not None and self._pid == os.getpid():
            if self._allocator_guard is not None:
                self._allocator_guard.close()
            self._storages.clear()
            _lib.lib().bp_disconnect(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __deepcopy__(self, memo):
        return self  # copies of what uses a session use the same one

    def __reduce__(self):
        return (_no_session, ())  # what is unpickled uses the default session of its process

    def __repr__(self):
        if self.closed:
            return "<bitpager.Session closed>"
        info = self.info()
        return f"<bitpager.Session job={info['job_name']!r} at {info['socket']}>"

    def info(self) -> dict:
        """{session, job, page_bytes, linger_ms, socket, job_name, device_kind, device_uuid, synchronous, leases}."""
        info = _lib.sized(_lib.SessionInfo)
        _lib.check(_lib.lib().bp_session_get_info(self.handle, ctypes.byref(info)))
        return {
            "session": info.session,
            "job": info.job,
            "page_bytes": info.page_bytes,
            "linger_ms": info.linger_ms,
            "socket": info.socket.decode(errors="replace"),
            "job_name": info.job_name.decode(errors="replace"),
            "device_kind": info.device_kind.decode(errors="replace"),
            "device_uuid": info.device_uuid.decode(errors="replace"),
            "synchronous": bool(info.synchronous),
            "leases": not info.no_leases,
        }

    def memory_stats(self) -> dict:
        """Usage of this session's job as the daemon counts it, in whole pages; keys say their units. shared_bytes:
        weights that others have too, in full; the other figures have the job's part of them. peak_*: the most at any
        moment since this session came, or reset_peak_memory_stats(); job_peak_*: since the job came."""
        usage = _lib.sized(_lib.Usage)
        _lib.check_idempotent(_lib.lib().bp_get_usage, self.handle, ctypes.byref(usage))
        return {name: getattr(usage, name) for name in _lib.USAGE_FIELDS}

    def reset_peak_memory_stats(self) -> None:
        """From now on peak_* of memory_stats() are counted anew, for this session alone: the job's other processes keep
        theirs."""
        _lib.check_idempotent(_lib.lib().bp_reset_peaks, self.handle)

    def make_room(self, size, timeout=10.0) -> int:
        """Has pages leave the GPU until `size` (bytes or "4GiB") of it is free for what this process is about to
        allocate there; returns the bytes free. The daemon keeps the room for some seconds, then pages may return.

        timeout: seconds. BudgetError: all that can leave has left, and it is not enough; TimeoutError: pages
        are still leaving."""
        free = ctypes.c_uint64()
        code = _lib.lib().bp_make_room(self.handle, parse_bytes(size), int(timeout * 1000), ctypes.byref(free))
        if code == _lib.PENDING:
            raise TimeoutError(_lib.lib().bp_last_error().decode(errors="replace"))
        _lib.check(code)
        return free.value

    def memory_summary(self) -> str:
        """memory_stats() and the node's other jobs as a table for people."""
        from . import memory

        return memory.summary(self)

    def prefetch(self, *things) -> None:
        """Asks for the pages of optimizers, arenas, weights or modules with quantized weights. Returns at once; pages
        come as far as the job's share has room."""
        for thing in things:
            for extent in _extents(thing):
                self._hint(_lib.lib().bp_prefetch, extent)

    def hint_phase(self, phase: str) -> None:
        """Says what the process does from now on: "idle", "forward", "backward" (optimizer states come back as far as
        there is room), "step", or "leave": forward, and states that are on the device leave it."""
        if phase not in _lib.PHASES:
            raise ValueError(f"phase must be one of {', '.join(_lib.PHASES)}; got {phase!r}")
        self._hint(_lib.lib().bp_phase_hint, _lib.PHASES[phase])

    def _hint(self, call, argument) -> None:
        """A hint may be lost: BP_FULL (too many open ones) is no error."""
        code = call(self.handle, argument)
        if code not in (_lib.OK, _lib.FULL, _lib.INTERRUPTED):
            _lib.check(code)

    @contextlib.contextmanager
    def phase(self, phase: str):
        """`with session.phase("forward"): ...` hints the phase, and idle when the block ends."""
        self.hint_phase(phase)
        try:
            yield self
        finally:
            if not self.closed:
                self.hint_phase("idle")

    def synchronize(self) -> None:
        """Waits until everything that was submitted on GPU streams is done, and raises what it found: NonFiniteError
        and every other error of a step that was submitted earlier, with its number. Waits for nothing on the CPU
        device, where every call does."""
        self.settle()
        self.raise_failures()

    def settle(self) -> None:
        """As synchronize(), and leaves what was found to the next call that raises it."""
        _lib.check_idempotent(_lib.lib().bp_session_synchronize, self.handle)

    def raise_failures(self) -> None:
        """Raises what requests on GPU streams found since the last look, without waiting for those under way. Every
        optimizer step does it first."""
        finished = self._finished
        while True:
            _lib.check_idempotent(_lib.lib().bp_poll_results, self.handle, self._finished_reference)
            if finished.code == _lib.OK:
                return
            self._raise_failure(finished)

    def _raise_failure(self, finished) -> None:
        arena = self._arenas.get(finished.extent)
        if finished.code == _lib.NON_FINITE and arena is not None and arena.on_nonfinite is not None:
            arena.on_nonfinite(finished)  # may only warn
            return
        name = _lib.lib().bp_code_name(finished.code).decode()
        what = f"step {finished.step}" if finished.step else "a request on a stream"
        owner = "" if arena is None else f" of optimizer {arena.name}"
        message = finished.message.decode(errors="replace") or name
        raise errors.from_code(finished.code, name, f"{what}{owner}, submitted earlier, failed: {message}")

    def last_step(self) -> dict:
        """What the newest finished request on a GPU stream did: {ticket (0: none), step, loaded_pages, stored_pages,
        total_ns, stall_ns, launch_ns}; launch_ns: from its turn, its inputs ready, until the GPU had its first kernel.
        Raises as raise_failures()."""
        self.raise_failures()
        keys = ("ticket", "step", "loaded_pages", "stored_pages", "total_ns", "stall_ns", "launch_ns")
        return {key: getattr(self._finished, key) for key in keys}

    def release_gradients(self) -> None:
        """Ends the daemon's mappings of GPU memory that only gradients used, or weights before they were quantized, so
        that torch.cuda.empty_cache() gives it back to the system. The next step maps again what it needs."""
        _lib.check(_lib.lib().bp_release_gradients(self.handle))

    def noop(self) -> None:
        """A request that does nothing; it passes ring, admission and dispatcher."""
        _lib.check_idempotent(_lib.lib().bp_noop, self.handle)


def _no_session():
    return None


def _extents(thing):
    """Handles of the extents behind an optimizer, arena, weight or module."""
    if isinstance(thing, int):
        return [thing]
    if hasattr(thing, "extents"):
        return list(thing.extents())
    if hasattr(thing, "modules"):
        return [extent for module in thing.modules() if hasattr(module, "extents") for extent in module.extents()]
    raise TypeError(f"{type(thing).__name__} has no pages to prefetch")


def connect(
    socket=None,
    job=None,
    rank=None,
    weight=0.0,
    device_quota=None,
    host_quota=None,
    linger=None,
    spawn=True,
    client=None,
    threads=0,
    default=True,
    device=None,
) -> Session:
    """Attaches to a bitpagerd and returns the Session.

    socket: path; None: BITPAGER_SOCKET's and no other; where that is not set the system's, the user's, and with spawn a
    private daemon started for this user, which ends with its last client. job: name (None: BITPAGER_JOB or
    "<program>-<pid>"); rank: of this process in the job (None: RANK, which torchrun and accelerate set, else 0).
    weight: the job's share against other jobs (0: the daemon's default). device_quota, host_quota: bytes or "8GiB"
    (None: the daemon's default). linger: seconds that pages outlive the job's last session (None: the daemon's default,
    0: none). client: a name shown to people. threads: for copies on this side (0: the processors this process may use).
    default: make this the session that optimizers and layers use when none is named, unless there is one already.
    device: which device the pages are for: "cuda:0", a torch.device, a UUID ("GPU-..."), "cpu"; None: the daemon's
    first. A private daemon serves one device.

    Raises UnreachableError, PermissionDeniedError, VersionError, AlreadyExistsError, ValueError.
    """
    options = _lib.sized(_lib.ConnectOptions)
    options.rank = _rank_of_environment() if rank is None else _non_negative("rank", rank)
    options.socket = _encode(socket)
    options.job = _encode(job)
    options.client = _encode(client)
    program = None if os.environ.get("BITPAGERD") else _lib.program_path("bitpagerd")
    options.daemon_path = _encode(program)
    options.weight = float(weight)
    options.device_quota_bytes = 0 if device_quota is None else parse_bytes(device_quota)
    options.host_quota_bytes = 0 if host_quota is None else parse_bytes(host_quota)
    options.linger_ms = -1 if linger is None else int(_non_negative("linger", linger) * 1000)
    options.spawn = 1 if spawn else 0
    options.threads = int(_non_negative("threads", threads))
    options.device = _encode(None if device is None else device_uuid(device))
    handle = ctypes.c_void_p()
    _lib.check_idempotent(_lib.lib().bp_connect, ctypes.byref(options), ctypes.byref(handle))
    session = Session(handle.value, os.getpid())
    if session.device_kind == "cuda" and session.synchronous:
        warnings.warn(
            f"streams of {session.device_uuid} cannot wait for the daemon here: step() waits on the processor",
            RuntimeWarning,
            stacklevel=2,
        )
    if not session.leases:
        _log.info(
            "the daemon's frames on %s are managed memory: weights are read by request, not by lease. Hint: "
            'memory.frames = "explicit" has leases, and is faster',
            session.device_uuid,
        )
    if session.device_kind == "cuda":
        guard_new_session(session)
    if default:
        _offer_default(session)
    return session


def _non_negative(name, value):
    if value < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return value


def _rank_of_environment() -> int:
    said = os.environ.get("RANK") or "0"
    if not said.isdecimal():
        raise ValueError(f"RANK is {said!r}, no rank. Hint: unset it, or pass connect(rank=...)")
    return int(said)


_CPU = "cpu-0"


def device_uuid(device) -> str:
    """The UUID of "cuda:0", "cuda" (the current one), a torch.device or "cpu"; any other text is taken for a UUID.

    UnsupportedError where there is no driver."""
    kind, _, index = str(device).partition(":")
    if kind == "cpu":
        return _CPU
    if kind != "cuda":
        return str(device)
    if not index:
        import torch

        index = torch.cuda.current_device()
    return _cuda_uuid(int(index))


def _cuda_uuid(index: int) -> str:
    text = ctypes.create_string_buffer(64)
    _lib.check(_lib.lib().bp_cuda_uuid(index, text, len(text)))
    return text.value.decode()


def cuda_index(uuid: str) -> int:
    """The index in this process of the GPU with this UUID; NotFoundError when it is not seen here."""
    import torch

    for index in range(torch.cuda.device_count()):
        if _cuda_uuid(index) == uuid:
            return index
    raise errors.NotFoundError(
        f"GPU {uuid} is not among those that this process sees. Hint: look at CUDA_VISIBLE_DEVICES.",
        _lib.NOT_FOUND,
        "NOT_FOUND",
    )


def _offer_default(session: Session) -> None:
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            _default = session
        elif session.device_uuid != _default.device_uuid:
            held = _by_device.get(session.device_uuid)
            if held is None or held.closed:
                _by_device[session.device_uuid] = session


def default_session() -> Session:
    """The session used when none is named; made at first use. In a forked child of the process that made it:
    ForkedChildError."""
    global _default
    with _default_lock:
        if _default is not None and _default._pid != os.getpid():
            _ = _default.handle  # raises ForkedChildError
        if _default is None or _default._handle is None:
            living = [session for session in _by_device.values() if not session.closed]
            _default = living[0] if living else connect(default=False)
        return _default


def open_default(uuid=None):
    """The default session of the device with this UUID (None: the one that default_session() would give), or None where
    there is none yet. Makes none."""
    with _default_lock:
        for held in (_default, *_by_device.values()):
            if held is not None and not held.closed and uuid in (None, held.device_uuid):
                return held
    return None


def session_for(device) -> Session:
    """The default session for tensors on a torch.device; made at first use. CPU tensors use default_session() unless
    that is for a GPU."""
    global _default
    if device.type == "cpu":
        if (_default is None or _default.closed) and not _by_device:
            default_session()
        uuid = _CPU
        if _default is not None and _default.device_kind != "cuda":
            return default_session()
    else:
        uuid = device_uuid(device)
    with _default_lock:
        for session in (_default, _by_device.get(uuid)):
            if session is None or session.device_uuid != uuid:
                continue
            if session._pid != os.getpid():
                _ = session.handle  # raises ForkedChildError
            if session._handle is not None:
                return session
        made = _by_device[uuid] = connect(default=False, device=uuid)
        if _default is None:
            _default = made
        return made


def disconnect() -> None:
    """Closes the default sessions. The next use makes new ones."""
    global _default
    with _default_lock:
        sessions = {id(session): session for session in (_default, *_by_device.values()) if session is not None}
        _default = None
        _by_device.clear()
    for session in sessions.values():
        session.close()


atexit.register(disconnect)
