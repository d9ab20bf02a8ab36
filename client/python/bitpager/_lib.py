"""Finds and loads libbitpager.so, and declares the C ABI of client/bitpager.h (_abi.py) to it.

The library is loaded at first use, so that importing the package needs nothing. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading
from ctypes import byref, c_uint32, sizeof

from . import errors
from ._abi import *  # noqa: F403  (under _lib.NAME there is all of it)
from ._abi import ABI_VERSION, INTERRUPTED, OK, SIGNATURES

_lock = threading.Lock()
_library = None


def build_folders():
    """Build folders to look into when the package runs from its source tree: BITPAGER_BUILD_DIR, then build/release."""
    named = os.environ.get("BITPAGER_BUILD_DIR")
    if named:
        yield pathlib.Path(named)
    root = pathlib.Path(__file__).resolve().parents[3]
    if (root / "client" / "bitpager.h").is_file():
        yield root / "build" / "release"
        yield root / "build" / "dev"


def native_folder() -> pathlib.Path:
    """Where a wheel keeps the daemon, the command and the libraries."""
    return pathlib.Path(__file__).resolve().parent / "_native"


def library_path() -> pathlib.Path:
    """The library to load: BITPAGER_LIBRARY, the wheel's, a build folder's.

    Raises LibraryError, naming the places looked at."""
    named = os.environ.get("BITPAGER_LIBRARY")
    if named:
        return pathlib.Path(named)
    places = [native_folder() / "libbitpager.so"]
    places += [folder / "lib" / "libbitpager.so" for folder in build_folders()]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise errors.LibraryError(
        f"cannot find libbitpager.so (looked at {looked}). Hint: install the wheel, build the project with "
        "./tools/quickstart, or set BITPAGER_LIBRARY."
    )


def program_path(name: str):
    """The program `bitpagerd` or `bitpager` that belongs to the loaded library, or None."""
    places = [native_folder() / name] + [folder / "bin" / name for folder in build_folders()]
    beside = library_path().resolve().parent
    places = [beside / name, beside.parent / "bin" / name] + places
    return next((place for place in places if os.access(place, os.X_OK) and place.is_file()), None)


def load(path, version_function: str, version: int, signatures) -> ctypes.CDLL:
    """The library at `path` with `signatures`, {name: (result, arguments)}, declared. LibraryError when it cannot be
    loaded, lacks one of them, or its `version_function` says another ABI version than `version`."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise errors.LibraryError(
            f"cannot load {path}: {error}. Hint: bitpager runs on Linux x86-64 with glibc 2.35 or newer."
        ) from error
    try:
        asked = getattr(library, version_function)
        asked.restype = c_uint32
        spoken = asked()
        if spoken != version:
            raise errors.LibraryError(
                f"{path} speaks ABI version {spoken}, this package speaks {version}. Hint: the package and the library "
                "come from different builds; install one wheel.",
            )
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as error:
        raise errors.LibraryError(f"{path} is not complete: {error}") from error
    return library


def lib():
    """The loaded library. Thread-safe."""
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = load(library_path(), "bp_abi_version", ABI_VERSION, SIGNATURES)
    return _library


def error_of(code: int) -> errors.Error:
    """The exception for `code`, with this thread's last message."""
    library = lib()
    message = (library.bp_last_error() or b"").decode(errors="replace")
    name = (library.bp_code_name(code) or b"?").decode(errors="replace")
    return errors.from_code(code, name, message)


def check(code: int) -> None:
    """Raises unless code is BP_OK."""
    if code != OK:
        raise error_of(code)


# True after a wait was interrupted by a signal, until a later call has waited for what it left behind.
_left_behind = False


def check_idempotent(call, *arguments) -> None:
    """Calls a function that may be asked twice. After BP_INTERRUPTED Python's signal handlers have had their turn
    (KeyboardInterrupt leaves from here); the call is then made again."""
    while True:
        code = call(*arguments)
        if code != INTERRUPTED:
            return check(code)
        note_interrupted()


def note_interrupted() -> None:
    """Remembers that a request goes on without anybody waiting for it."""
    global _left_behind
    _left_behind = True


def settle(session) -> None:
    """Waits for requests that interrupted waits left behind. To be called before a request that must not be asked
    twice: BP_INTERRUPTED then means that it is under way."""
    global _left_behind
    if _left_behind:
        check_idempotent(lib().bp_noop, session)
        _left_behind = False


def sized(struct_type):
    """A zeroed struct that says its own size."""
    value = struct_type()
    value.struct_bytes = sizeof(struct_type)
    return value


__all__ = ["byref", "check", "check_idempotent", "lib", "program_path", "sized"]
