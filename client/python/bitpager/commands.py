"""Console scripts of the wheel: they become the programs in _native/, with the caller's arguments and environment."""

from __future__ import annotations

import os
import sys

from . import _lib, errors


def _become(name: str):
    try:
        program = _lib.program_path(name)
    except errors.LibraryError as error:
        sys.exit(f"{name}: {error}")
    if program is None:
        sys.exit(f"{name}: the program is not beside {_lib.library_path()}. Hint: install the wheel again.")
    os.execv(program, [name, *sys.argv[1:]])


def bitpagerd():
    """The daemon."""
    _become("bitpagerd")


def bitpager():
    """The operator's command; `bitpager plan` is answered here, for it reads model configs and asks no daemon."""
    if sys.argv[1:2] == ["plan"]:
        from .plan import main

        sys.exit(main(sys.argv[2:]))
    _become("bitpager")
