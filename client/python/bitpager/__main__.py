"""`python -m bitpager [SOCKET]`: verifies an installation. Exit code 0 when everything works, 1 otherwise."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile

import torch

from . import __version__, _lib, connect, functional, nn, optim
from .machine import gpu_verdict
from .quant_state import QuantState


def _check_versions():
    library = _lib.library_path()
    return (
        f"package {__version__}, library {_lib.lib().bp_version().decode()} (ABI {_lib.lib().bp_abi_version()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}\n      {library}"
    )


def _check_program():
    program = os.environ.get("BITPAGERD") or _lib.program_path("bitpagerd")
    if program is None:
        raise RuntimeError("bitpagerd is not beside the library. Hint: install the wheel again, or set BITPAGERD.")
    return str(program)


def _check_four_bit():
    values = torch.linspace(-3, 3, 1003)
    packed, state = functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    again = QuantState.from_dict(state.as_dict(packed=True))
    error = (functional.dequantize_4bit(packed, again) - values).abs().max().item()
    if not error < 0.5:
        raise RuntimeError(f"NF4 gives back values that are {error:.3f} off")
    return f"largest error {error:.3f} on values up to 3"


def _check_daemon(socket):
    def check():
        session = connect(socket=socket, job=f"verify-{os.getpid()}", linger=0)
        session.noop()
        return f"{session.info()['socket']}, pages of {session.info()['page_bytes']} bytes"

    return check


def _check_step():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(1000))
    reference = ours.detach().double().clone()
    moment, variance = torch.zeros_like(reference), torch.zeros_like(reference)
    optimizer = optim.PagedAdamW32bit([ours], lr=1e-2)
    for step in range(1, 4):
        ours.grad = torch.randn(1000)
        gradient = ours.grad.double()
        moment = 0.9 * moment + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * gradient**2
        reference -= 1e-2 * (moment / (1 - 0.9**step)) / ((variance / (1 - 0.999**step)).sqrt() + 1e-8)
        reference *= 1 - 1e-2 * 1e-2
        optimizer.step()
    error = (ours.detach().double() - reference).abs().max().item()
    if not error < 1e-5:
        raise RuntimeError(f"AdamW differs from its formula by {error:.2e}")
    return f"AdamW agrees with its formula within {error:.1e}"


def _check_layer():
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 64)
    layer = nn.Linear4bit.from_linear(linear)
    packed, state = functional.quantize_4bit(linear.weight.detach(), quant_type="nf4", compress_statistics=True)
    if not torch.equal(layer.weight.packed(), packed):
        raise RuntimeError("the daemon packs other bytes than this process")
    difference = (layer.dequantize() - functional.dequantize_4bit(packed, state)).abs().max().item()
    if not difference < 1e-6:
        raise RuntimeError(f"the daemon's weight differs from this process's by {difference:.2e}")
    inputs = torch.randn(3, 128, requires_grad=True)
    layer(inputs).sum().backward()
    if inputs.grad is None or not bool(torch.isfinite(inputs.grad).all()):
        raise RuntimeError("backward gave no finite gradient")
    return "4-bit linear layer: forward and backward"


def main(arguments=None) -> int:
    """Runs every check and says how each went."""
    parser = argparse.ArgumentParser(prog="python -m bitpager", description="Verifies an installation of bitpager.")
    parser.add_argument("--socket", help="check this daemon (default: start a private one)")
    socket = parser.parse_args(arguments).socket
    with tempfile.TemporaryDirectory(prefix="bitpager-verify-") as folder:
        if socket is None:
            os.environ.pop("BITPAGER_SOCKET", None)
            os.environ["XDG_RUNTIME_DIR"] = folder  # a daemon of its own, not one that jobs are using
        checks = [
            ("versions", _check_versions),
            ("daemon program", _check_program),
            ("NF4 round trip", _check_four_bit),
            ("daemon answers", _check_daemon(socket)),
            ("optimizer step", _check_step),
            ("linear layer", _check_layer),
        ]
        failed = sum(not _run(name, check) for name, check in checks)
        _note_gpu()
        from . import disconnect

        disconnect()
    print("bitpager works." if not failed else f"{failed} of {len(checks)} checks failed.")
    return 1 if failed else 0


def _note_gpu() -> None:
    """A GPU that is there and cannot be used is no failure of the installation, but worth a line."""
    found = gpu_verdict()
    if found.passed is False:
        print(f"[note] GPU: {found}")


def _run(name, check) -> bool:
    try:
        print(f"[ok] {name}: {check()}")
        return True
    except Exception as error:
        print(f"[failed] {name}: {error}")
        return False


if __name__ == "__main__":
    sys.exit(main())
