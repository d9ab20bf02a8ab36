#!/usr/bin/env python3
"""Adds up a check's results: gtest cases, other ctest entries, pytest cases and the static checks.

usage: tools/check_report.py RESULTS

RESULTS holds static.txt (lines "NAME passed|failed|skipped"), pytest*.xml, and a folder for each build with the
gtest XML of each binary (*.xml) and ctest's own reports (*.junit). Prints each failure with what it said, then as
the last line "N passed, N failed, N skipped"; exits with 1 when anything failed or nothing passed.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


class Tally:
    """Counts of outcomes, and the names of what failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, name: str, outcome: str, why: str = "") -> None:
        self.counts[outcome] += 1
        if outcome == "failed":
            self.failures.append(name + "".join(f"\n    {line}" for line in why.splitlines()))

    def line(self) -> str:
        return ", ".join(f"{self.counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))


def _outcome(case: ElementTree.Element) -> str:
    """Of a testcase element of gtest, ctest or pytest."""
    if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
        return "failed"
    if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        return "skipped"
    return "passed"


def _why(case: ElementTree.Element, most_lines: int = 12) -> str:
    """What a failed case said, its first lines."""
    said = [entry.get("message") or entry.text or "" for entry in (*case.findall("failure"), *case.findall("error"))]
    return "\n".join("\n".join(said).strip().splitlines()[:most_lines])


def _cases(path: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(path).getroot().iter("testcase"))


def _add_gtest(path: Path, label: str, tally: Tally) -> bool:
    """Adds a binary's cases. False when there are none or one of them failed."""
    outcomes = []
    for case in _cases(path):
        outcomes.append(_outcome(case))
        tally.add(f"{label}: {case.get('classname')}.{case.get('name')}", outcomes[-1], _why(case))
    return bool(outcomes) and "failed" not in outcomes


def add_build(folder: Path, tally: Tally) -> None:
    """A build's tests. An entry without gtest XML counts once, and so does one that failed outside its cases
    (it crashed, or ran out of time)."""
    for report in sorted(folder.glob("*.junit")):
        for entry in _cases(report):
            name, outcome = entry.get("name", "?"), _outcome(entry)
            xml = folder / f"{name}.xml"
            label = f"{folder.name}/{name}"
            try:
                good = _add_gtest(xml, label, tally)
            except (OSError, ElementTree.ParseError):
                tally.add(label, outcome)
                continue
            if outcome == "failed" and good:
                tally.add(f"{label} (the process itself: crash, leak, time limit)", "failed")


def tally_of(results: Path) -> Tally:
    tally = Tally()
    static = results / "static.txt"
    if static.is_file():
        for line in static.read_text(encoding="utf-8").split("\n"):
            if line:
                name, outcome = line.rsplit(" ", 1)
                tally.add(name, outcome)
    for folder in sorted(p for p in results.iterdir() if p.is_dir()):
        add_build(folder, tally)
    for report in sorted(results.glob("pytest*.xml")):
        for case in _cases(report):
            tally.add(f"pytest: {case.get('classname')}.{case.get('name')}", _outcome(case), _why(case))
    return tally


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    tally = tally_of(Path(arguments[0]))
    for name in tally.failures:
        print(f"FAILED {name}")
    print(tally.line())
    return 1 if tally.failures or not tally.counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
