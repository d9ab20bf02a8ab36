"""Lightning: optimizers of configure_optimizers under accumulation, clipping, bf16 and schedulers; checkpoints that go
on bit for bit; parameters that are unfrozen while a run is under way."""

from __future__ import annotations

import importlib.util
import logging
import pathlib
import warnings

import bitpager
import pytest
import torch

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples" / "lightning_module.py"
_spec = importlib.util.spec_from_file_location("lightning_example", EXAMPLE)
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)


@pytest.fixture
def default(daemon):
    """`daemon`'s session as the default one."""
    bitpager.optim.GlobalOptimManager.get_instance().initialize()
    return bitpager.connect(socket=daemon.socket, job="lightning", linger=0)


@pytest.fixture(autouse=True)
def quiet():
    """Lightning recommends more workers, and a logger; threads would only wait for each other."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    torch.set_num_threads(threads)


def fit(model, folder, steps, resume=None, batches=64, **changes):
    said = dict(accumulate_grad_batches=2, gradient_clip_val=0.5, precision="bf16-mixed")
    said.update(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(default_root_dir=str(folder), accelerator="cpu", max_steps=steps, **{**said, **changes})
    trainer.fit(model, example.batches(batches), ckpt_path=resume)
    return trainer


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one, two):
    assert one.keys() == two.keys() and one
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("clip", ("norm", "value"))
def test_equals_the_loop_by_hand(default, tmp_path, clip):
    """The optimizer under Lightning's closures, accumulation, clipping and bf16 steps as in a plain loop."""
    model = example.Regression()
    start = trained(model)
    trainer = fit(model, tmp_path, 6, gradient_clip_algorithm=clip)
    assert type(trainer.optimizers[0]) is bitpager.optim.PagedAdamW8bit and trainer.global_step == 6

    plain = example.Regression()
    same(trained(plain), start)
    made = plain.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    plain.log = lambda *_: None
    batches = iter(example.batches())
    for _ in range(6):
        optimizer.zero_grad()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = plain.training_step(next(batches), 0)
            (loss / 2).backward()
        parameters = [p for p in plain.parameters() if p.requires_grad]
        if clip == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        else:
            torch.nn.utils.clip_grad_value_(parameters, 0.5)
        optimizer.step()
        schedule.step()
    same(trained(model), trained(plain))
    assert not torch.equal(trained(model)["model.3.weight"], start["model.3.weight"])


def test_a_checkpoint_goes_on_bit_for_bit(default, tmp_path):
    """Of the end of an epoch: within one, Lightning starts the data anew unless its loader has a state."""
    whole = example.Regression()
    fit(whole, tmp_path, -1, batches=8, max_epochs=2)
    half = example.Regression()
    fit(half, tmp_path, -1, batches=8, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    state = saved["optimizer_states"][0]["state"]
    assert all(entry["step"] == 4 for entry in state.values()) and "model.0.layer.weight.absmax" in saved["state_dict"]
    socket = default.info()["socket"]
    del half
    bitpager.disconnect()  # nothing of the first run is left in the daemon
    bitpager.connect(socket=socket, job="again", linger=0)
    again = example.Regression()
    with torch.no_grad():
        again.model[3].weight.add_(1)
    trainer = fit(again, tmp_path, -1, resume=str(tmp_path / "half.ckpt"), batches=8, max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 0.9 * 8 / 100))
    same(trained(again), trained(whole))


@pytest.mark.parametrize("precision", ("32-true", "bf16-true"))
def test_precisions(default, tmp_path, precision):
    model = example.Regression()
    before = model.model[0].layer.weight.packed()
    trainer = fit(model, tmp_path, 30, precision=precision, accumulate_grad_batches=1)
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert model.model[3].weight.dtype == wanted
    assert torch.equal(model.model[0].layer.weight.packed(), before)
    assert trainer.callback_metrics["loss"] < 0.69


class Unfreeze(lightning.Callback):
    """The head first; the rest joins after two steps."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 2 and len(trainer.optimizers[0].param_groups) == 1:
            late = [p for name, p in module.named_parameters() if ".down" in name or ".up" in name]
            for p in late:
                p.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": late, "lr": 1e-3})


def test_parameters_that_join_later(default, tmp_path):
    model = example.Regression()
    for name, p in model.named_parameters():
        if ".down" in name or ".up" in name:
            p.requires_grad_(False)
    model.configure_optimizers = lambda: bitpager.optim.PagedAdamW8bit(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    before = model.model[0].up.weight.detach().clone()
    trainer = fit(model, tmp_path, 5, accumulate_grad_batches=1)  # without it nothing of that moves
    assert torch.equal(model.model[0].up.weight, before)
    trainer = fit(model, tmp_path, 5, accumulate_grad_batches=1, callbacks=[Unfreeze()])
    steps = [trainer.optimizers[0].state[p]["step"] for p in (model.model[3].weight, model.model[0].up.weight)]
    assert steps == [5, 3] and not torch.equal(model.model[0].up.weight, before)


def test_nan_names_the_parameter(default, tmp_path):
    model = example.Regression()
    model.model[3].bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(bitpager.NonFiniteError, match=r"step 1: .*model\.3\.bias"):
        fit(model, tmp_path, 2, gradient_clip_val=None)


def test_the_example_runs_and_goes_on(default, tmp_path, capsys):
    first = example.main([str(tmp_path), "--steps", "4"])
    again = example.main([str(tmp_path), "--steps", "30", "--resume", str(tmp_path / "last.ckpt")])
    assert again < first and "job lightning" in capsys.readouterr().out
