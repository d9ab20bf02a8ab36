"""What NF4 with double quantization costs a trained decoder: the quickstart's, after 40 of its 140 steps."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

JOB = pathlib.Path(__file__).resolve().parent / "decoder_job.py"
STEPS = 40


def test_held_out_perplexity_stays_within_one_percent_of_bfloat16(shared_daemon, tmp_path, capsys):
    out = tmp_path / "found.json"
    command = [sys.executable, str(JOB), shared_daemon.socket, str(STEPS), str(out)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    with capsys.disabled():
        print(
            f"\ndecoder, {STEPS} steps: held-out perplexity {found['bf16']:.3f} in bfloat16, {found['nf4']:.3f} in NF4"
        )
    (_, first), *_, (step, last) = found["heldout"]
    assert step == STEPS and last < found["unigram"] < first  # it has learned more than how often each byte comes
    assert found["most"] == 1.01
    assert found["nf4"] != found["bf16"] and found["nf4"] <= found["most"] * found["bf16"]
