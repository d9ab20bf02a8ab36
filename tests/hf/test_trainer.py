"""Trainer and SFTTrainer: optimizers by string, class and instance; runs that go on bit for bit; a whole path."""

from __future__ import annotations

import contextlib
import functools
import glob
import math
import pathlib
import warnings

import guide
import pytest
import tiny
import torch
import transformers

pytest.importorskip("accelerate")
pytest.importorskip("peft")
import bitpager  # noqa: E402
import peft  # noqa: E402
from bitpager.hf import BitpagerConfig, Trainer, optimizer  # noqa: E402
from bitpager.nn import Linear4bit  # noqa: E402


def arguments(folder, **changes):
    said = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=11,
    )
    return transformers.TrainingArguments(**{**said, **changes})


def lora_model(folder, dropout=0.05):
    """Equal at each call."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitpagerConfig(), dtype=torch.bfloat16, device_map="auto"
    )
    model = peft.prepare_model_for_kbit_training(model)
    torch.manual_seed(2)
    config = bitpager.peft.LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same(one, two):
    assert one.keys() == two.keys() and one
    for name in one:
        assert torch.equal(one[name], two[name]), name


def inner(trainer):
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


@pytest.mark.parametrize("name, kind, bits", (
    ("paged_adamw_8bit", "PagedAdamW8bit", 8),
    ("paged_adamw_32bit", "PagedAdamW32bit", 32),
    ("adamw_bnb_8bit", "AdamW8bit", 8),
    ("adamw_8bit", "AdamW8bit", 8),
    ("lion_8bit", "Lion8bit", 8),
    ("lion_32bit", "Lion32bit", 32),
    ("paged_lion_8bit", "PagedLion8bit", 8),
    ("paged_lion_32bit", "PagedLion32bit", 32),
))
def test_optim_strings_make_our_optimizers(session, name, kind, bits, tmp_path):
    model = tiny.make("llama", torch.float32)
    said = arguments(tmp_path, optim=name, adam_beta2=0.98, weight_decay=0.1)
    trainer = Trainer(model, said, train_dataset=tiny.Windows(16))
    made = trainer.create_optimizer()
    assert type(made).__name__ == kind and type(made).__module__.startswith("bitpager.optim")
    decay, plain = made.param_groups
    assert decay["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert decay["lr"] == 1e-3 and tuple(decay["betas"]) == (0.9, 0.98)
    made.prepare()
    states = made.state_dict()["state"]
    kinds = {}
    for index, (parameter) in enumerate(p for g in made.param_groups for p in g["params"]):
        tensors = states.get(index, {}).get("__bnb_optimizer_quant_state__")
        if tensors:
            kinds[parameter] = tensors["state1"].dtype
    wide = model.model.embed_tokens.weight
    assert kinds.get(wide, torch.float32) == torch.float32
    if bits == 8 and kinds:
        assert kinds[model.model.layers[0].mlp.up_proj.weight] == torch.uint8


def test_other_strings_mean_what_they_did(session, tmp_path):
    trainer = Trainer(tiny.make("llama"), arguments(tmp_path, optim="adamw_torch"), train_dataset=tiny.Windows(16))
    assert type(trainer.create_optimizer()) is torch.optim.AdamW
    assert Trainer.__name__ == "Trainer" and issubclass(Trainer, transformers.Trainer)


@pytest.mark.parametrize("name", ("paged_ademamix_8bit", "ademamix", "rmsprop_bnb_8bit"))
def test_what_is_not_there_says_so(tmp_path, name):
    with pytest.raises(bitpager.UnsupportedError, match="not there yet"):
        optimizer(arguments(tmp_path, optim=name))
    with pytest.raises(bitpager.UnsupportedError, match="not there yet"):
        Trainer(tiny.make("llama"), arguments(tmp_path, optim=name), train_dataset=tiny.Windows(8)).create_optimizer()
    with pytest.raises(ValueError, match="not an optimizer of bitpager"):
        optimizer(arguments(tmp_path, optim="adamw_torch"))


@pytest.mark.parametrize("how", ("string", "class", "instance"))
def test_ways_to_pass_an_optimizer_agree(session, models, tmp_path, how):
    """All train the same numbers. The learning rate is constant, as an instance has one of its own."""
    model = lora_model(models("llama"))
    said = arguments(tmp_path, optim="paged_adamw_8bit", weight_decay=0.0)
    data = tiny.Windows(16)
    if how == "string":
        trainer = Trainer(model, said, train_dataset=data)
    elif how == "class":
        trainer = transformers.Trainer(model, said, train_dataset=data, optimizer_cls_and_kwargs=optimizer(said))
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        made = bitpager.optim.PagedAdamW8bit(trained, lr=1e-3, weight_decay=0)
        trainer = transformers.Trainer(model, said, train_dataset=data, optimizers=(made, None))
    trainer.train()
    assert type(inner(trainer)).__name__ == "PagedAdamW8bit"
    seen = test_ways_to_pass_an_optimizer_agree.__dict__.setdefault("seen", {})
    seen[how] = adapters(model)
    same(seen[how], next(iter(seen.values())))


@pytest.mark.parametrize("scheduler, accumulate", (("cosine", 1), ("linear", 2)))
def test_a_run_that_goes_on_equals_an_unbroken_one(session, models, tmp_path, scheduler, accumulate):
    """Dropout, clipping, accumulation, a scheduler and paged 8-bit states: bit for bit."""
    changes = dict(
        optim="paged_adamw_8bit",
        max_steps=6,
        lr_scheduler_type=scheduler,
        warmup_steps=2,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.5,
        save_strategy="steps",
        save_steps=3,
    )
    data = tiny.Windows(64)
    whole = Trainer(lora_model(models("llama"), 0.1), arguments(tmp_path, **changes), train_dataset=data)
    whole.train()
    wanted, history = adapters(whole.model), losses(whole)
    checkpoint = str(tmp_path / "checkpoint-3")
    assert glob.glob(checkpoint + "/optimizer*")
    bitpager.disconnect()  # nothing of the first run is left in the daemon
    bitpager.connect(socket=session_socket(session), job="again", linger=0)
    torch.manual_seed(999)
    again = Trainer(lora_model(models("llama"), 0.1), arguments(tmp_path, **changes), train_dataset=data)
    again.train(resume_from_checkpoint=checkpoint)
    same(adapters(again.model), wanted)
    assert losses(again)[-3:] == history[-3:]


def session_socket(session):
    return session._test_socket


def test_the_whole_path(session, models, tmp_path):
    """Quantized loading, LoRA, Trainer with checkpointing, resume, save, merge: the loss on real text falls."""
    folder = tmp_path / "base"
    base = tiny.make("llama", torch.float32, hidden_size=96, intermediate_size=256)
    pretrain = arguments(tmp_path / "pre", optim="adamw_8bit", max_steps=60, learning_rate=3e-3, logging_steps=60)
    Trainer(base, pretrain, train_dataset=tiny.Windows(256)).train()
    base.to(torch.bfloat16).save_pretrained(folder)
    model = lora_model(str(folder))
    said = arguments(
        tmp_path / "run",
        optim="paged_adamw_8bit",
        max_steps=40,
        learning_rate=5e-3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps",
        save_steps=20,
    )
    trainer = Trainer(model, said, train_dataset=tiny.Windows(256), eval_dataset=tiny.Windows(32, skip=40))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.1 and math.isfinite(after), (before, after)
    again = Trainer(lora_model(str(folder)), said, train_dataset=tiny.Windows(256))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-20"))
    same(adapters(again.model), adapters(model))
    trainer.save_model(tmp_path / "adapter")
    loaded = bitpager.peft.load_adapter(
        transformers.AutoModelForCausalLM.from_pretrained(str(folder), quantization_config=BitpagerConfig()),
        tmp_path / "adapter",
    )
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    final = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert sum(isinstance(m, Linear4bit) for m in final.modules()) == 14
    rows = tiny.windows(32, 48, skip=40)
    with torch.no_grad():
        loss = final(input_ids=rows, labels=rows).loss.item()
    assert loss < before - 0.05, (before, after, loss)


def test_steps_in_backward(session, models):
    """register_post_accumulate_grad_hook with one optimizer a parameter equals the plain loop."""
    rows = tiny.windows(4, 32)
    results = []
    for fused in (False, True):
        model = lora_model(models("llama"), 0.0).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        if fused:
            owners = {p: bitpager.optim.PagedAdamW8bit([p], lr=1e-3) for p in trained}

            def hook(parameter, owners=owners):
                owners[parameter].step()
                owners[parameter].zero_grad()

            for p in trained:
                p.register_post_accumulate_grad_hook(hook)
        else:
            whole = bitpager.optim.PagedAdamW8bit(trained, lr=1e-3)
        for _ in range(3):
            model(input_ids=rows, labels=rows).loss.backward()
            if not fused:
                whole.step()
                whole.zero_grad()
        results.append(adapters(model))
    same(*results)


def test_grad_scaler_clipping_and_rewritten_betas(session, models):
    """A mixed-precision loop by hand: scaled losses, unscaling, clipping, and OneCycleLR, which rewrites betas."""
    rows = tiny.windows(4, 32)
    model = lora_model(models("llama"), 0.0).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    made = bitpager.optim.PagedAdamW8bit(trained, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(made, max_lr=5e-3, total_steps=12)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen = []
    for step in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows).loss
        scaler.scale(loss * (float("inf") if step == 5 else 1.0)).backward()
        scaler.unscale_(made)
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        before = adapters(model)
        scaler.step(made)
        scaler.update()
        if step == 5:
            same(before, adapters(model))
        else:
            assert torch.isfinite(norm)
        made.zero_grad()
        with contextlib.suppress(ValueError):
            schedule.step()
        seen.append((loss.item(), made.param_groups[0]["betas"][0]))
    assert len({beta for _, beta in seen}) > 3 and seen[-1][0] < seen[0][0]
    assert scaler.get_scale() < 1024.0


def test_accelerate_by_hand(session, models, tmp_path):
    """prepare, accumulate, save_state, load_state: the run goes on bit for bit."""
    import accelerate

    rows = tiny.windows(24, 32)
    results = []
    for resumed in (False, True):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = lora_model(models("llama"), 0.0).train()
        made = bitpager.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        model, made = accelerator.prepare(model, made)
        for step in range(12):
            if step == 6 and not resumed:
                accelerator.save_state(str(tmp_path), safe_serialization=False)
            if step < 6 and resumed:
                continue
            if step == 6 and resumed:
                accelerator.load_state(str(tmp_path))
            with accelerator.accumulate(model):
                batch = rows[2 * step : 2 * step + 2]
                accelerator.backward(model(input_ids=batch, labels=batch).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                made.step()
                made.zero_grad()
        results.append(adapters(accelerator.unwrap_model(model)))
    same(*results)


def test_distributed_checkpoint_of_a_quantized_model(session, models, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    rows = tiny.windows(4, 32)

    def step(model, made):
        model(input_ids=rows, labels=rows).loss.backward()
        made.step()
        made.zero_grad()

    first = lora_model(models("llama"), 0.0).train()
    made = bitpager.optim.PagedAdamW8bit([p for p in first.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        step(first, made)
    saved = {"adapters": adapters(first), "optimizer": get_optimizer_state_dict(first, made)}
    dcp.save(saved, checkpoint_id=str(tmp_path), no_dist=True)
    step(first, made)

    second = lora_model(models("llama"), 0.0).train()
    again = bitpager.optim.PagedAdamW8bit([p for p in second.parameters() if p.requires_grad], lr=1e-3)
    step(second, again)  # so that there are states of the right shapes to load into
    state = {"adapters": adapters(second), "optimizer": get_optimizer_state_dict(second, again)}
    dcp.load(state, checkpoint_id=str(tmp_path), no_dist=True)
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["adapters"][name])
    set_optimizer_state_dict(second, again, state["optimizer"])
    step(second, again)
    same(adapters(first), adapters(second))


DATA = {"text": ["one sentence", "and another one"] * 8}


def compute_dtypes(trainer):
    return {m.compute_dtype for m in trainer.model.modules() if isinstance(m, Linear4bit)}


def test_the_guides_sft_snippet_computes_in_16_bits(session, models, tmp_path, monkeypatch):
    """As it is typed there; the stored model may be in float32, which TRL also takes where nothing is said."""
    pytest.importorskip("trl")
    page = guide.Page(pathlib.Path(bitpager.__file__).parents[1] / "docs" / "qlora.md")
    (block,) = (block for block in page.blocks if "hf.SFTTrainer(" in block.code)
    assert "dtype" not in block.code
    monkeypatch.chdir(tmp_path)
    lora = bitpager.peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    for stored in (torch.bfloat16, torch.float32):
        given = dict(bitpager=bitpager, BitpagerConfig=BitpagerConfig, lora=lora, name=models("llama", dtype=stored))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*compute")
            exec(page.substituted(block.code, {}), given)
        assert compute_dtypes(given["sft"]) == {torch.bfloat16}
        assert given["config"].model_init_kwargs is None  # the user's arguments are as they were
        line = bitpager.hf.audit(given["sft"].model, print_lines=False)["compute dtype"]
        assert line.passed and line.text.startswith("bfloat16")


@pytest.mark.parametrize(
    "stored, compute, said, dtype",
    (
        ("float32", None, dict(bf16=True), "bfloat16"),
        ("float32", None, dict(fp16=True, bf16=False), "float16"),
        ("bfloat16", None, dict(fp16=False, bf16=False), "bfloat16"),
        ("bfloat16", None, dict(bf16=True, model_init_kwargs={"dtype": "float16"}), "float16"),
        ("float32", "float16", dict(bf16=True), "float16"),
        ("bfloat16", None, None, "bfloat16"),
        ("float32", None, transformers.TrainingArguments, "bfloat16"),
    ),
)
def test_models_by_name_have_the_dtype_of_the_training(
    session, models, tmp_path, monkeypatch, stored, compute, said, dtype
):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    if said is transformers.TrainingArguments:
        args = said("out", bf16=True, use_cpu=True, report_to=[])
    elif said is None:  # TRL's own arguments, with which it refuses to train where there is no GPU
        args = None
        monkeypatch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, use_cpu=True, report_to=[]))
    else:
        args = trl.SFTConfig("out", use_cpu=True, report_to=[], **said)
    given = dict(args=args, quantization_config=BitpagerConfig(compute_dtype=compute))
    given["peft_config"] = bitpager.peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    folder = models("llama", dtype=getattr(torch, stored))
    given["train_dataset"] = datasets.Dataset.from_dict(DATA)
    if said is transformers.TrainingArguments:  # by place
        trainer = bitpager.hf.SFTTrainer(folder, given.pop("args"), None, **given)
    else:
        trainer = bitpager.hf.SFTTrainer(folder, **given)
    assert compute_dtypes(trainer) == {getattr(torch, dtype)}


def test_float32_products_under_mixed_precision_are_warned_of_once(session, models, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        models("llama"), quantization_config=BitpagerConfig(), dtype=torch.float32
    )
    model = peft.get_peft_model(model, bitpager.peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.warns(UserWarning, match="compute in float32 under bf16=True.*model_init_kwargs"):
        Trainer(model, arguments(tmp_path, bf16=True), train_dataset=tiny.Windows(8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*compute in float32")
        Trainer(model, arguments(tmp_path, bf16=True), train_dataset=tiny.Windows(8))


def test_sft_trainer_from_a_path(session, models, tmp_path):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    import trl
    from bitpager.hf import SFTTrainer

    assert issubclass(SFTTrainer, trl.SFTTrainer)
    text = pathlib.Path(contextlib.__file__).read_text()
    data = datasets.Dataset.from_dict({"text": [text[i : i + 60] for i in range(0, 1920, 60)]})
    said = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        optim="paged_adamw_8bit",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        max_length=64,
        model_init_kwargs={"dtype": "bfloat16", "device_map": "auto"},
    )
    config = bitpager.peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        models("llama"), args=said, train_dataset=data, peft_config=config, quantization_config=BitpagerConfig()
    )
    assert sum(isinstance(m, Linear4bit) for m in trainer.model.modules()) == 14
    trainer.train()
    seen = losses(trainer)
    assert type(inner(trainer)).__name__ == "PagedAdamW8bit" and seen[-1] < seen[0]
