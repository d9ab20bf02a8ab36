"""A bitpagerd for one run of the quickstart or a benchmark: started with a budget, ended with SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

START_S = 10
STOP_S = 20


class Daemon:
    """Context manager. `path` is its socket; `flags` are bitpagerd's own; what it says is kept in `log`; `start_s`: how
    long it may take to serve."""

    def __init__(self, program: Path, path: Path, flags: list[str], log: Path, start_s: float = START_S):
        self.path = path
        self._start_s = start_s
        self._log = log
        self._command = [str(program), "--socket", str(path), *flags]

    def __enter__(self) -> Daemon:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + self._start_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self._stop()
                raise RuntimeError(f"bitpagerd did not come up: {' '.join(self._command)}\n{self.log_tail()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def _answers(self) -> bool:
        if not os.path.exists(self.path):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
        return True

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise RuntimeError(f"bitpagerd did not end within {STOP_S} s of SIGTERM\n{self.log_tail()}") from None
