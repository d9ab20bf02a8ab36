"""TrainingArguments.optim read as ours: "paged_adamw_8bit" and its family give bitpager's optimizers."""

from __future__ import annotations

import functools

import torch

from .. import errors, optim
from . import room
from .by_name import config_of, said_dtype
from .memory_callback import put_first

# Strings of transformers' OptimizerNames that mean bitsandbytes there.
_CLASSES = {
    "adamw_bnb_8bit": optim.AdamW8bit,
    "adamw_8bit": optim.AdamW8bit,
    "paged_adamw_8bit": optim.PagedAdamW8bit,
    "paged_adamw_32bit": optim.PagedAdamW32bit,
    "lion_8bit": optim.Lion8bit,
    "lion_32bit": optim.Lion32bit,
    "paged_lion_8bit": optim.PagedLion8bit,
    "paged_lion_32bit": optim.PagedLion32bit,
}
_NOT_YET = ("ademamix", "rmsprop_bnb")


def optimizer(args, **keywords):
    """(class, keywords) for the optim string of TrainingArguments `args`, with its learning rate, betas and eps:

        Trainer(model, args, optimizer_cls_and_kwargs=bitpager.hf.optimizer(args))

    keywords: more of the class's own (name, on_nonfinite ...). UnsupportedError for members of the family that are not
    there yet, ValueError for strings that are not of the family."""
    name = str(getattr(args.optim, "value", args.optim))
    if name.startswith(_NOT_YET) or name.removeprefix("paged_").startswith(_NOT_YET):
        raise errors.UnsupportedError(
            f"optim={name!r} is not there yet; there are {', '.join(_CLASSES)}. Hint: transformers.Trainer takes "
            "bitsandbytes' where that is installed.",
            45,
            "UNSUPPORTED",
        )
    if name not in _CLASSES:
        raise ValueError(f"optim={name!r} is not an optimizer of bitpager; these are: {', '.join(_CLASSES)}")
    made = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
    if issubclass(_CLASSES[name], optim.Adam):
        made["eps"] = args.adam_epsilon
    return _CLASSES[name], {**made, **keywords}


def is_ours(args) -> bool:
    """True when the optim string belongs to the family, present or not yet."""
    name = str(getattr(args.optim, "value", args.optim))
    return name in _CLASSES or name.removeprefix("paged_").startswith(_NOT_YET)


@functools.cache
def with_optimizers(trainer: type) -> type:
    """A subclass of `trainer` (transformers.Trainer or one of its kind) of the same name, in which the optim strings
    "paged_adamw_8bit", "adamw_8bit", "lion_8bit" ... make bitpager's optimizers; other strings mean what they did.

    As in transformers, embeddings that train keep 32-bit states under an 8-bit optimizer. Errors name parameters as the
    model does; what torch says when its memory ran out says too what would help, in bytes. Trainers of TRL load a
    model by name, with our quantization and no dtype, in that of the training (bf16, fp16) and not in float32."""

    @functools.wraps(trainer.__init__)
    def __init__(self, *arguments, **keywords):
        given = {**keywords, **dict(zip(("model", "args"), arguments))}
        model, quantization = given.get("model"), given.get("quantization_config")
        args = config_of(trainer, model, given.get("args"), quantization)
        if args is not given.get("args") and len(arguments) > 1:
            arguments = (model, args, *arguments[2:])
        elif args is not given.get("args"):
            keywords["args"] = args
        with said_dtype(model, args, quantization):
            trainer.__init__(self, *arguments, **keywords)
        _warn_of_products(self.model, self.args)

    def get_optimizer_cls_and_kwargs(args, model=None):
        """(class, keywords) of args.optim."""
        return optimizer(args) if is_ours(args) else trainer.get_optimizer_cls_and_kwargs(args, model)

    def create_optimizer(self, *arguments, **keywords):
        """As the base's."""
        fresh = self.optimizer is None
        made = trainer.create_optimizer(self, *arguments, **keywords)
        if fresh and isinstance(made, optim.BlockOptimizer):
            _keep_embeddings_wide(self.model)
        if isinstance(made, optim.BlockOptimizer):
            made.name_parameters(self.model.named_parameters())
        return made

    def training_step(self, model, *arguments, **keywords):
        """As the base's."""
        with room.explained(self.model):
            loss = trainer.training_step(self, model, *arguments, **keywords)
        made = getattr(self.optimizer, "optimizer", self.optimizer)  # as Accelerate wraps it
        if isinstance(made, optim.BlockOptimizer) and self.accelerator.sync_gradients:
            made.note_gradients()  # what comes next clips
        return loss

    def add_callback(self, callback):
        """As the base's; a MemoryCallback goes in front of the reporters."""
        trainer.add_callback(self, callback)
        put_first(self.callback_handler)

    return type(
        trainer.__name__,
        (trainer,),
        {
            "__init__": __init__,
            "add_callback": add_callback,
            "get_optimizer_cls_and_kwargs": staticmethod(get_optimizer_cls_and_kwargs),
            "create_optimizer": create_optimizer,
            "training_step": training_step,
            "__doc__": f"{trainer.__module__}.{trainer.__name__} whose optim strings make bitpager's optimizers.",
            "__module__": __name__,
            "_tag_names": list(getattr(trainer, "_tag_names", [])),
        },
    )


def _warn_of_products(model, args) -> None:
    if (args.bf16 or args.fp16) and {layer.compute_dtype for layer in room.layers_of(model)} == {torch.float32}:
        room.warn_of_float32(model, f"under {'bf16' if args.bf16 else 'fp16'}=True")


def _keep_embeddings_wide(model) -> None:
    manager = optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.requires_grad:
            manager.register_module_override(module, "weight", {"optim_bits": 32})
