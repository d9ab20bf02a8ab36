"""The disk tier: quantized weights whose pages lie on the daemon's disk while they are not on the device."""

from __future__ import annotations

import copy
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import bitpager
import bitpager.functional as F
import pytest
import torch

PAGE = 64 << 10


@pytest.fixture
def folder():
    """A folder on a disk: beside the tests, because /tmp may lie in memory."""
    made = tempfile.mkdtemp(prefix=".disk-", dir=pathlib.Path(__file__).resolve().parents[2] / "build")
    kind = subprocess.run(["stat", "-f", "-c", "%T", made], capture_output=True, text=True).stdout.strip()
    if kind == "tmpfs":
        shutil.rmtree(made)
        pytest.skip("the project lies in memory (tmpfs): no disk to test with")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def connect(make_daemon, folder):
    """connect(job) -> session with a daemon of one window's device budget, 10 MiB of host and 32 MiB of disk."""
    flags = ("--page-size", "64KiB", "--window-pages", "2", "--device-budget", "640KiB", "--host-budget", "10MiB")
    daemon = make_daemon(*flags, "--disk-folder", folder, "--disk-budget", "32MiB")
    sessions = []

    def make(job="base"):
        sessions.append(bitpager.connect(socket=daemon.socket, job=job, linger=0, default=False))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def floats(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("nested", [False, True])
def test_weights_on_disk_read_as_they_were_written(connect, folder, nested):
    session = connect()
    tensors = [floats(seed, 512, 1024) for seed in range(40)]  # 11 MiB in pages: beyond the host budget
    weights = [bitpager.Weight.from_tensor(t, nested=nested, session=session, offload="disk") for t in tensors]
    for _ in range(2):
        for tensor, weight in zip(tensors, weights):
            packed, state = F.quantize_4bit(tensor, quant_type="nf4", compress_statistics=nested)
            ours, exported = weight.export()
            assert torch.equal(ours, packed) and torch.equal(exported.absmax, state.absmax)
            assert torch.equal(weight.dequantize(path="request"), F.dequantize_4bit(packed, state))
    stats = session.memory_stats()
    assert stats["host_bytes"] == 0
    assert stats["disk_bytes"] == stats["weight_bytes"] > 10 << 20
    assert stats["disk_budget_bytes"] == 32 << 20
    assert stats["loaded_bytes"] > stats["disk_bytes"]
    assert os.listdir(folder) == [], "the file has no name"
    del weights, weight
    assert session.memory_stats()["disk_bytes"] == 0


def test_disk_and_host_weights_and_states_live_beside_each_other(connect):
    session = connect()
    on_disk = bitpager.Weight.from_tensor(floats(1, 1024, 1024), session=session, offload="disk")
    on_host = bitpager.Weight.from_tensor(floats(1, 1024, 1024), session=session)
    parameter = torch.nn.Parameter(floats(2, 256, 1024))
    twin = torch.nn.Parameter(parameter.detach().clone())
    ours = bitpager.optim.PagedAdamW8bit([parameter], lr=1e-2, session=session)
    quiet = bitpager.optim.PagedAdamW8bit([twin], lr=1e-2, session=connect("quiet"))
    for step in range(3):
        assert torch.equal(on_disk.dequantize(path="request"), on_host.dequantize(path="request"))
        parameter.grad = twin.grad = floats(10 + step, 256, 1024)
        ours.step()
        quiet.step()
    assert torch.equal(parameter, twin)


def test_copies_lie_where_the_original_does(connect):
    session = connect()
    layer = bitpager.nn.Linear4bit(256, 512, bias=False, session=session, offload="disk")
    layer.quantize_(floats(1, 512, 256))
    before = session.memory_stats()["disk_bytes"]
    twin = copy.deepcopy(layer)
    assert twin.weight.pages.offload == "disk"
    assert session.memory_stats()["disk_bytes"] == 2 * before
    assert torch.equal(twin.weight.pages.dequantize(path="request"), layer.weight.pages.dequantize(path="request"))


def test_private_daemons_leave_the_machines_folder_alone(tmp_path, folder):
    """It may be another user's, and each of them would set a share of the disk aside."""
    from bitpager import _lib

    config = tmp_path / "bitpagerd.toml"
    config.write_text(f'[memory]\ndisk_folder = "{folder}/missing"\ndevice_budget = "32MiB"\nhost_budget = "32MiB"\n')
    program = str(_lib.program_path("bitpagerd"))
    command = [program, "--device", "cpu", "--socket", str(tmp_path / "s"), "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0 and "disk_folder" in ended.stderr + ended.stdout
    private = subprocess.Popen([*command, "--private"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "s").exists():
            assert private.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        private.kill()
        private.wait()


def test_disk_budget_is_kept(connect):
    session = connect()
    kept = [bitpager.Weight((1024, 8192), session=session, offload="disk") for _ in range(6)]
    with pytest.raises(bitpager.BudgetError, match="disk budget"):
        kept += [bitpager.Weight((1024, 8192), session=session, offload="disk") for _ in range(2)]
    kept.pop()
    assert bitpager.Weight.from_tensor(floats(1, 1024, 1024), session=session, offload="disk").dequantize().any()


def test_a_daemon_without_a_disk_says_so(session):
    with pytest.raises(bitpager.UnsupportedError, match="--disk-folder"):
        bitpager.Weight((64, 64), session=session, offload="disk")
    with pytest.raises(ValueError, match="offload"):
        bitpager.Weight((64, 64), session=session, offload="tape")
    assert session.memory_stats()["disk_budget_bytes"] == 0


def test_a_killed_client_gives_its_room_on_disk_back(connect, run_python):
    session = connect("stays")
    socket = session.info()["socket"]
    source = f"""
import bitpager, os, signal
s = bitpager.connect(socket={socket!r}, job="dies", linger=0, default=False)
w = [bitpager.Weight((1024, 8192), session=s, offload="disk") for _ in range(6)]
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(source).returncode == -9
    deadline = time.monotonic() + 30
    while True:
        try:
            weights = [bitpager.Weight((1024, 8192), session=session, offload="disk") for _ in range(6)]
            break
        except bitpager.BudgetError:
            assert time.monotonic() < deadline, "the room did not come back"
            time.sleep(0.05)
    assert session.memory_stats()["disk_bytes"] > 24 << 20
    assert len(weights) == 6


@pytest.mark.parametrize(
    "flags", [("--disk-budget", "1MiB"), ("--disk-folder", "/nowhere"), ("--disk-folder", "/dev/shm")]
)
def test_settings_that_cannot_work_are_refused(flags, tmp_path):
    from bitpager import _lib

    program = str(_lib.program_path("bitpagerd"))
    command = [program, "--device", "cpu", "--socket", str(tmp_path / "s"), *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "Hint" in ended.stderr + ended.stdout
