"""bitpager.memory_stats, memory_summary and reset_peak_memory_stats: what a job's pages take, in the manner of
torch.cuda's functions of these names.

Bytes count whole pages, as the daemon does. "Allocated" on the device means resident: a page that is not is in host
memory, where every page has its place from the moment its optimizer or weight was made.
"""

from __future__ import annotations

from . import _lib, errors, session
from .sizes import print_bytes

EVERY_JOB = "*"  # no job may have this name
_KINDS = ("optimizer_state", "quantized_weight")
# Keys of Session.memory_stats that a job of the daemon's snapshot has under the same name.
_SAME = tuple(
    key
    for key in _lib.USAGE_FIELDS
    if key not in ("state_bytes", "weight_bytes", "resident_state_bytes", "resident_weight_bytes")
    and key not in ("device_budget_bytes", "disk_budget_bytes")
    and "peak" not in key
)


def memory_stats(device=None, job=None) -> dict:
    """Usage of a job on a device as {key: integer}. Keys say their units: _bytes, _ns, else counts.

    device: "cuda:0", a torch.device, a UUID ("GPU-..."), "cpu"; None: the default session's. job: None for this
    process's own; a name for another one's; "*" for the sum of all jobs there (those two ask the daemon's telemetry,
    and raise as telemetry.status). docs/telemetry.md lists the keys; in short:

    resident_bytes               on the device
    host_bytes, disk_bytes       committed to the job's pages in host memory, and on disk
    state_bytes, weight_bytes    all pages of optimizer states, of quantized weights; resident_* of them on the device
    leased_bytes                 read in place by the job's processes
    loaded_, stored_, dropped_bytes  copied to the device, to the host, left the device without a copy, so far
    share_bytes, device_budget_bytes fair share of the job now; budget of the device; disk_budget_bytes, the daemon's
    shared_bytes                 weights that other jobs use too, in full; the job's part of them is in the rest
    peak_resident_bytes, peak_host_bytes  the most at any moment since this session came, or reset_peak_memory_stats()
    job_peak_resident_bytes, job_peak_host_bytes  likewise, since the job came
    steps, stall_ns, nonfinite_blocks, pages, buffer_bytes

    and, under torch.cuda's kind of name, "resident_bytes.POOL.current" for POOL in all, optimizer_state,
    quantized_weight, and "resident_bytes.all.peak". Of another job all peaks are since it came; of "*" they are the
    sums of the jobs' own, which need not have been at one moment.

    NotFoundError: no job of that name is on the device."""
    if job is None:
        return _with_pools(_session_on(device).memory_stats())
    from . import telemetry

    told = telemetry.status()
    uuid = session.default_session().device_uuid if device is None else session.device_uuid(device)
    return _with_pools(_of_snapshot(told, uuid, job))


def reset_peak_memory_stats(device=None) -> None:
    """From now on memory_stats()["peak_resident_bytes"] and ["peak_host_bytes"] are counted anew, beginning at what the
    job has. For this process alone; job_peak_* go on. device: as in memory_stats."""
    _session_on(device).reset_peak_memory_stats()


def memory_summary(device=None) -> str:
    """A table for people: what this process's job has on the device and in host memory, by kind, what moved, and every
    job of the node beside it. device: as in memory_stats."""
    return summary(_session_on(device))


def summary(held) -> str:
    """memory_summary of the job of a session."""
    from . import telemetry

    own = _own_table(held)
    try:
        told = telemetry.status(socket=held.info()["socket"])
    except (errors.UnreachableError, errors.PermissionDeniedError) as error:
        return "\n".join([*own, "", f"the node's other jobs are not told: {error}"])
    return "\n".join([*own, "", *_node_table(told)])


def _session_on(device):
    """The session whose job a question about `device` is of."""
    if device is None:
        return session.default_session()
    uuid = session.device_uuid(device)
    found = session.open_default(uuid)
    if found is None:
        raise errors.NotFoundError(
            f"this process has no default session on {uuid}. Hint: its first optimizer or quantized layer there makes "
            'one, or bitpager.connect(device=...); memory_stats(device, job="*") speaks of all jobs.',
            _lib.NOT_FOUND,
            "NOT_FOUND",
        )
    return found


def _of_snapshot(told: dict, uuid: str, job: str) -> dict:
    """Keys of Session.memory_stats for the jobs of a snapshot that `job` names, summed."""
    devices = [one for one in told["devices"] if one["uuid"] == uuid]
    named = [one for one in told["jobs"] if one["device"] == uuid and job in (EVERY_JOB, one["name"])]
    if not devices or (not named and job != EVERY_JOB):
        there = ", ".join(sorted({one["name"] for one in told["jobs"] if one["device"] == uuid})) or "none"
        raise errors.NotFoundError(
            f"the daemon has no job {job!r} on {uuid}; jobs there: {there}.", _lib.NOT_FOUND, "NOT_FOUND"
        )
    sums = {key: sum(one[key] for one in named) for key in _SAME}
    by_kind = {
        which: {kind: sum(one[which][kind] for one in named) for kind in _KINDS}
        for which in ("bytes_by_kind", "resident_bytes_by_kind")
    }
    peaks = {key: sum(one.get(key, 0) for one in named) for key in ("peak_resident_bytes", "peak_host_bytes")}
    return {
        **sums,
        **peaks,
        **{f"job_{key}": value for key, value in peaks.items()},
        "state_bytes": by_kind["bytes_by_kind"]["optimizer_state"],
        "weight_bytes": by_kind["bytes_by_kind"]["quantized_weight"],
        "resident_state_bytes": by_kind["resident_bytes_by_kind"]["optimizer_state"],
        "resident_weight_bytes": by_kind["resident_bytes_by_kind"]["quantized_weight"],
        "device_budget_bytes": devices[0]["budget_bytes"],
        "disk_budget_bytes": devices[0]["disk_budget_bytes"],
    }


def _with_pools(stats: dict) -> dict:
    """`stats` and its figures under torch.cuda's kind of names."""
    resident = (stats["resident_bytes"], stats["resident_state_bytes"], stats["resident_weight_bytes"])
    pools = zip(("all", *_KINDS), resident)
    current = {f"resident_bytes.{pool}.current": value for pool, value in pools}
    return {**stats, **current, "resident_bytes.all.peak": stats["peak_resident_bytes"]}


def _own_table(held) -> list:
    """Lines about the job of a session."""
    info, stats = held.info(), held.memory_stats()
    title = f"job {info['job_name']} on {info['device_uuid']}, pages of {print_bytes(info['page_bytes'])}"
    rows = [("", "RESIDENT", "ALL PAGES")]
    for name, key in (("optimizer states", "state_bytes"), ("quantized weights", "weight_bytes")):
        rows.append((name, print_bytes(stats[f"resident_{key}"]), print_bytes(stats[key])))
    pages = stats["state_bytes"] + stats["weight_bytes"]
    rows.append(("both", print_bytes(stats["resident_bytes"]), print_bytes(pages)))
    lines = [f"{title}, at {info['socket']}", *(f"  {name:<18}{one:>12}{two:>12}" for name, one, two in rows)]
    for name, text in (
        ("on host, on disk", (print_bytes(stats["host_bytes"]), print_bytes(stats["disk_bytes"]))),
        ("peak, host peak", (print_bytes(stats["peak_resident_bytes"]), print_bytes(stats["peak_host_bytes"]))),
        ("share, budget", (print_bytes(stats["share_bytes"]), print_bytes(stats["device_budget_bytes"]))),
        ("leased, buffers", (print_bytes(stats["leased_bytes"]), print_bytes(stats["buffer_bytes"]))),
        ("came in, went out", (print_bytes(stats["loaded_bytes"]), print_bytes(stats["stored_bytes"]))),
        ("steps, stalled", (str(stats["steps"]), f"{stats['stall_ns'] / 1e6:.1f} ms")),
        ("dropped, skipped", (print_bytes(stats["dropped_bytes"]), f"{stats['nonfinite_blocks']} blocks")),
    ):
        lines.append(f"  {name:<18}{text[0]:>12}{text[1]:>12}")
    return lines


def _node_table(told: dict) -> list:
    """Lines about every device and job of a snapshot."""
    widths = max([len(one["name"]) for one in told["jobs"]] + [16])
    lines = []
    for device in told["devices"]:
        used, budget = print_bytes(device["used_bytes"]), print_bytes(device["budget_bytes"])
        lines.append(f"{device['uuid']}: {used} of {budget} used")
        jobs = [one for one in told["jobs"] if one["device"] == device["uuid"]]
        if jobs:
            heads = ("RESIDENT", "HOST", "SHARE", "CAME IN", "WENT OUT", "SAVED")
            lines.append("  " + "job".ljust(widths) + "".join(f"{head:>12}" for head in heads))
        for job in sorted(jobs, key=lambda one: -one["resident_bytes"]):
            keys = ("resident_bytes", "host_bytes", "share_bytes", "loaded_bytes", "stored_bytes")
            figures = [*(job[key] for key in keys), sum(job.get("saved_bytes", {}).values())]
            lines.append("  " + job["name"].ljust(widths) + "".join(f"{print_bytes(one):>12}" for one in figures))
    committed, budget = print_bytes(told["host_committed_bytes"]), print_bytes(told["host_budget_bytes"])
    return [*lines, f"host: {committed} of {budget} committed"]
