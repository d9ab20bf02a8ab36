"""The benchmarks' entry: see tools/bench, which sets up and calls this.

Every figure is the client's wall time through a daemon of its own, with fresh gradients and cold caches, median.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GROUPS = ("cpu", "latency", "paging")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measures bitpager on this machine.")
    parser.add_argument("groups", nargs="+", metavar="GROUP", choices=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--bin", type=Path, default=ROOT / ".venv" / "bin", help="folder with bitpagerd")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", help="folder with bitsandbytes")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    sys.path.insert(0, str(HERE.parent))
    import importlib

    import torch
    from machine import Setting, load_peer, memory_ceiling
    from rows import print_table, write_json

    logs = ROOT / "build" / "log"
    logs.mkdir(parents=True, exist_ok=True)
    setting = Setting(arguments.bin, logs, memory_ceiling(), load_peer(arguments.peers))
    print(f"{torch.get_num_threads()} threads; memory ceiling {setting.ceiling / 1e9:.1f} GB/s, read and written")
    print("ours: wall time of the client through the daemon, fresh gradients, cold caches, median; less is better")
    rows = []
    for group in dict.fromkeys(arguments.groups):
        group_rows = importlib.import_module(group).run(setting)
        print_table(group, group_rows)
        rows += group_rows
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
