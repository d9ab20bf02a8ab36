"""Byte sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[_letter] = _UNITS[_letter + "IB"] = 1024**_power
    _UNITS[_letter + "B"] = 1000**_power
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(size) -> int:
    """Bytes of 8589934592, "8GiB", "8G" (both 1024-based) or "8GB" (1000-based). ValueError on anything else."""
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise ValueError(f'a size is a number of bytes or text like "8GiB"; got {size!r}')
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size must not be negative; got {size}")
        return size
    match = _PATTERN.fullmatch(size)
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if unit is None:
        raise ValueError(f'{size!r} is not a size. Hint: write it as "8GiB", "512MiB" or a number of bytes.')
    return int(float(match.group(1)) * unit)


def print_bytes(count: int) -> str:
    """ "8.0 GiB" for 8589934592."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
