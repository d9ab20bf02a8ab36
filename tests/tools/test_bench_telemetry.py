"""The interval of the median that the telemetry benchmark tells, and its scraper."""

from __future__ import annotations

import http.server
import importlib.util
import pathlib
import random
import threading

PATH = pathlib.Path(__file__).resolve().parents[2] / "tools" / "benchmarks" / "scraping.py"
_spec = importlib.util.spec_from_file_location("scraping", PATH)
scraping = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scraping)


def test_the_interval_is_of_the_sign_test():
    # Of 10 values the 2nd and the 9th: 2 (1 + 10) / 1024 is 2.1%, with the 3rd and 8th it would be 10.9%.
    assert scraping.median_interval([float(n) for n in range(10, 0, -1)]) == (5.5, 2.0, 9.0)
    # Tables of the sign test for 100 pairs: the 40th and the 61st.
    assert scraping.median_interval([float(n) for n in range(1, 101)]) == (50.5, 40.0, 61.0)
    assert scraping.median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0), "too few: all of them"


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = random.Random(1)
    hits = 0
    for _ in range(400):
        _, low, high = scraping.median_interval([rng.expovariate(1.0) for _ in range(40)])
        hits += low <= 0.6931 <= high
    assert 0.93 <= hits / 400 <= 1.0


def test_the_scraper_asks_once_each_time_it_is_told():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"metrics")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scraper = scraping.Scraper(f"127.0.0.1:{server.server_port}")
        for _ in range(3):
            scraper.begin()
            assert scraper.end() == 7
        scraper.close()
        server.shutdown()
    assert asked == ["/metrics"] * 3
