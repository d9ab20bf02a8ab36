"""A benchmark's rows: what was measured, beside a peer and the limit of the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. `ours`, `peer` and `limit` are in `unit`, where less is better; None: there is none."""

    work: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    limit: float | None = None

    def as_dict(self) -> dict:
        return {
            "work": self.work,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "limit": self.limit,
            "times_faster_than_peer": None if self.peer is None or self.ours <= 0 else self.peer / self.ours,
            "share_of_limit": None if self.limit is None or self.ours <= 0 else self.limit / self.ours,
        }


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def print_table(title: str, rows: list[Row]) -> None:
    head = ("work", "unit", "ours", "peer", "peer's name", "limit", "x peer", "of limit")
    lines = [head]
    for row in rows:
        d = row.as_dict()
        share = "-" if d["share_of_limit"] is None else f"{100 * d['share_of_limit']:.0f}%"
        cells = [_number(d[key]) for key in ("ours", "peer", "limit", "times_faster_than_peer")]
        lines.append((row.work, row.unit, cells[0], cells[1], row.peer_name or "-", cells[2], cells[3], share))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, 1, 4)
    print(f"\n{title}")
    for line in lines:
        print("  ".join(f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths))))


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
