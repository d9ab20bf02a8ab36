"""A benchmark's rows: what was measured, beside a peer and the limit of the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. `ours`, `peer` and `limit` are in `unit`, where less is better; None: there is none. error: why
    there is no figure of ours."""

    work: str
    unit: str
    ours: float | None
    peer: float | None = None
    peer_name: str | None = None
    limit: float | None = None
    error: str | None = None

    def as_dict(self) -> dict:
        known = self.ours is not None and self.ours > 0
        row = {
            "work": self.work,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "limit": self.limit,
            "times_faster_than_peer": self.peer / self.ours if known and self.peer is not None else None,
            "share_of_limit": self.limit / self.ours if known and self.limit is not None else None,
        }
        return row if self.error is None else {**row, "error": self.error}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cells(row: Row) -> tuple[str, ...]:
    d = row.as_dict()
    share = "-" if d["share_of_limit"] is None else f"{100 * d['share_of_limit']:.0f}%"
    ours, peer, limit, times = (_number(d[key]) for key in ("ours", "peer", "limit", "times_faster_than_peer"))
    return row.work, row.unit, ours, peer, row.peer_name or "-", limit, times, share


def line_of(row: Row) -> str:
    """One row by itself, for those who wait."""
    if row.error is not None:
        return f"{row.work}: FAILED: {row.error}"
    work, unit, ours, peer, peer_name, limit, times, share = _cells(row)
    text = f"{work}: {ours} {unit}"
    if row.limit is not None:
        text += f", limit {limit} ({share})"
    if row.peer is not None:
        text += f", {peer_name} {peer} (x {times})"
    return text


def print_table(title: str, rows: list[Row]) -> None:
    head = ("work", "unit", "ours", "peer", "peer's name", "limit", "x peer", "of limit")
    lines = [head] + [_cells(row) for row in rows if row.error is None]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, 1, 4)
    print(f"\n{title}")
    for line in lines:
        print("  ".join(f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths))))
    for row in rows:
        if row.error is not None:
            print(line_of(row))


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
