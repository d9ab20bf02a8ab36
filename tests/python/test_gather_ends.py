"""The compiled gather where processes end or fork, threads cannot be had, and gradients' ends run Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from bitpager.optim import AdamW8bit, gather
from fake_gpu import give_gradients, make_parameters, open_session, stand_in


def run(program, folder, **environment):
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    env.pop(gather.SWITCH, None)
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=240)


WHILE_COMPILED = """
import time
from bitpager.optim import gather
gather.library()
time.sleep(0.2)
print(gather._thread.is_alive())
"""
WHILE_TRIED = """
import threading, time
from bitpager.optim import gather
begun, tells = threading.Event(), gather._tells
def slow(library):
    begun.set()
    time.sleep(0.5)
    print(tells(library), flush=True)
    return True
gather._tells = slow
gather.library()
begun.wait(150)
"""


@pytest.mark.parametrize("program", (WHILE_COMPILED, WHILE_TRIED), ids=("compiled", "tried"))
def test_a_process_may_end_meanwhile(tmp_path, program):
    """Nothing is left behind or complained of; no thread is within PyTorch at the end."""
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert not list(tmp_path.glob("bitpager/.build-*"))


FORKED_MEANWHILE = """
import os, sys, threading, time
from bitpager.optim import gather
begun, tells = threading.Event(), gather._tells
def slow(library):
    begun.set()
    time.sleep(1)
    return tells(library)
gather._tells = slow
gather.library()
begun.wait(150)
child = os.fork()
if child == 0:
    gather._tells = tells
    print(gather.wait() is not None, flush=True)
    sys.exit(3)  # and not by os._exit: what is registered for the end is run
print(os.waitpid(child, 0)[1] >> 8, gather.wait() is not None)
"""


def test_a_child_forked_meanwhile_has_its_own(tmp_path):
    done = run(FORKED_MEANWHILE, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n3 True\n", "")


# Freed memory is overwritten, so that a gradient that is let go of twice ends the process.
COMES_BACK = """
import ctypes, weakref, torch
from bitpager.optim import gather
library = gather.wait()
parameters = [torch.nn.Parameter(torch.zeros(3 + i)) for i in range(3)]
def give():
    for p in parameters:
        p.grad = torch.ones_like(p)
give()
made, addresses, calls = library.make(parameters, [p.grad for p in parameters]), (ctypes.c_uint64 * 3)(), []
def again(_):
    calls.append(1)
    give()
    made.take(addresses)
for _ in range(200):
    give()
    assert made.take(addresses)
    watched = [weakref.ref(p.grad, again) for p in parameters]
    for p in parameters:
        p.grad = None
    made.release()
    made.release()
print(len(calls) >= 200)
"""


def test_a_gradients_end_may_come_back(tmp_path):
    done = run(COMES_BACK, tmp_path, MALLOC_PERTURB_="165")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_steps_do_without_a_thread(monkeypatch):
    """As under a limit of threads, or at the interpreter's end."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    library, session = stand_in(monkeypatch), open_session()
    for name, value in (("_thread", None), ("_library", None), ("_said", "")):
        monkeypatch.setattr(gather, name, value)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        parameters = make_parameters()
        optimizer = AdamW8bit(parameters, session=session)
        for _ in range(3):
            give_gradients(parameters)
            optimizer.step()
        assert len(library.steps) == 3
        assert gather.wait() is None and "can't start new thread" in gather.report()
    finally:
        session.close()
