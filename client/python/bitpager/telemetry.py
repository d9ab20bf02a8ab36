"""What the daemon knows of the whole node, and this job's memory in the logs of a training run.

    bitpager.telemetry.status()["jobs"]              # every job, device and session of the node
    log = bitpager.telemetry.log_memory(wandb.log)   # or a SummaryWriter, a Lightning logger, any function
    log(step)                                        # in the training loop

`bitpager.hf.MemoryCallback` does the same in transformers' Trainer, `lightning_callback()` in Lightning's. Reading
costs one message to the daemon, off the path of steps. Nothing is read between the calls.
"""

from __future__ import annotations

import json
import os
import stat
import time

from . import _zmtp, errors, memory, session

SCHEMA_VERSION = 1
_SYSTEM_SOCKET = "/run/bitpager/bitpager.sock"
_UNREACHABLE = 40
_PERMISSION_DENIED = 15
_PROTOCOL = 42

# What scalars() gives, without the prefix, and what each is.
SCALARS = {
    "resident_bytes": "bytes of the job's pages on the device",
    "resident_ratio": "that, as a share (0..1) of the bytes of all its pages; 1 when it has none",
    "host_bytes": "bytes of host memory committed to its pages",
    "leased_bytes": "bytes of quantized weights that its processes read in place",
    "share_bytes": "bytes of the device that are its fair share now",
    "to_device_bytes_per_s": "bytes a second copied to the device since the last call",
    "to_host_bytes_per_s": "bytes a second copied to the host since the last call",
    "stall_ratio": "time that its requests waited for pages, as a share of the time since the last call",
    "nonfinite_blocks": "blocks of states that were skipped for NaN or infinity, since the job came",
}


def status(socket=None, endpoint=None, timeout=3.0) -> dict:
    """The daemon's snapshot of the node: {"schema_version", "devices", "jobs", "sessions", "totals", "errors", ...}, as
    `bitpager status --json` prints it (docs/telemetry.md lists the keys). Bytes and counts are integers.

    socket: the daemon's path. None: that of the default session, BITPAGER_SOCKET, the system's, the user's; no daemon
    is started. endpoint: "ipc://PATH" where telemetry.status of the daemon is not beside its socket. timeout: seconds.
    UnreachableError, PermissionDeniedError."""
    if endpoint is not None:
        if not endpoint.startswith("ipc:///"):
            raise ValueError(f'endpoint must be "ipc:///path", as bitpagerd --status-endpoint; got {endpoint!r}')
        return _ask(endpoint[len("ipc://") :], timeout)
    paths = [socket] if socket is not None else _places()
    for path in paths[:-1]:
        try:
            return _ask(f"{path}.status", timeout)
        except errors.UnreachableError:
            continue
    return _ask(f"{paths[-1]}.status", timeout, looked=paths)


def _places() -> list:
    held = session.open_default()
    if held is not None:
        return [held.info()["socket"]]
    named = os.environ.get("BITPAGER_SOCKET")
    if named:
        return [named]
    own = _user_folder()
    return [_SYSTEM_SOCKET, *([f"{own}/bitpager.sock", f"{own}/private.sock"] if own else [])]


def _is_own(folder: str) -> bool:
    """True when nobody else can pose as a daemon in `folder`."""
    try:
        entry = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(entry.st_mode) and entry.st_uid == os.geteuid() and not entry.st_mode & 0o077


def _user_folder():
    """Where client/wire/user_folder.h says that sockets of this user's daemons are, or None."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = f"{runtime}/bitpager" if runtime.startswith("/") and _is_own(runtime) else f"/tmp/bitpager-{os.geteuid()}"
    return folder if _is_own(folder) else None


def _ask(path: str, timeout: float, looked=()) -> dict:
    try:
        reply = json.loads(_zmtp.ask(path, b'{"query":"status"}', timeout))
    except PermissionError as error:
        raise errors.PermissionDeniedError(
            f"{path} may not be opened ({error.strerror}). Hint: socket.group of the daemon names who may.",
            _PERMISSION_DENIED,
            "PERMISSION_DENIED",
        ) from error
    except (OSError, ValueError) as error:
        places = f" (looked at {', '.join(looked)})" if len(looked) > 1 else ""
        raise errors.UnreachableError(
            f"no bitpagerd tells its status at {path}{places}: {error}. Hint: start it, name its socket, or give the "
            "endpoint when telemetry.status is set.",
            _UNREACHABLE,
            "UNREACHABLE",
        ) from error
    if not isinstance(reply, dict) or "error" in reply or reply.get("schema_version") != SCHEMA_VERSION:
        said = reply.get("error") if isinstance(reply, dict) else reply
        raise errors.Error(f"bitpagerd's status at {path} cannot be read: {said!r}", _PROTOCOL, "PROTOCOL")
    return reply


class Scalars:
    """Figures of one job for a log: current ones, and rates since the call before. One for each place that logs."""

    def __init__(self, device=None, prefix="bitpager/"):
        """device: as in `bitpager.memory_stats`. prefix: of every name."""
        self._device = device
        self._prefix = prefix
        self._before = None  # (seconds, stats)

    def __call__(self) -> dict:
        """{prefix + name: number} for the names of SCALARS. Rates are left out of the first call and of one that finds
        another session than the call before."""
        stats = memory.memory_stats(self._device)
        now = time.monotonic()
        pages = stats["state_bytes"] + stats["weight_bytes"]
        found = {key: stats[key] for key in ("resident_bytes", "host_bytes", "leased_bytes", "share_bytes")}
        found["resident_ratio"] = stats["resident_bytes"] / pages if pages else 1.0
        found["nonfinite_blocks"] = stats["nonfinite_blocks"]
        if self._before is not None:
            found.update(_rates(now - self._before[0], self._before[1], stats))
        self._before = (now, stats)
        return {self._prefix + name: found[name] for name in SCALARS if name in found}


def _rates(seconds: float, before: dict, now: dict) -> dict:
    keys = ("loaded_bytes", "stored_bytes", "stall_ns")
    moved = {key: now[key] - before[key] for key in keys}
    if seconds <= 0 or min(moved.values()) < 0:
        return {}
    return {
        "to_device_bytes_per_s": moved["loaded_bytes"] / seconds,
        "to_host_bytes_per_s": moved["stored_bytes"] / seconds,
        "stall_ratio": moved["stall_ns"] / 1e9 / seconds,
    }


def log_memory(to, device=None, every=1, prefix="bitpager/"):
    """A function log(step) that writes this job's scalars (SCALARS) to a logger, at every `every`th step it is called
    with.

    to: an object with add_scalar(name, value, step) (torch.utils.tensorboard.SummaryWriter) or that method itself: one
    call a figure; an object with log_metrics (Lightning's loggers), or any function that takes ({name: value},
    step=step), such as wandb.log, run.log, mlflow.log_metrics, Fabric.log_dict: one call for all. device, prefix: as
    Scalars. TypeError for anything else."""
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}")
    write = _writer(to)
    scalars = Scalars(device, prefix)

    def log(step: int) -> None:
        """Reads and writes the figures of step `step`, unless it is not a multiple of `every`."""
        if step % every == 0:
            write(scalars(), step)

    return log


def _writer(to):
    """write({name: value}, step) in the manner of `to`."""
    each = getattr(to, "add_scalar", None) or (to if getattr(to, "__name__", "") == "add_scalar" else None)
    if each is not None:

        def write(figures, step):
            for name, value in figures.items():
                each(name, value, step)

        return write
    together = getattr(to, "log_metrics", None) or to
    if not callable(together):
        raise TypeError(
            f"{type(to).__name__} is no logger: it has neither add_scalar nor log_metrics and cannot be called. Hint: "
            "give wandb.log, a SummaryWriter, or a function of ({name: value}, step=step)."
        )
    return lambda figures, step: together(figures, step=step)


def lightning_callback(device=None, every=50, prefix="bitpager/"):
    """A Callback for Lightning's Trainer that gives the job's scalars to all of the trainer's loggers at every
    `every`th optimizer step, from the process of global rank zero. ImportError without lightning."""
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class MemoryCallback(Callback):
        """Made by bitpager.telemetry.lightning_callback."""

        def __init__(self):
            self._scalars = Scalars(device, prefix)
            self._last = -1

        def on_train_batch_end(self, trainer, *_, **__):
            """Once for each step that is due, however many batches it has."""
            step = trainer.global_step
            if not trainer.is_global_zero or step == self._last or step % every:
                return
            self._last = step
            figures = self._scalars()
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)

    return MemoryCallback()
