"""Tiny models of four architectures, a byte-level tokenizer, and text: Python's own sources."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
import transformers

BYTES = 256  # then pad, end


def config(name, **changes):
    """A transformers config of about a hundred thousand parameters."""
    size = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4)
    decoder = dict(size, num_key_value_heads=2, vocab_size=BYTES + 2, max_position_embeddings=256)
    decoder.update(pad_token_id=BYTES, bos_token_id=BYTES + 1, eos_token_id=BYTES + 1)
    if name == "llama":
        return transformers.LlamaConfig(**{**decoder, **changes})
    if name == "mistral":
        return transformers.MistralConfig(**{**decoder, "sliding_window": 64, **changes})
    if name == "mixtral":
        return transformers.MixtralConfig(**{**decoder, "num_local_experts": 4, **changes})
    if name == "bert":
        return transformers.BertConfig(**{**size, "vocab_size": BYTES + 2, "max_position_embeddings": 128, **changes})
    if name == "gpt2":
        return transformers.GPT2Config(vocab_size=BYTES + 2, n_embd=64, n_layer=2, n_head=4, n_positions=128, **changes)
    assert name == "t5"
    t5 = dict(vocab_size=BYTES + 2, d_model=64, d_ff=128, d_kv=16, num_layers=2, num_heads=4)
    t5.update(pad_token_id=BYTES, eos_token_id=BYTES + 1, decoder_start_token_id=BYTES, feed_forward_proj="gated-gelu")
    return transformers.T5Config(**{**t5, **changes})


CLASSES = {
    "llama": transformers.AutoModelForCausalLM,
    "mistral": transformers.AutoModelForCausalLM,
    "mixtral": transformers.AutoModelForCausalLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModelForSequenceClassification,
    "t5": transformers.AutoModelForSeq2SeqLM,
}


def make(name, dtype=torch.bfloat16, **changes):
    """A model with fixed random weights, spread widely enough that its outputs differ from token to token."""
    torch.manual_seed(7)
    model = CLASSES[name].from_config(config(name, **changes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    return model.eval()


def save(name, folder, dtype=torch.bfloat16, **changes):
    """make() into `folder`, with the tokenizer beside it."""
    make(name, dtype, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer():
    """One token a byte: no file is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    vocabulary.update({"<pad>": BYTES, "<end>": BYTES + 1})
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", model_max_length=256
    )


def windows(count, length, skip=0):
    """[count, length] bytes of Python's own sources, from the file number `skip` on."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    raw = b""
    for path in files[skip:]:
        raw += path.read_bytes()
        if len(raw) >= count * length:
            return torch.frombuffer(bytearray(raw[: count * length]), dtype=torch.uint8).long().view(count, length)
    raise RuntimeError("the standard library's sources are too short")


class Windows(torch.utils.data.Dataset):
    """For Trainer: every window is input and label."""

    def __init__(self, count=64, length=48, skip=0):
        self.rows = windows(count, length, skip)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def inputs(name, batch=2, length=12):
    """Keyword arguments of a forward pass."""
    torch.manual_seed(3)
    tokens = torch.randint(0, BYTES, (batch, length))
    made = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if name == "t5":
        made["decoder_input_ids"] = tokens[:, :5]
    return made
