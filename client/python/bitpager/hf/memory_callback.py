"""This job's memory among what transformers' Trainer logs."""

from __future__ import annotations

import transformers

from .. import telemetry


class MemoryCallback(transformers.TrainerCallback):
    """Puts `bitpager/...` scalars (telemetry.SCALARS) into everything that Trainer logs, at its logging_steps: so into
    TensorBoard, Weights & Biases, whatever report_to names, and trainer.state.log_history.

        Trainer(model, args, callbacks=[MemoryCallback()])      # bitpager.hf.Trainer, SFTTrainer
        MemoryCallback().attach(trainer)                        # any other Trainer

    Trainer hands its logs to its reporters before it hands them to callbacks that a user adds; attach() and our
    Trainers put this one in front. Only the process that reports (world rank zero) reads. device: as in
    bitpager.memory_stats."""

    def __init__(self, device=None, prefix="bitpager/"):
        self._scalars = telemetry.Scalars(device, prefix)

    def attach(self, trainer):
        """Adds this callback to `trainer`, in front of its reporters; returns the trainer."""
        handler = trainer.callback_handler
        if self not in handler.callbacks:
            trainer.add_callback(self)
        put_first(handler)
        return trainer

    def on_log(self, args, state, control, logs=None, **_):
        """Adds the scalars to `logs`, and to the entry that Trainer has made of them in log_history."""
        if logs is None or not state.is_world_process_zero:
            return
        figures = self._scalars()
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)


def put_first(handler) -> None:
    """Moves every MemoryCallback of a CallbackHandler to its front; the order of the others stays."""
    handler.callbacks.sort(key=lambda callback: not isinstance(callback, MemoryCallback))
