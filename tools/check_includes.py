#!/usr/bin/env python3
"""Fails on an include that goes against the project's directions, and on a test that no CMakeLists.txt names.

usage: tools/check_includes.py [ROOT]

Prints one line for each offence (file:line: what, and which rule) and exits with 1 when there is any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Folder -> what its files may include beside themselves. The longest matching prefix of a file's path decides.
ALLOWED = {
    "client/wire": (),
    "quant": ("client/wire",),
    "optim8bit": ("client/wire", "quant"),
    "kernels": ("client/wire", "quant", "optim8bit"),
    "paging": ("client/wire",),
    "daemon": ("client/wire", "quant", "optim8bit", "kernels", "paging"),
    "client": ("client/wire", "quant", "kernels/local.h"),
    "client/torch": ("client", "client/wire"),
}
FREE = ("tests", "tools")  # may include anything of the project
CUDA_FOLDER = "kernels/cuda"
SOURCES = (".cc", ".h", ".cu", ".cuh", ".inc")
SKIPPED = ("build", "dist", ".venv", ".git", ".cache")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CUDA = re.compile(r"^(cuda|cublas|cub/|nvml|nvrtc|nccl|cooperative_groups|thrust/|driver_types|vector_types)")
TORCH = re.compile(r"^(torch|ATen|c10)/")
SPDLOG = re.compile(r"^(spdlog|fmt)/")


def sources(root: Path) -> list[Path]:
    """Every C++ source under root, relative to it, in order."""
    found = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if path.suffix in SOURCES and relative.parts[0] not in SKIPPED and path.is_file():
            found.append(relative)
    return sorted(found)


def includes_of(path: Path) -> list[tuple[int, str, str]]:
    """(line number, '<' or '"', name) of each include."""
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            out.append((number, match.group(1), match.group(2)))
    return out


def _folder_of(path: str) -> str | None:
    fits = [folder for folder in ALLOWED if path.startswith(folder + "/")]
    return max(fits, key=len) if fits else None


def _is_under(name: str, place: str) -> bool:
    return name == place or name.startswith(place + "/")


def _own(name: str, folder: str) -> bool:
    return _folder_of(name) == folder


def direction_offences(root: Path, files: list[Path]) -> list[str]:
    """Project includes against ALLOWED, and CUDA headers outside their folder."""
    offences = []
    for file in files:
        path = file.as_posix()
        for number, kind, name in includes_of(root / file):
            where = f"{path}:{number}"
            if CUDA.match(name) and not path.startswith(CUDA_FOLDER + "/"):
                offences.append(f"{where}: {name}: only {CUDA_FOLDER}/ may include CUDA headers")
            if kind == "<" or path.split("/")[0] in FREE:
                continue
            if not (root / name).is_file():
                offences.append(f"{where}: {name}: no such file; quoted includes are relative to the root")
                continue
            folder = _folder_of(path)
            if folder is None:
                offences.append(f"{where}: {path.split('/')[0]}/ is no folder of the layout")
            elif not _own(name, folder) and not any(_is_under(name, place) for place in ALLOWED[folder]):
                may = ", ".join(ALLOWED[folder]) or "nothing of the project but itself"
                offences.append(f"{where}: {name}: {folder}/ may include {may}")
    return offences


def _closure(root: Path, file: Path) -> set[str]:
    """Names of everything a file includes, through the project's own headers."""
    seen: set[str] = set()
    todo = [file]
    while todo:
        for _, _, name in includes_of(root / todo.pop()):
            if name not in seen:
                seen.add(name)
                if (root / name).is_file():
                    todo.append(Path(name))
    return seen


def mixed_offences(root: Path, files: list[Path]) -> list[str]:
    """Translation units with both torch and spdlog: libtorch ships an fmt of its own."""
    offences = []
    for file in files:
        if file.suffix in (".cc", ".cu"):
            names = _closure(root, file)
            if any(TORCH.match(n) for n in names) and any(SPDLOG.match(n) for n in names):
                offences.append(f"{file.as_posix()}: includes both torch and spdlog or fmt")
    return offences


def unnamed_tests(root: Path, files: list[Path]) -> list[str]:
    """*_test.cc that no CMakeLists.txt or *.cmake names: such a test never runs."""
    lists = [p for pattern in ("CMakeLists.txt", "*.cmake") for p in root.rglob(pattern)
             if p.relative_to(root).parts[0] not in SKIPPED]
    words = set(re.findall(r"[\w.-]+", "\n".join(p.read_text(encoding="utf-8") for p in lists)))
    return [f"{file.as_posix()}: named in no CMakeLists.txt, so it never runs"
            for file in files if file.name.endswith("_test.cc") and file.name not in words]


def main(arguments: list[str]) -> int:
    root = Path(arguments[0] if arguments else Path(__file__).resolve().parent.parent)
    files = sources(root)
    if not files:
        print(f"no C++ sources under {root}", file=sys.stderr)
        return 2
    offences = direction_offences(root, files) + mixed_offences(root, files) + unnamed_tests(root, files)
    for offence in offences:
        print(offence)
    print(f"{len(files)} files, {len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
