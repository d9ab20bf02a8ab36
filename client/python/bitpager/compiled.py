"""Parts of this package that are C++ and compiled on this machine, once for each version of PyTorch: with g++ against
PyTorch's own headers and without CUDA's, into the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
from typing import NamedTuple

COMPILE_LIMIT_S = 120


class Unavailable(Exception):
    """Why a compiled part cannot be had here."""


class Source(NamedTuple):
    """What is compiled. purpose: the part's name in messages, as "its callback"; libraries: of PyTorch's that it is
    linked with, as "c10"."""

    path: pathlib.Path
    abi_version: int
    purpose: str
    libraries: tuple = ()


def is_switched_off(switch: str) -> bool:
    """Whether the environment's variable of this name says so; it does not when it is not there."""
    return os.environ.get(switch, "1").strip().lower() in ("0", "no", "off", "false")


def cxx11(torch) -> bool:
    """Whether PyTorch was built with the newer ABI of std::string."""
    return bool(getattr(torch._C, "_GLIBCXX_USE_CXX11_ABI", True))


def open_library(name: str, kind=ctypes.CDLL):
    """The loaded library; Unavailable when it does not load. kind: ctypes.PyDLL keeps the GIL during calls."""
    try:
        return kind(name)
    except OSError as error:
        raise Unavailable(f"{name} does not load ({error})") from error


def build(source: Source, torch_folder: pathlib.Path, version: str, cxx11: bool, folder=None) -> pathlib.Path:
    """Path of the library for this PyTorch, in `folder` (None: the user's cache); compiled when it is not there.

    Unavailable: no compiler, no headers, a folder that others can write."""
    include = torch_folder / "include"
    if not (include / "c10").is_dir():
        raise Unavailable(f"PyTorch's headers are not installed ({include / 'c10'})")
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-D_GLIBCXX_USE_CXX11_ABI={int(cxx11)}"]
    linked = [f"-L{torch_folder / 'lib'}", *(f"-l{name}" for name in source.libraries)] if source.libraries else []
    parts = [source.path.read_text(), version, str(include), *flags, *linked]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = cache_folder() if folder is None else pathlib.Path(folder)
    plain_version = re.sub(r"[^0-9A-Za-z.+-]", "_", version)
    target = folder / f"{source.path.stem}-{source.abi_version}-torch{plain_version}-{key[:12]}.so"
    if not target.exists():
        _compile(compiler(source.purpose), [*flags, f"-I{include}", str(source.path), *linked], target, source.purpose)
    return target


def cache_folder() -> pathlib.Path:
    """Code is loaded from here: it must be this user's alone."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = pathlib.Path(base) / "bitpager"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(
            f"there is no folder to compile into ({folder}: {error.strerror}); XDG_CACHE_HOME names one"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unavailable(f"{folder} belongs to another user, or others may write to it; chmod go-w {folder}")
    return folder


def compiler(purpose: str) -> list:
    """The command of the compiler that is there: CXX's, g++, c++ or clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in ([named] if named else []) + [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise Unavailable(f"there is no C++ compiler (g++ or CXX) to build {purpose} with")


def _compile(compiler, arguments, target, purpose) -> None:
    """Writes `target` whole or not at all, whoever else does the same."""
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
            made = os.path.join(folder, "made.so")
            said = ""
            for standard in ("c++17", "c++20"):  # the first that these headers compile with
                command = [*compiler, f"-std={standard}", *arguments, "-o", made]
                done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
                if done.returncode == 0:
                    os.replace(made, target)
                    return
                said = said or done.stderr
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{compiler[0]} did not end within {COMPILE_LIMIT_S} s") from error
    except OSError as error:
        raise Unavailable(f"{purpose} cannot be compiled into {target.parent} ({error.strerror})") from error
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["no message"]
    raise Unavailable(f"{compiler[0]} cannot compile {purpose} for torch: {lines[0][:300]}")
