"""Names of bitsandbytes that are not there yet, answered in words by the modules where they would be.

Both `bitpager.optim.SGD8bit` and `from bitpager.optim import SGD8bit` show the words. Python's own from-import would
replace the words of an AttributeError by "cannot import name"; and an ImportError, which it lets pass, would break
hasattr() and getattr() with a default everywhere else. No exception can be both (the two have different layouts), so
the error is chosen by who asks.
"""

from __future__ import annotations

import sys

_IMPORT_SYSTEM = "_handle_fromlist"  # importlib's function that asks a package for the names of a from-import


def refuse(module: str, name: str, words: str, depth: int = 2):
    """Raises ImportError with `words` for `from module import name`, AttributeError for anything else.

    depth: frames between this function and the one that asked for the name: 2 when a module's __getattr__ calls."""
    asking = sys._getframe(depth).f_code
    if asking.co_name == _IMPORT_SYSTEM and "importlib" in asking.co_filename:
        raise ImportError(words, name=module)
    raise AttributeError(words)
