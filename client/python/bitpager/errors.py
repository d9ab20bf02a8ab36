"""Exceptions of the package. Every one is a `bitpager.Error` with the C ABI's code and its name; where Python has a
word for the same thing (ValueError, MemoryError, LookupError) the exception is one of those too.
"""

from __future__ import annotations


class Error(RuntimeError):
    """Something that bitpager could not do. `code` is the C ABI's bp_code, `name` its name, str() says what
    happened, why, and gives a hint."""

    def __init__(self, message: str, code: int = 50, name: str = "INTERNAL"):
        super().__init__(message)
        self.code = code
        self.name = name

    def __reduce__(self):
        return (type(self), (self.args[0], self.code, self.name))


class LibraryError(Error):
    """libbitpager.so is missing, cannot be loaded, or speaks another ABI version."""


class BusyError(Error):
    """FULL or PENDING: no room at this moment."""


class NotResidentError(Error):
    """A lease was demanded of a weight that is not resident."""


class InvalidArgumentError(Error, ValueError):
    """An argument is malformed or out of range."""


class VersionError(Error):
    """Client and daemon do not speak the same version."""


class AlreadyExistsError(Error):
    """The same (uid, job, rank, optimizer) is in use already."""


class NotFoundError(Error, LookupError):
    """No such thing, for example no kept states to resume from."""


class PermissionDeniedError(Error):
    """The daemon or the file system does not let this user do it."""


class StepMismatchError(Error):
    """The kept states are at another step than the parameters; the message names both."""


class LayoutMismatchError(Error):
    """The kept states belong to tensors of other sizes, or to another kind of optimizer."""


class ForkedChildError(Error):
    """A forked child used its parent's session."""


class OutOfMemoryError(Error, MemoryError):
    """No memory for the request, in a budget, in a quota or in the system."""


class QuotaError(OutOfMemoryError):
    """The job's quota does not admit the request."""


class BudgetError(OutOfMemoryError):
    """The daemon's budget does not admit the request."""


class NonFiniteError(Error, ArithmeticError):
    """Gradients held NaN or inf. Their blocks were left untouched; all other blocks are already updated.

    tensors: names of the tensors concerned; blocks: how many blocks were skipped.
    """

    def __init__(self, message: str, code: int = 30, name: str = "NON_FINITE", tensors=(), blocks: int = 0):
        super().__init__(message, code, name)
        self.tensors = tuple(tensors)
        self.blocks = blocks

    def __reduce__(self):
        return (type(self), (self.args[0], self.code, self.name, self.tensors, self.blocks))


class DeviceFaultError(Error):
    """The daemon's device failed."""


class UnreachableError(Error):
    """No daemon answers, and none could be started."""


class DaemonLostError(Error):
    """The daemon ended or stopped answering while this session was attached."""


class DrainingError(Error):
    """The daemon is shutting down and takes no new work."""


class InterruptedCallError(Error):
    """A signal came while waiting; the request goes on and the next call waits for it first."""


class UnsupportedError(Error, NotImplementedError):
    """Not in this build, or not on this machine."""


_BY_CODE = {
    1: BusyError,
    2: BusyError,
    3: NotResidentError,
    10: InvalidArgumentError,
    11: InvalidArgumentError,
    12: VersionError,
    13: AlreadyExistsError,
    14: NotFoundError,
    15: PermissionDeniedError,
    16: StepMismatchError,
    17: LayoutMismatchError,
    18: ForkedChildError,
    20: QuotaError,
    21: BudgetError,
    22: OutOfMemoryError,
    30: NonFiniteError,
    32: DeviceFaultError,
    40: UnreachableError,
    41: DaemonLostError,
    43: DrainingError,
    44: InterruptedCallError,
    45: UnsupportedError,
}


def from_code(code: int, name: str, message: str) -> Error:
    """The exception for a bp_code."""
    return _BY_CODE.get(code, Error)(message or name, code, name)
