"""MemoryCallback: the figures reach whatever the Trainer reports to, and its history."""

from __future__ import annotations

import pytest
import tiny
import transformers
from transformers import TrainerCallback

pytest.importorskip("accelerate")
import bitpager  # noqa: E402
from bitpager import telemetry  # noqa: E402
from bitpager.hf import MemoryCallback  # noqa: E402

NAMES = {f"bitpager/{name}" for name in telemetry.SCALARS}


class Reporter(TrainerCallback):
    """Stands where TensorBoardCallback and WandbCallback do: before what the user adds."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen.append((state.global_step, dict(logs)))


def arguments(folder, **changes):
    said = dict(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=4, logging_steps=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, optim="paged_adamw_8bit",
    )
    return transformers.TrainingArguments(**{**said, **changes})


def trained(trainer):
    """What the Reporter in front was told."""
    reporter = Reporter()
    trainer.callback_handler.callbacks.insert(1, reporter)
    trainer.train()
    return reporter.seen


def test_our_trainer_reports_them(session, tmp_path):
    data = tiny.Windows(8, 16)
    trainer = bitpager.hf.Trainer(
        tiny.make("llama"), arguments(tmp_path), train_dataset=data, callbacks=[MemoryCallback()]
    )
    seen = trained(trainer)
    assert [step for step, _ in seen] == [2, 4, 4]
    first, second, end = (logs for _, logs in seen)
    assert "loss" in first and first["bitpager/resident_bytes"] > 0 and NAMES <= second.keys()
    assert "train_runtime" in end and end["bitpager/host_bytes"] == session.memory_stats()["host_bytes"]
    for entry, (_, logs) in zip(trainer.state.log_history, seen):
        assert {key: entry[key] for key in logs} == logs, "the history holds what was reported"


def test_any_trainer_reports_them_when_attached(session, tmp_path):
    trainer = transformers.Trainer(
        tiny.make("llama"),
        arguments(tmp_path, optim="adamw_torch"),
        train_dataset=tiny.Windows(8, 16),
        optimizer_cls_and_kwargs=bitpager.hf.optimizer(arguments(tmp_path)),
    )
    callback = MemoryCallback(prefix="mem/")
    assert callback.attach(callback.attach(trainer)) is trainer
    assert trainer.callback_handler.callbacks[0] is callback
    assert sum(one is callback for one in trainer.callback_handler.callbacks) == 1
    assert all("mem/resident_bytes" in logs for _, logs in trained(trainer))


def test_processes_that_do_not_report_do_not_ask(session, tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry.memory, "memory_stats", lambda device: pytest.fail("asked"))
    state = transformers.TrainerState(is_world_process_zero=False)
    logs = {"loss": 1.0}
    MemoryCallback().on_log(arguments(tmp_path), state, transformers.TrainerControl(), logs=logs)
    assert logs == {"loss": 1.0}
    state.is_world_process_zero = True
    with pytest.raises(pytest.fail.Exception):
        MemoryCallback().on_log(arguments(tmp_path), state, transformers.TrainerControl(), logs=logs)


def test_tensorboard_receives_them_by_the_trainer(session, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "runs"
    import os

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    try:
        trainer = bitpager.hf.Trainer(
            tiny.make("llama"),
            arguments(tmp_path, report_to=["tensorboard"]),
            train_dataset=tiny.Windows(8, 16),
            callbacks=[MemoryCallback],
        )
        trainer.train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    places = [path.parent for path in tmp_path.rglob("events.out.*")]
    found = EventAccumulator(str(places[0]))
    found.Reload()
    assert {f"train/{name}" for name in NAMES} <= set(found.Tags()["scalars"])
