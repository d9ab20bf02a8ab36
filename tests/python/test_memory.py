"""memory_stats, memory_summary, the node's status without a ZeroMQ library, and what loggers are told."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time

import bitpager
import pytest
import torch
from bitpager import _zmtp, telemetry

FLAGS = ("--device", "cpu", "--device-budget", "1MiB", "--host-budget", "64MiB", "--page-size", "16KiB",
         "--window-pages", "8")  # fmt: skip


def train(session, elements, steps=1, **settings):
    """(parameter, optimizer) after `steps` steps."""
    p = torch.nn.Parameter(torch.ones(elements))
    optimizer = bitpager.optim.PagedAdamW8bit([p], session=session, **settings)
    p.grad = torch.ones(elements)
    for _ in range(steps):
        optimizer.step()
    return p, optimizer


@pytest.fixture
def small(make_daemon):
    """A daemon of 64 device frames of 16 KiB, and the default session of job "mine" with it."""
    daemon = make_daemon(*FLAGS)
    yield bitpager.connect(socket=daemon.socket, job="mine", linger=0)
    bitpager.disconnect()


def test_every_job_of_the_node_is_told_apart_and_summed(small):
    _, mine = train(small, 2_000_000, steps=3)
    layer = bitpager.nn.Linear4bit.from_linear(torch.nn.Linear(512, 512))
    with bitpager.connect(socket=small.info()["socket"], job="other", linger=0, default=False) as other:
        _, theirs = train(other, 400_000, steps=2)
        own = bitpager.memory_stats()
        assert own == bitpager.memory_stats("cpu") == bitpager.memory_stats(torch.device("cpu"), job="mine")
        both, second = bitpager.memory_stats(job="*"), bitpager.memory_stats("cpu-0", job="other")
        assert own.keys() == both.keys() == second.keys()
        assert both["steps"] == 5 and own["steps"] == 3
        for key in own:
            if key not in ("device_budget_bytes", "disk_budget_bytes"):
                assert both[key] == own[key] + second[key], key
        assert both["resident_bytes"] <= both["device_budget_bytes"] == 1 << 20
        assert own["loaded_bytes"] > 0 and own["state_bytes"] > own["resident_state_bytes"]
        del layer, mine, theirs


def test_peaks_are_kept_until_they_are_reset(small):
    _, mine = train(small, 2_000_000, steps=2)  # more than the device holds
    with bitpager.connect(socket=small.info()["socket"], job="mine", rank=1, linger=0, default=False) as second:
        before = bitpager.memory_stats()
        assert before["peak_resident_bytes"] >= before["resident_bytes"] > 0
        assert before["peak_host_bytes"] == before["host_bytes"] == before["state_bytes"]
        with bitpager.connect(socket=small.info()["socket"], job="other", linger=0, default=False) as other:
            _, theirs = train(other, 2_000_000)  # takes its share of the device
            smaller = bitpager.memory_stats()
            assert smaller["resident_bytes"] < smaller["peak_resident_bytes"] == before["peak_resident_bytes"]
            bitpager.reset_peak_memory_stats()
            quiet = bitpager.memory_stats("cpu")
            assert quiet["peak_resident_bytes"] == quiet["resident_bytes"] == quiet["resident_bytes.all.peak"]
            assert quiet["peak_host_bytes"] == quiet["host_bytes"]
            assert quiet["job_peak_resident_bytes"] == before["peak_resident_bytes"], "the job's own go on"
            assert second.memory_stats()["peak_resident_bytes"] > quiet["peak_resident_bytes"], "and another session's"
            assert bitpager.memory_stats(job="mine")["peak_resident_bytes"] == before["peak_resident_bytes"]
            second.reset_peak_memory_stats()
            assert second.memory_stats() == {key: quiet[key] for key in second.memory_stats()}
            del theirs
        bitpager.reset_peak_memory_stats("cpu")
        mine.step()
        grown = bitpager.memory_stats()
        assert grown["peak_resident_bytes"] >= grown["resident_bytes"] > quiet["resident_bytes"]
        assert "peak, host peak" in bitpager.memory_summary()
    with pytest.raises(bitpager.NotFoundError, match="no default session on GPU-none"):
        bitpager.reset_peak_memory_stats("GPU-none")


def test_figures_by_pool_add_up(small):
    _, optimizer = train(small, 100_000)
    layer = bitpager.nn.Linear4bit.from_linear(torch.nn.Linear(512, 512))
    stats = bitpager.memory_stats()
    parts = [stats[f"resident_bytes.{pool}.current"] for pool in ("optimizer_state", "quantized_weight")]
    assert min(parts) > 0 and sum(parts) == stats["resident_bytes.all.current"] == stats["resident_bytes"]
    assert all(isinstance(value, int) for value in stats.values())
    del layer, optimizer


def test_the_documentation_names_every_key(small):
    text = (pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "docs" / "telemetry.md").read_text()

    def first_cells(heading):
        rows = text.split(f"\n| {heading} | |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
        return {name for row in rows for name in re.findall(r"`([\w.]+)`", row.split(" | ")[0])}

    pools = ("all", "optimizer_state", "quantized_weight")
    keys = {key.replace("POOL", pool) for key in first_cells("key of `memory_stats`") for pool in pools}
    assert keys == bitpager.memory_stats().keys()
    assert first_cells("scalar") == telemetry.SCALARS.keys()


def test_the_documentation_names_every_key_of_the_status(small):
    text = (pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "docs" / "telemetry.md").read_text()
    section = text.split("\n## The status\n")[1].split("\n## ")[0]
    tables = {heading: set(re.findall(r"`(\w+)`", section.split(f"\n| {heading} | meaning |\n")[1].split("\n\n")[0]))
              for heading in ("key", "key of a device", "key of a job")}  # fmt: skip
    prose = set(re.findall(r"`(\w+)`", section))
    _, optimizer = train(small, 100_000)
    status = telemetry.status()
    totals = {*status["totals"], *status["totals"]["http"]}
    assert status.keys() | totals <= tables["key"]
    assert status["devices"][0].keys() | status["devices"][0]["link"].keys() <= tables["key of a device"]
    extents = status["jobs"][0]["extents"][0]
    assert status["jobs"][0].keys() | extents.keys() | status["jobs"][0]["saved_bytes"].keys() <= tables["key of a job"]
    assert status["sessions"][0].keys() <= prose
    del optimizer


def test_who_is_not_there_is_an_error_that_names_those_who_are(small):
    with pytest.raises(bitpager.NotFoundError, match=r"'nobody'.*jobs there: mine"):
        bitpager.memory_stats(job="nobody")
    with pytest.raises(bitpager.NotFoundError, match="GPU-none"):
        bitpager.memory_stats("GPU-none", job="*")
    with pytest.raises(bitpager.NotFoundError, match="no default session on GPU-none"):
        bitpager.memory_stats("GPU-none")


def test_the_summary_shows_this_job_and_the_others(small):
    _, optimizer = train(small, 200_000)
    with bitpager.connect(socket=small.info()["socket"], job="neighbour", linger=0, default=False):
        text = bitpager.memory_summary()
    stats = bitpager.memory_stats()
    assert text == text.strip() and "job mine on cpu-0" in text and "neighbour" in text
    states = next(line for line in text.splitlines() if "optimizer states" in line)
    assert states.split()[-2:] == bitpager.sizes.print_bytes(stats["state_bytes"]).split()
    assert "1.0 MiB used" in text and "of 64.0 MiB committed" in text
    del optimizer


def test_a_summary_without_telemetry_says_what_it_lacks(make_daemon, tmp_path):
    endpoint = f"ipc://{tmp_path}/elsewhere"
    daemon = make_daemon(*FLAGS, "--status-endpoint", endpoint)
    with bitpager.connect(socket=daemon.socket, job="alone", linger=0, default=False) as session:
        text = session.memory_summary()
        assert "job alone" in text and "other jobs are not told" in text and "endpoint" in text
        told = telemetry.status(endpoint=endpoint)
        assert [job["name"] for job in told["jobs"]] == ["alone"]
    with pytest.raises(ValueError, match="tcp"):
        telemetry.status(endpoint="tcp://127.0.0.1:1")


def test_status_is_the_command_s(small):
    _, optimizer = train(small, 200_000)
    told = telemetry.status(socket=small.info()["socket"])
    program = os.environ.get("BITPAGERD") or bitpager._lib.program_path("bitpagerd")
    command = [os.path.join(os.path.dirname(program), "bitpager"), "status", "--json", "--socket", told["socket"]]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    for device in (*told["devices"], *shown["devices"]):
        del device["memory_free_bytes"], device["pressure_ratio"]  # the machine's, which changes meanwhile
    assert told.keys() == shown.keys() and told["jobs"] == shown["jobs"] and told["devices"] == shown["devices"]
    assert telemetry.status()["pid"] == told["pid"], "the default session's daemon"
    del optimizer


def test_a_long_reply_comes_whole(make_daemon):
    daemon = make_daemon("--device", "cpu", "--device-budget", "8MiB", *FLAGS[4:])
    with contextlib.ExitStack() as stack:
        for index in range(40):
            stack.enter_context(bitpager.connect(socket=daemon.socket, job=f"j{index}", linger=0, default=False))
        told = telemetry.status(socket=daemon.socket)
    assert len(told["jobs"]) == 40 and len(json.dumps(told)) > 20_000


def test_nobody_there_is_said_with_the_places(tmp_path, monkeypatch):
    bitpager.disconnect()
    monkeypatch.delenv("BITPAGER_SOCKET", raising=False)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    (runtime / "bitpager").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with pytest.raises(bitpager.UnreachableError, match="private.sock"):
        telemetry.status()
    with pytest.raises(bitpager.UnreachableError, match="none.sock"):
        telemetry.status(socket=tmp_path / "none.sock")
    monkeypatch.setenv("BITPAGER_SOCKET", str(tmp_path / "named.sock"))
    with pytest.raises(bitpager.UnreachableError, match="named.sock"):
        telemetry.status()


GREETING = _zmtp._GREETING
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


@pytest.mark.parametrize("said, words", (
    (b"", "closed the connection"),
    (b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 64, "ZMTP"),
    (GREETING.replace(b"NULL", b"CURV"), "security mechanism"),
    (GREETING + b"\x04\x06\x05ERROR", "refuses the handshake"),
    (GREETING + READY + b"\x02" + struct.pack(">Q", 1 << 60), "a frame has"),
    (GREETING + READY + b"\x00\x05hello", "Expecting value"),
    (GREETING + READY + b"\x00\x03" + b"\xff\xfe\xfd", "codec"),
    (GREETING + READY + b"\x00\x02[]", "cannot be read"),
    (GREETING + READY + b"\x00\x16" + b'{"schema_version": 99}', "cannot be read"),
    (GREETING + READY + b"\x00\x40nothing more comes", "in time|timed out"),
), ids=lambda value: value if isinstance(value, str) else "")
def test_a_peer_that_is_not_the_daemon_cannot_confuse_it(tmp_path, said, words):
    path = tmp_path / "s.status"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        over = threading.Event()

        def serve():
            line, _ = listener.accept()
            with line:
                line.settimeout(5)
                line.recv(64)
                line.sendall(said)
                if words == "closed the connection":
                    return
                over.wait(10)

        server = threading.Thread(target=serve)
        server.start()
        begun = time.monotonic()
        with pytest.raises(bitpager.Error, match=words):
            telemetry.status(socket=tmp_path / "s", timeout=1)
        assert time.monotonic() - begun < 8
        over.set()
        server.join()


class Board:
    """In the manner of SummaryWriter."""

    def __init__(self):
        self.calls = []

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.calls.append((tag, scalar_value, global_step))


def test_scalars_are_the_job_s_and_rates_are_since_the_last_call(small):
    _, optimizer = train(small, 2_000_000)
    scalars = telemetry.Scalars(prefix="m/")
    begun = time.monotonic()
    first = scalars()
    assert first.keys() == {f"m/{key}" for key in telemetry.SCALARS if "_per_s" not in key and key != "stall_ratio"}
    stats = bitpager.memory_stats()
    assert first["m/resident_bytes"] == stats["resident_bytes"] <= 1 << 20
    assert first["m/resident_ratio"] == stats["resident_bytes"] / stats["state_bytes"] < 1
    optimizer.step()
    moved = bitpager.memory_stats()["loaded_bytes"] - stats["loaded_bytes"]
    second = scalars()
    assert second.keys() == {f"m/{key}" for key in telemetry.SCALARS}
    assert second["m/to_device_bytes_per_s"] >= moved / (time.monotonic() - begun) > 0
    assert second["m/to_host_bytes_per_s"] > 0 and second["m/stall_ratio"] >= 0
    assert optimizer is not None


def test_a_new_session_starts_new_rates(small):
    _, optimizer = train(small, 2_000_000, steps=2)
    scalars = telemetry.Scalars(prefix="")
    assert "stall_ratio" not in scalars() and "stall_ratio" in scalars()
    path = small.info()["socket"]
    del optimizer
    bitpager.disconnect()
    bitpager.connect(socket=path, job="again", linger=0)
    assert "stall_ratio" not in scalars(), "counters of another job are no rates"


def test_loggers_of_both_kinds_are_written_to(small):
    board, said = Board(), []
    each = telemetry.log_memory(board, every=2)
    method = telemetry.log_memory(board.add_scalar, prefix="again/")
    together = telemetry.log_memory(lambda figures, step: said.append((step, figures)))
    for step in range(3):
        for log in (each, method, together):
            log(step)
    steps = {step for tag, _, step in board.calls if tag.startswith("bitpager/")}
    assert steps == {0, 2} and {step for tag, _, step in board.calls if tag.startswith("again/")} == {0, 1, 2}
    assert ("bitpager/resident_bytes", 0, 0) in board.calls
    assert [step for step, _ in said] == [0, 1, 2] and said[2][1].keys() == {f"bitpager/{k}" for k in telemetry.SCALARS}
    with pytest.raises(TypeError, match="no logger"):
        telemetry.log_memory(object())
    with pytest.raises(ValueError, match="every"):
        telemetry.log_memory(board, every=0)


def test_tensorboard_takes_them(small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log = telemetry.log_memory(writer)
        log(0)
        log(7)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert {f"bitpager/{name}" for name in telemetry.SCALARS} <= set(found.Tags()["scalars"])
    assert [entry.step for entry in found.Scalars("bitpager/host_bytes")] == [0, 7]


def test_lightning_takes_them(small):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 64)

        def training_step(self, batch, _):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            return bitpager.optim.PagedAdamW8bit(self.parameters())

    class Logger(lightning.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.said = {}

        def log_metrics(self, metrics, step=None):
            if "bitpager/host_bytes" in metrics:
                assert step not in self.said
                self.said[step] = metrics

    logger = Logger()
    trainer = lightning.Trainer(
        max_steps=6,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[telemetry.lightning_callback(every=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(32, 64)), batch_size=2)
    trainer.fit(Model(), data)
    assert list(logger.said) == [0, 2, 4, 6] or list(logger.said) == [2, 4, 6]
    assert logger.said[6]["bitpager/resident_bytes"] > 0 and "bitpager/stall_ratio" in logger.said[6]
