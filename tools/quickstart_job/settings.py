"""What the quickstart's jobs do, in one place: sizes, steps, learning rates, budgets. Constant."""

from __future__ import annotations

PAGE_BYTES = 16 << 10
WINDOW_PAGES = 8
DEVICE_BUDGET = "12MiB"  # both jobs together hold about 34 MiB of pages
HOST_BUDGET = "256MiB"
ROOMY_BUDGET = "256MiB"  # everything resident

SEED = 20
BATCH = 4
CONTEXT = 64

FULL_STEPS = 140
FULL_LR_BLOCKS = 3e-4
FULL_LR_ENDS = 3e-3  # embeddings, last norm and head
BASE_STEP = 40  # the model as it is after this step becomes the frozen base of the second job

QLORA_STEPS = 100
QLORA_LR = 3e-3
RANK = 16
ALPHA = 32.0

WARMUP_STEPS = 10
HELDOUT_WINDOWS = 32
HELDOUT_EVERY = 20
QUALITY_BATCHES = 4  # of HELDOUT_WINDOWS, for the perplexities in 16 and in 4 bits
MOST_PERPLEXITY = 1.01  # of the decoder in NF4, over that in bfloat16

LEAST_FALL = 0.30  # of the held-out loss, under its first value
LEAST_PAGES = 200  # of each job
MOST_RESIDENT = 0.45  # budget over all pages


def decay(step: int, steps: int) -> float:
    """Factor of the learning rate at step 0, 1 ...: linear warm-up, then linear down to a tenth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - 0.9 * step / steps)
