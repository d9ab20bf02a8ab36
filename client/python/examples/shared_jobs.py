"""Two training jobs, each a process of its own, under one daemon: one budget, two names, and numbers that do not
depend on who else is there.

    python shared_jobs.py [--steps 30] [--width 256] [--budget 1MiB]

Starts a bitpagerd with a device budget too small for both jobs' states, trains two models at once, then the first one
alone, and compares bits. Needs only bitpager.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

import bitpager
import torch
from bitpager import _lib


def train(job, socket, steps, width):
    """One job. Returns its parameters and what the daemon counted."""
    torch.set_num_threads(1)
    torch.manual_seed(sum(map(ord, job)))
    session = bitpager.connect(socket=socket, job=job, default=False)
    model = torch.nn.Sequential(torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width))
    optimizer = bitpager.optim.PagedAdamW8bit(model.named_parameters(), lr=1e-3, session=session)
    for step in range(steps):
        x = torch.randn(16, width, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = {"parameters": model.state_dict(), "stats": session.memory_stats()}
    session.close()
    return made


def at_once(jobs, socket, folder, said):
    """Trains these jobs, each in a process; their results by name."""
    paths = {job: os.path.join(folder, f"{job}.pt") for job in jobs}
    settings = [socket, str(said.steps), str(said.width)]
    processes = [
        subprocess.Popen([sys.executable, __file__, "--job", job, path, *settings]) for job, path in paths.items()
    ]
    if any([process.wait() for process in processes]):
        raise RuntimeError("a job failed; see above")
    return {job: torch.load(path, weights_only=True) for job, path in paths.items()}


def main(arguments=None):
    """Returns what was printed as a dict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--budget", default="1MiB")
    said = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jobs-") as folder:
        socket = os.path.join(folder, "d.sock")
        program = os.environ.get("BITPAGERD") or str(_lib.program_path("bitpagerd"))
        flags = ["--device-budget", said.budget, "--host-budget", "1GiB", "--page-size", "16KiB", "--window-pages", "4"]
        flags += ["--device", "cpu", "--log-level", "warn"]
        subprocess.run([program, "--socket", socket, *flags, "--background"], check=True)
        try:
            both = at_once(("first", "second"), socket, folder, said)
            alone = train("first", socket, said.steps, said.width)
        finally:
            subprocess.run([_lib.program_path("bitpager"), "drain", "--socket", socket], stdout=subprocess.DEVNULL)
    equal = all(torch.equal(value, alone["parameters"][key]) for key, value in both["first"]["parameters"].items())
    names = ("state_bytes", "resident_state_bytes", "loaded_bytes", "stored_bytes")
    report = {job: {name: made["stats"][name] for name in names} for job, made in both.items()}
    report["equal to a run alone, bit for bit"] = equal
    print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job, out, socket, steps, width = sys.argv[2:]
        torch.save(train(job, socket, int(steps), int(width)), out)
    else:
        main()
