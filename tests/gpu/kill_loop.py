"""Starts trainers and kills each -9 while it steps: kill_loop.py SOCKET COUNT. Says {"kills": COUNT}.

This process makes no CUDA call; the trainers are forked from it, so that each starts fast.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time

import bitpager  # noqa: F401 - loaded once, for all trainers
import gpu_training
import torch

START_LIMIT_S = 60


def _step_for_ever(socket: str, number: int, ready: int) -> None:
    session = gpu_training.connect(socket, f"victim-{number}")
    params = gpu_training.parameters(torch.bfloat16)
    optimizer = gpu_training.make_optimizer("AdamW", params, session)
    gpu_training.set_gradients(params, 1)
    step = 0
    while True:
        step += 1
        optimizer.step()
        if step == 2:
            torch.cuda.synchronize()
            os.write(ready, b"!")


def _kill_one(socket: str, number: int, delay_s: float) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _step_for_ever(socket, number, told)
        finally:
            os._exit(1)
    os.close(told)
    begun = bool(select.select([ready], [], [], START_LIMIT_S)[0]) and os.read(ready, 1) == b"!"
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ready)
    if not begun or not os.WIFSIGNALED(status):
        sys.exit(f"trainer {number} was not stepping: status {status}")


def main() -> None:
    socket, count = sys.argv[1], int(sys.argv[2])
    delays = random.Random(5)
    for number in range(count):
        _kill_one(socket, number, delays.uniform(0, 0.05))
    gpu_training.say(kills=count)


if __name__ == "__main__":
    main()
