"""The text that every machine with Python has, as bytes: two texts that share nothing.

`code`: the sources of the running interpreter's standard library. `names`: the Unicode character table of the
same interpreter, a line for each character. Each is cut into training and held-out parts; no held-out file or
line is ever trained on.
"""

from __future__ import annotations

import math
import sys
import sysconfig
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch

CODE_BYTES = 6 << 20  # enough for the job, and quick to read
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings"}


@dataclass(frozen=True)
class Text:
    """uint8 tensors [n]."""

    train: torch.Tensor
    heldout: torch.Tensor


def _tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def code() -> Text:
    """Python modules in name order; every tenth file is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    train, heldout, total = [], [], 0
    files = sorted(p for p in root.rglob("*.py") if not SKIPPED & set(p.relative_to(root).parts))
    for index, path in enumerate(files):
        raw = path.read_bytes()
        (heldout if index % 10 == 0 else train).append(raw)
        total += len(raw)
        if total >= CODE_BYTES:
            break
    if total < 1 << 20:
        raise RuntimeError(f"only {total} bytes of Python sources under {root}: the quickstart needs 1 MiB of text."
                           " Hint: install the full standard library (Debian: libpython3-stdlib)")
    return Text(_tensor(b"".join(train)), _tensor(b"".join(heldout)))


def names() -> Text:
    """Lines like "00E9 LATIN SMALL LETTER E WITH ACUTE", all different; every tenth is held out.

    Names that only count (the CJK ideographs, Hangul syllables and their like) are left out.
    """
    counted = ("CJK ", "HANGUL ", "TANGUT ", "NUSHU ", "KHITAN ", "VARIATION ", "SIGNWRITING ", "ANATOLIAN ")
    train, heldout = [], []
    for code_point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code_point), "")
        if name and not name.startswith(counted):
            line = f"{code_point:04X} {name}\n".encode()
            (heldout if (len(train) + len(heldout)) % 10 == 0 else train).append(line)
    return Text(_tensor(b"".join(train)), _tensor(b"".join(heldout)))


def windows(data: torch.Tensor, count: int, context: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random windows [count, context + 1] (int64)."""
    starts = torch.randint(len(data) - context - 1, (count,), generator=generator)
    return torch.stack([data[s : s + context + 1] for s in starts.tolist()]).long()


def unigram_entropy(data: torch.Tensor) -> float:
    """Entropy (nats per byte) of the bytes' own frequencies: what a model without context can reach at best."""
    p = torch.bincount(data.long(), minlength=256).double() / len(data)
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)
