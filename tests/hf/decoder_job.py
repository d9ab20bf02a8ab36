"""The quickstart's decoder, trained for a part of its steps, in bfloat16 and in 4 bits: for test_decoder_quality, in a
process of its own, since training settles torch's threads and seeds. Writes what it found to OUT as JSON.

usage: decoder_job.py SOCKET STEPS OUT
"""

from __future__ import annotations

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "quickstart_job"))

import bitpager
import quality
import settings
import text
from full import optimizer_of
from model import ByteModel, Shape
from trainer import settle, train

socket, steps, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
settle(settings.SEED)
session = bitpager.connect(socket=socket, job="decoder", spawn=False)
model = ByteModel(Shape(context=settings.CONTEXT))
optimizer = optimizer_of(model, session)
words = text.code()
outcome = train(model, optimizer, words, steps, lambda step: None)
settings.QUALITY_BATCHES = 2  # of four: products in bfloat16 take long on a processor
found = quality.perplexities(model, words.heldout, session)
found.update(heldout=outcome.heldout, unigram=text.unigram_entropy(words.heldout), most=settings.MOST_PERPLEXITY)
pathlib.Path(out).write_text(json.dumps(found))
