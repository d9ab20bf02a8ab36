"""The quickstart's table and its verdict, from the results of the three runs."""

from __future__ import annotations

import settings

MIB = 1 << 20


def _mib(count: float) -> str:
    return f"{count / MIB:.2f} MiB"


def table(full: dict, qlora: dict) -> list[str]:
    """Lines: a row for each figure, a column for each paged job."""
    rows = [
        ("parameters trained", f"{full['parameters']:,}", f"{qlora['parameters']:,}"),
        ("Adam states, 32-bit (would be)", _mib(8 * full["parameters"]), _mib(8 * qlora["parameters"])),
        ("Adam states, 8-bit (ours)", _mib(full["code_bytes"]), _mib(qlora["code_bytes"])),
        ("  in whole pages", _mib(full["state_bytes"]), _mib(qlora["state_bytes"])),
        ("frozen weights, 16-bit (would be)", "-", _mib(2 * qlora["frozen"])),
        ("frozen weights, NF4 (ours), in whole pages", "-", _mib(qlora["weight_bytes"])),
        ("pages", f"{full['pages']:,}", f"{qlora['pages']:,}"),
        ("resident (mean)", _mib(full["resident_bytes"]), _mib(qlora["resident_bytes"])),
        ("on the host (committed)", _mib(full["host_bytes"]), _mib(qlora["host_bytes"])),
        ("pages in / out", *(f"{job['pages_in']:,.0f} / {job['pages_out']:,.0f}" for job in (full, qlora))),
        ("least pages in (optimum)", *(f"{job['optimum_pages']:,.0f}" for job in (full, qlora))),
        ("pages in, a step", *(f"{job['pages_in'] / len(job['losses']):,.1f}" for job in (full, qlora))),
        ("optimum, a step", *(f"{job['optimum_pages'] / len(job['losses']):,.1f}" for job in (full, qlora))),
        ("time stalled on pages", *(f"{job['stall_s']:.2f} s of {job['seconds']:.1f} s" for job in (full, qlora))),
        ("held-out loss, first -> last", *(_fall(job) for job in (full, qlora))),
    ]
    head = ("", "(a) all parameters", "(b) QLoRA")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
    return [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in [head, *rows]]


def _fall(job: dict) -> str:
    first, last = job["heldout"][0][1], job["heldout"][-1][1]
    return f"{first:.3f} -> {last:.3f} ({100 * (last / first - 1):+.0f}%)"


def verdict(full: dict, qlora: dict, again: dict, budget_bytes: int) -> list[tuple[bool, str]]:
    """(holds, sentence) of everything that must hold."""
    pages = full["pages"] + qlora["pages"]
    share = budget_bytes / settings.PAGE_BYTES / pages
    checks = [
        (share <= settings.MOST_RESIDENT, f"the device budget holds {100 * share:.0f}% of both jobs' {pages:,} pages"),
        (full["parameters"] >= 10_000_000, f"(a) trains {full['parameters'] / 1e6:.1f} million parameters"),
    ]
    for name, job in (("(a)", full), ("(b)", qlora)):
        checks.append((job["pages"] >= settings.LEAST_PAGES, f"{name} has {job['pages']} pages"))
        checks.append((job["pages_in"] > 0 and job["pages_out"] > 0, f"{name} had pages moved both ways"))
        least = (1 - settings.LEAST_FALL) * job["heldout"][0][1]
        checks.append((job["heldout"][-1][1] <= least, f"{name} held-out loss {_fall(job)}, wanted: {least:.3f}"))
    checks += [
        (
            full["heldout"][-1][1] < full["unigram"],
            f"(a) {full['heldout'][-1][1]:.3f} is below the text's unigram entropy, {full['unigram']:.3f} nats a byte",
        ),
        (again["pages_in"] == 0, f"(a) again, everything resident: {again['pages_in']:.0f} pages loaded"),
        (
            again["losses"] == full["losses"] and again["heldout"] == full["heldout"],
            "(a) paged and resident: the same losses, bit for bit",
        ),
        (
            again["sha256"] == full["sha256"],
            f"(a) paged and resident: the same parameters, sha256 {full['sha256'][:16]}...",
        ),
    ]
    sixteen, four = again["perplexity"]["bf16"], again["perplexity"]["nf4"]
    checks.append(
        (
            four <= settings.MOST_PERPLEXITY * sixteen,
            f"(a) held-out perplexity: {sixteen:.3f} in bfloat16, {four:.3f} in NF4 with double quantization "
            f"({100 * (four / sixteen - 1):+.2f}%)",
        )
    )
    return checks
