"""A scraper beside the program that measures, and the interval of a median. Neither needs torch."""

from __future__ import annotations

import statistics
import subprocess
import sys

CONFIDENCE = 0.95

# In a process of its own, as Prometheus is: in ours it would hold the interpreter's lock against the steps.
_SCRAPER = """
import http.client, sys
line = http.client.HTTPConnection(sys.argv[1], timeout=20)
for _ in sys.stdin:
    line.request("GET", "/metrics")
    print(len(line.getresponse().read()), flush=True)
"""


class Scraper:
    """Scrapes when it is told to, over one kept connection."""

    def __init__(self, address: str):
        command = [sys.executable, "-c", _SCRAPER, address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Bytes of the answer, once it is there."""
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def median_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """(median, low, high): order statistics between which the median of what the values are drawn from lies with at
    least this confidence, whatever the distribution (the sign test's interval)."""
    ordered, count = sorted(values), len(values)
    chance, below, rank = 0.5**count, 0.0, 0  # of exactly `rank` values under the median; of fewer than that
    while 2 * (below + chance) <= 1 - confidence:
        below += chance
        chance *= (count - rank) / (rank + 1)
        rank += 1
    last = max(0, rank - 1)
    return statistics.median(ordered), ordered[last], ordered[count - 1 - last]
