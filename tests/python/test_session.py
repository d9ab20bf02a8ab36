"""Sessions in real processes: errors, forks, interrupts, a daemon that dies, private daemons, resuming."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import bitpager
import pytest
import torch
from bitpager import errors, optim
from bitpager.sizes import parse_bytes, print_bytes


def trained(session, **settings):
    """(parameter, optimizer) after one step."""
    p = torch.nn.Parameter(torch.ones(5000))
    optimizer = optim.PagedAdamW8bit([p], lr=0.1, session=session, **settings)
    p.grad = torch.ones(5000)
    optimizer.step()
    return p, optimizer


def test_nobody_at_a_named_socket_is_unreachable(tmp_path):
    with pytest.raises(bitpager.UnreachableError, match=re.escape(str(tmp_path))):
        bitpager.connect(socket=str(tmp_path / "none.sock"), default=False)


def test_bad_options_are_refused_in_words():
    for options in ({"rank": -1}, {"linger": -1}, {"device_quota": "lots"}, {"host_quota": -5}):
        with pytest.raises(ValueError):
            bitpager.connect(socket="/nowhere", default=False, **options)


def test_the_rank_is_the_launchers(session, monkeypatch):
    def train_as(rank):
        monkeypatch.setenv("RANK", rank)
        made = bitpager.connect(socket=session.info()["socket"], job="ranks", default=False)
        parameters = [torch.nn.Parameter(torch.zeros(5000))]
        return made, bitpager.optim.PagedAdamW8bit(parameters, name="same", session=made).prepare()

    (first, of_first), (second, of_second) = train_as("0"), train_as("12")
    with pytest.raises(bitpager.AlreadyExistsError):
        train_as("12")
    with pytest.raises(ValueError, match="RANK is 'one', no rank"):
        train_as("one")
    del of_first, of_second
    first.close(), second.close()


def test_sizes_are_read_as_written():
    assert parse_bytes("8GiB") == parse_bytes("8g") == 8 << 30 and parse_bytes("1.5 MiB") == 3 << 19
    assert parse_bytes("2GB") == 2_000_000_000 and parse_bytes(77) == 77
    assert print_bytes(8 << 30) == "8.0 GiB" and print_bytes(12) == "12 B"
    for bad in ("8 furlongs", "", True, -1, 1.5):
        with pytest.raises(ValueError):
            parse_bytes(bad)


def test_every_code_has_its_exception():
    seen = {code: type(errors.from_code(code, "X", "words")) for code in range(51)}
    assert seen[10] is bitpager.InvalidArgumentError and issubclass(seen[10], ValueError)
    assert issubclass(seen[20], MemoryError) and seen[41] is bitpager.DaemonLostError and seen[50] is bitpager.Error


def test_a_closed_session_says_so(daemon):
    session = bitpager.connect(socket=daemon.socket, default=False)
    session.close()
    session.close()
    assert session.closed
    with pytest.raises(bitpager.Error, match="closed"):
        session.noop()


def test_usage_counts_what_is_there(session):
    assert session.memory_stats()["state_bytes"] == 0
    _, optimizer = trained(session)
    stats = session.memory_stats()
    assert stats["state_bytes"] >= 2 * 5000 and stats["steps"] == 1 and stats["pages"] == 1
    assert "job test" in session.memory_summary()
    optimizer.drop()
    assert session.memory_stats()["state_bytes"] == 0


def test_the_same_optimizer_twice_is_refused(session):
    _, first = trained(session, name="mine")
    with pytest.raises(bitpager.AlreadyExistsError, match="mine"):
        trained(session, name="mine")
    first.drop()
    trained(session, name="mine")


def test_what_is_dropped_goes_behind_the_hints_before(session):
    """None of them makes the daemon refuse the drop, and the memory is back."""
    for _ in range(20):
        p = torch.nn.Parameter(torch.ones(100_000))
        optimizer = bitpager.optim.PagedAdamW8bit([p], session=session).prepare()
        weight = bitpager.Weight.from_tensor(torch.ones(64, 64), session=session)
        session.prefetch(optimizer, weight)
        session.hint_phase("backward")
        optimizer.drop()
        session.prefetch(weight)
        weight.drop()
        assert session.memory_stats()["pages"] == 0


def test_a_daemon_that_dies_is_an_error_within_seconds(make_daemon):
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "64MiB")
    session = bitpager.connect(socket=daemon.socket, job="lost", default=False)
    p, optimizer = trained(session)
    daemon.kill()
    start = time.monotonic()
    with pytest.raises(bitpager.DaemonLostError):
        optimizer.step()
    assert time.monotonic() - start < 2
    with pytest.raises(bitpager.Error):
        session.noop()
    session.close()


FORK = """
import os, sys, torch, bitpager
session = bitpager.connect(socket=sys.argv[1], job="fork", linger=0)
p = torch.nn.Parameter(torch.ones(5000)); p.grad = torch.ones(5000)
optimizer = bitpager.optim.AdamW8bit([p]); optimizer.step()
child = os.fork()
if child == 0:
    for use in (optimizer.step, session.noop, bitpager.memory_stats):
        try:
            use()
        except bitpager.ForkedChildError as error:
            assert "fork" in str(error)
        else:
            os._exit(3)
    own = bitpager.connect(socket=sys.argv[1], job="child", default=False)
    own.noop(); own.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
optimizer.step(); session.noop()
print("fine")
"""


def test_a_forked_child_gets_an_error_and_the_parent_goes_on(daemon, run_python):
    result = run_python(FORK, daemon.socket)
    assert result.returncode == 0 and "fine" in result.stdout, result.stderr


WORKERS = """
import sys, torch, bitpager
from torch.utils.data import DataLoader, TensorDataset
bitpager.connect(socket=sys.argv[1], job="workers", linger=0)
model = torch.nn.Sequential(bitpager.nn.Linear4bit(64, 64), torch.nn.Linear(64, 64))
optimizer = bitpager.optim.PagedAdamW8bit(model[1].parameters(), lr=1e-2)
loader = DataLoader(TensorDataset(torch.randn(64, 64)), batch_size=8, num_workers=2)
for _ in range(2):
    for (x,) in loader:
        optimizer.zero_grad(); (model(x) - x).square().mean().backward(); optimizer.step()
print("steps", optimizer.state[model[1].weight]["step"])
"""


def test_data_loader_workers_do_not_disturb(daemon, run_python):
    result = run_python(WORKERS, daemon.socket)
    assert result.returncode == 0 and "steps 16" in result.stdout, result.stderr


INTERRUPT = """
import os, signal, sys, threading, time, torch, bitpager
stepping = False
def interrupt(*_):
    if stepping:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
session = bitpager.connect(socket=sys.argv[1], job="notebook", linger=0)
p = torch.nn.Parameter(torch.ones(3_000_000))
optimizer = bitpager.optim.PagedAdamW8bit([p], lr=0.01)
p.grad = torch.ones_like(p)
optimizer.step()
signal.signal(signal.SIGUSR1, lambda *_: None)
stop = threading.Event()
def bother():
    while not stop.is_set():
        time.sleep(0.003); os.kill(os.getpid(), signal.SIGUSR1 if os.urandom(1)[0] & 1 else signal.SIGINT)
thread = threading.Thread(target=bother)
interrupted, start = 0, time.monotonic()
try:
    thread.start()
    while time.monotonic() - start < 3:
        try:
            stepping = True
            optimizer.step()
            stepping = False
        except KeyboardInterrupt:
            stepping = False
            interrupted += 1
finally:
    stop.set(); thread.join()
signal.signal(signal.SIGINT, signal.SIG_IGN)
session.noop()
first = optimizer.state[p]["step"]
before = p.detach().clone()
optimizer.step()
assert optimizer.state[p]["step"] == first + 1 and not torch.equal(before, p)
assert (p == p[0]).all(), "a step was applied in part"
print("interrupted", interrupted)
"""


def test_interrupted_steps_leave_the_client_usable(make_daemon, run_python):
    budgets = ("--device-budget", "4MiB", "--host-budget", "64MiB")
    daemon = make_daemon(*budgets, "--page-size", "64KiB", "--window-pages", "8")
    result = run_python(INTERRUPT, daemon.socket)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 5


RESUME = """
import sys, torch, bitpager
from bitpager import optim
torch.manual_seed(0)
bitpager.connect(socket=sys.argv[1], job="resume", linger=60)
p = torch.nn.Parameter(torch.load(sys.argv[2]) if sys.argv[3] != "new" else torch.ones(5000))
optimizer = optim.PagedAdamW8bit([p], lr=0.1, resume_step=None if sys.argv[3] == "new" else int(sys.argv[3]))
for _ in range(2):
    p.grad = torch.linspace(-1, 1, 5000)
    optimizer.step()
torch.save(p.detach().clone(), sys.argv[2])
print("at", optimizer.state[p]["step"])
"""


def test_kept_states_go_on_or_are_refused_naming_both_steps(daemon, run_python, tmp_path):
    first = run_python(RESUME, daemon.socket, tmp_path / "p", "new")
    assert first.returncode == 0, first.stderr
    wrong = run_python(RESUME, daemon.socket, tmp_path / "p", "7")
    assert wrong.returncode != 0 and "StepMismatchError" in wrong.stderr
    assert "7" in wrong.stderr.splitlines()[-1] and "2" in wrong.stderr.splitlines()[-1]
    again = run_python(RESUME, daemon.socket, tmp_path / "p", "2")
    assert again.returncode == 0 and "at 4" in again.stdout, again.stderr
    with bitpager.connect(socket=daemon.socket, job="whole", linger=0, default=False) as session:
        p = torch.nn.Parameter(torch.ones(5000))
        optimizer = optim.PagedAdamW8bit([p], lr=0.1, session=session)
        for _ in range(4):
            p.grad = torch.linspace(-1, 1, 5000)
            optimizer.step()
    assert torch.equal(torch.load(tmp_path / "p"), p)
    with bitpager.connect(socket=daemon.socket, job="nobody", linger=0, default=False) as session:
        with pytest.raises(bitpager.NotFoundError):
            optim.AdamW8bit([p], session=session, resume_step=3)


PRIVATE = """
import os, sys, time, torch, bitpager
p = torch.nn.Parameter(torch.ones(5000)); p.grad = torch.ones(5000)
bitpager.optim.AdamW8bit([p]).step()
print(bitpager.default_session().info()["socket"], flush=True)
sys.stdin.readline()
"""


def private_environment(folder):
    env = {k: v for k, v in os.environ.items() if k not in ("BITPAGER_SOCKET", "BITPAGER_JOB")}
    env["XDG_RUNTIME_DIR"] = str(folder)
    return env


def test_two_processes_share_a_private_daemon_that_ends_with_them(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-c", PRIVATE]
    options = dict(env=private_environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    clients = [subprocess.Popen(command, **options) for _ in range(2)]
    sockets = [client.stdout.readline().strip() for client in clients]
    assert sockets[0] and sockets[0] == sockets[1]
    clients[0].communicate("\n", timeout=20)
    assert clients[0].returncode == 0 and os.path.exists(sockets[0])
    clients[1].send_signal(signal.SIGKILL)
    clients[1].communicate(timeout=20)
    end = time.monotonic() + 10
    while os.path.exists(sockets[0]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(sockets[0])


def test_verification_succeeds_and_fails_with_its_exit_code(run_python, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", "bitpager"]
    good = subprocess.run(command, env=private_environment(folder), capture_output=True, text=True, timeout=60)
    assert good.returncode == 0 and "bitpager works." in good.stdout, good.stdout + good.stderr
    command += ["--socket", str(tmp_path / "none.sock")]
    bad = subprocess.run(command, env=private_environment(folder), capture_output=True, text=True, timeout=60)
    assert bad.returncode == 1 and "[failed] daemon answers" in bad.stdout


def test_missing_library_is_named(run_python):
    source = "import bitpager; bitpager.functional.get_4bit_type('nf4')"
    result = run_python(source, BITPAGER_LIBRARY="/nowhere/libbitpager.so")
    assert result.returncode != 0 and "LibraryError" in result.stderr and "/nowhere" in result.stderr
