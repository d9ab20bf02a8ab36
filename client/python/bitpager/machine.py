"""Whether torch and bitpager can use this machine's GPUs, and what to do where they cannot. Asks no daemon; `bitpager
doctor` says the same of the daemon."""

from __future__ import annotations

import os
import pathlib

import torch

from . import errors

_LEAST_CAPABILITY = (7, 5)
_DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}  # CUDA's major version -> the first driver release that runs it


class Verdict:
    """passed: True, False, or None where there is no GPU to judge. text: what was found; fix: what to do, "" when
    nothing."""

    def __init__(self, passed, text: str, fix: str = ""):
        self.passed = passed
        self.text = text
        self.fix = fix

    def __str__(self):
        return self.text + (f". Fix: {self.fix}" if self.fix else "")


def gpu_verdict(root="/") -> Verdict:
    """Looks at torch, the driver and every GPU that torch sees, and tries our kernels on the current one: elsewhere
    that would take memory for nothing. root: of the file system, for tests."""
    root = pathlib.Path(root)
    if torch.cuda.is_available():
        return _of_usable(root)
    if not _has_gpu(root):
        return Verdict(None, f"torch {torch.__version__}, no GPU")
    if torch.version.cuda is None:
        return Verdict(
            False,
            f"torch {torch.__version__} has no CUDA, and this machine has a GPU",
            "pip uninstall torch, then pip install torch --index-url https://download.pytorch.org/whl/cu130",
        )
    return _of_silent(root)


def driver_release(root="/") -> str:
    """Of the NVIDIA driver, like "580.65.06"; "" when it is not known."""
    try:
        first = (pathlib.Path(root) / "proc/driver/nvidia/version").read_text(errors="replace").partition("\n")[0]
    except OSError:
        return ""
    words = (word for word in first.split() if "." in word and word.replace(".", "").isdigit())
    return next(words, "")


def _has_gpu(root) -> bool:
    try:
        names = os.listdir(root / "dev")
    except OSError:
        return False
    return any(name == "dxg" or (name.startswith("nvidia") and name[6:].isdigit()) for name in names)


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _of_silent(root) -> Verdict:
    """torch is for CUDA, there is a GPU, and yet it does not start."""
    cuda, driver = torch.version.cuda, driver_release(root)
    needed = _DRIVER_OF_CUDA.get(_major(cuda), 0)
    text = f"torch {torch.__version__} is for CUDA {cuda}, which does not start here"
    if driver and _major(driver) < needed:
        return Verdict(
            False,
            f"{text}: the driver is {driver}, CUDA {_major(cuda)} needs {needed} or newer",
            f"a driver of release {max(needed, _DRIVER_OF_CUDA[13])} or newer",
        )
    return Verdict(
        False,
        f"{text}, under driver {driver or 'of unknown release'}",
        "look at CUDA_VISIBLE_DEVICES, at the container's --gpus, and at what nvidia-smi says",
    )


def _of_usable(root) -> Verdict:
    found, problems = [], []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        found.append(f"{torch.cuda.get_device_name(index)} ({capability[0]}.{capability[1]})")
        if capability < _LEAST_CAPABILITY:
            problems.append((f"{found[-1]} is too old", "a GPU of compute capability 7.5 or newer"))
    problem = "" if problems else _kernels_problem(torch.cuda.current_device())
    if problem:
        problems.append((problem, _fix_of_kernels(root)))
    text = f"torch {torch.__version__} on {', '.join(found)}"
    if not problems:
        return Verdict(True, text)
    return Verdict(False, f"{text}: {problems[0][0]}", problems[0][1])


def _kernels_problem(index: int) -> str:
    """What keeps this process's own kernels from running on a GPU; "" when nothing."""
    from . import cuda_local

    try:
        with cuda_local.current_on(torch.device("cuda", index)):
            return ""
    except errors.Error as error:
        return str(error)


def _fix_of_kernels(root) -> str:
    driver = driver_release(root)
    if driver and _major(driver) < _DRIVER_OF_CUDA[13]:
        return f"a driver of release {_DRIVER_OF_CUDA[13]} or newer; this one is {driver}"
    return "`bitpager doctor` says what the daemon finds"
