"""The quickstart's main job: two training jobs under one small budget, then the first again with room for all.

usage: python tools/quickstart_job --bin DIR [--logs DIR]

Exits with 0 when every line of the verdict holds, else with 1.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import settings  # noqa: E402
from private_daemon import Daemon  # noqa: E402
from progress import Job, follow  # noqa: E402
from report import table, verdict  # noqa: E402


def parse_size(text: str) -> int:
    return int(text.removesuffix("MiB")) << 20


class Quickstart:
    """One run; files in a folder that goes away with it."""

    def __init__(self, programs: Path, logs: Path, folder: Path):
        self._programs, self._logs, self._folder = programs, logs, folder
        logs.mkdir(parents=True, exist_ok=True)

    def _daemon(self, name: str, budget: str) -> Daemon:
        log = self._logs / f"quickstart-{name}-daemon.log"
        flags = ["--device", "cpu", "--device-budget", budget, "--host-budget", settings.HOST_BUDGET, "--poison-frames"]
        flags += ["--page-size", str(settings.PAGE_BYTES), "--window-pages", str(settings.WINDOW_PAGES)]
        return Daemon(self._programs / "bitpagerd", self._folder / f"{name}.sock", flags, log)

    def _job(self, title: str, script: str, name: str, events: queue.Queue, *arguments: str) -> Job:
        command = [sys.executable, str(HERE / script), *arguments]
        return Job(title, command, self._logs / f"quickstart-{name}.log", events)

    def paged(self) -> tuple[dict, dict]:
        """Both jobs at the same time; the second starts when the first has made its base."""
        base = str(self._folder / "base.pt")
        events: queue.Queue = queue.Queue()
        with self._daemon("paged", settings.DEVICE_BUDGET) as daemon:
            socket = str(daemon.path)
            jobs = [self._job("(a) all parameters", "full.py", "full", events, socket, "full", base)]

            def on_event(_job: Job, kind: str) -> None:
                if kind == "base":
                    jobs.append(self._job("(b) QLoRA, NF4 base", "qlora.py", "qlora", events, socket, "qlora", base))

            follow(jobs, events, on_event)
        return jobs[0].result, jobs[1].result

    def resident(self) -> dict:
        """Job (a) again, alone, with every page resident."""
        events: queue.Queue = queue.Queue()
        with self._daemon("resident", settings.ROOMY_BUDGET) as daemon:
            jobs = [self._job("(a) again, all resident", "full.py", "again", events, str(daemon.path), "full")]
            follow(jobs, events, lambda job, kind: None)
        return jobs[0].result


def run(programs: Path, logs: Path) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bitpager-") as folder:
        quickstart = Quickstart(programs, logs, Path(folder))
        print(f"two jobs, one daemon: {settings.DEVICE_BUDGET} of device memory in pages of "
              f"{settings.PAGE_BYTES >> 10} KiB; frames given up are poisoned")  # fmt: skip
        full, qlora = quickstart.paged()
        print(f"\n(a) again with {settings.ROOMY_BUDGET}: nothing needs to move")
        again = quickstart.resident()
    print("\nwhat it took")
    print("\n".join(table(full, qlora)))
    print("\nwhat holds")
    checks = verdict(full, qlora, again, parse_size(settings.DEVICE_BUDGET))
    for holds, sentence in checks:
        print(f"  {'yes' if holds else 'NO '}  {sentence}")
    good = all(holds for holds, _ in checks)
    print(f"\n{'all of it holds' if good else 'NOT all of it holds'}; took {time.monotonic() - begun:.0f} s")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart_job", description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, required=True, help="folder with bitpagerd")
    parser.add_argument("--logs", type=Path, default=HERE.parent.parent / "build" / "log", help="where logs go")
    arguments = parser.parse_args()
    try:
        return run(arguments.bin, arguments.logs)
    except RuntimeError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
