"""Runs a GPU group's sections, each in a process of its own and within a time limit.

A fault of the device, a crash or a wait that never ends costs the section it happened in; the others go on. A section
is a function (Bench, Report) -> None; it reports each row as soon as it has it. This process makes no CUDA call: the
sections are forked from it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from gpu_machine import Bench
from rows import Row, line_of

GRACE_S = 3
TRACE_CHARS = 3000


@dataclass(frozen=True)
class Section:
    """`name` is shown when it fails as a whole."""

    name: str
    run: Callable
    limit_s: float


class Report:
    """A section's way to say what it found."""

    def __init__(self, connection):
        self._connection = connection

    def add(self, row: Row) -> None:
        self._connection.send(("row", row))

    def tell(self, name: str, value: float) -> None:
        """A ceiling, for later sections: in their bench.known."""
        self._connection.send(("known", (name, value)))

    @contextmanager
    def guard(self, work: str, unit: str = "-"):
        """What fails inside becomes a row of `work` that says why; the section goes on."""
        try:
            yield
        except Exception as error:
            self.add(Row(work, unit, None, error=_said(error)))
            text = "".join(traceback.format_exception(error))
            print(text if len(text) < TRACE_CHARS else text[:TRACE_CHARS] + " ...", file=sys.stderr, flush=True)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def run_sections(bench: Bench, sections: list[Section], limit_s: float, keep: Callable) -> list[Row]:
    """The rows of all sections. keep(rows) is called after every row, so that nothing is lost."""
    until = time.monotonic() + limit_s
    rows = []

    def take(row: Row) -> None:
        rows.append(row)
        print(line_of(row), flush=True)
        keep(rows)

    for section in sections:
        left_s = until - time.monotonic()
        if left_s < GRACE_S:
            take(Row(section.name, "-", None, error=f"not run: the group's {limit_s:.0f} s are over"))
            continue
        begun = time.monotonic()
        _run_section(bench, section, min(section.limit_s, left_s), take)
        print(f"  ({section.name}: {time.monotonic() - begun:.1f} s)", flush=True)
    return rows


def _run_section(bench: Bench, section: Section, limit_s: float, take: Callable) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(bench, section, limit_s, sender), name=section.name)
    process.start()
    sender.close()
    until = time.monotonic() + limit_s
    failure = _receive(bench, receiver, until, take)
    if failure is None:
        process.join(max(GRACE_S, until - time.monotonic()))
        if process.is_alive():
            failure = "its process did not end"
        elif process.exitcode != 0:
            failure = f"its process ended with code {process.exitcode}"
    if failure is not None:
        _end(process)
        take(Row(section.name, "-", None, error=failure))


def _receive(bench: Bench, receiver, until: float, take: Callable) -> str | None:
    """Takes what the section sends, until it has ended; why it is to be stopped, otherwise."""
    while True:
        if not receiver.poll(max(0.0, until - time.monotonic())):
            return "stopped: its time is over (the stack is on stderr)"
        try:
            kind, value = receiver.recv()
        except EOFError:
            return None
        if kind == "row":
            take(value)
        else:
            bench.known[value[0]] = value[1]


def _end(process) -> None:
    """Ends the section's process group, its daemons with it. It leads a session of its own since it began."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        until = time.monotonic() + GRACE_S
        while number == signal.SIGTERM and time.monotonic() < until and process.is_alive():
            time.sleep(0.05)
    process.kill()
    process.join(GRACE_S)


def _child(bench: Bench, section: Section, limit_s: float, sender) -> None:
    os.setsid()
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, limit_s - 1.0))
    report = Report(sender)
    with report.guard(section.name):
        section.run(bench, report)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
