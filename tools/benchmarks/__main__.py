"""The benchmarks' entry: see tools/bench, which sets up and calls this.

Every figure is the client's wall time through a daemon of its own, with fresh gradients and cold caches, median.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GROUPS = ("cpu", "latency", "paging", "telemetry")
GPU_GROUPS = ("gpu-step", "gpu-paged", "gpu-quant", "gpu-train", "gpu-oom")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measures bitpager on this machine.")
    parser.add_argument(
        "groups", nargs="+", metavar="GROUP", choices=GROUPS + GPU_GROUPS, help=", ".join(GROUPS + GPU_GROUPS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--bin", type=Path, default=ROOT / ".venv" / "bin", help="folder with bitpagerd")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", help="folder with bitsandbytes")
    parser.add_argument("--quick", action="store_true", help="GPU groups: fewer repeats")
    parser.add_argument("--mps", action="store_true", help="GPU groups: under an MPS daemon of this run's own")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="GPU groups: sections with TEXT in their name, and the ceilings"
    )
    parser.add_argument("--tiny-cpu", action="store_true", help=argparse.SUPPRESS)  # see gpu_machine.Bench
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    sys.path.insert(0, str(HERE.parent))
    logs = ROOT / "build" / "log"
    logs.mkdir(parents=True, exist_ok=True)
    groups = list(dict.fromkeys(arguments.groups))
    rows = []
    # The GPU's groups first: they fork, which must come before anything here touches CUDA.
    for group in [group for group in groups if group in GPU_GROUPS]:
        rows += run_gpu_group(group, arguments, logs, list(rows))
    groups = [group for group in groups if group in GROUPS]
    if groups:
        rows += run_cpu_groups(groups, arguments, logs)
    if arguments.json:
        from rows import write_json

        write_json(arguments.json, rows)
    return 0


def run_gpu_group(group: str, arguments: argparse.Namespace, logs: Path, before: list) -> list:
    import gpu_run
    from rows import print_table, write_json

    def keep(rows: list) -> None:
        if arguments.json:
            write_json(arguments.json, before + rows)

    bench = gpu_run.bench_of(arguments.bin, logs, arguments.peers, arguments.quick, arguments.mps, arguments.tiny_cpu)
    rows = gpu_run.run(group, bench, keep, arguments.only)
    print_table(group, rows)
    return rows


def run_cpu_groups(groups: list[str], arguments: argparse.Namespace, logs: Path) -> list:
    import importlib

    import torch
    from machine import Setting, load_peer, memory_ceiling
    from rows import print_table

    setting = Setting(arguments.bin, logs, memory_ceiling(), load_peer(arguments.peers))
    print(f"{torch.get_num_threads()} threads; memory ceiling {setting.ceiling / 1e9:.1f} GB/s, read and written")
    print("ours: wall time of the client through the daemon, fresh gradients, cold caches, median; less is better")
    rows = []
    for group in groups:
        group_rows = importlib.import_module(group).run(setting)
        print_table(group, group_rows)
        rows += group_rows
    return rows


if __name__ == "__main__":
    sys.exit(main())
