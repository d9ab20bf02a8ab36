"""Serves the dashboard and a made-up node in the daemon's HTTP forms, for what a real daemon cannot be asked to do on
cue: sixteen jobs, hostile names, 70,000 pages, cut connections.

    python tests/tools/fake_feed.py --port 8099 --jobs 16 --pages 70000
"""

from __future__ import annotations

import argparse
import http.server
import json
import pathlib
import re
import threading
import time

from feed_simulation import HOSTILE_NAMES, Node

WEB = pathlib.Path(__file__).resolve().parents[2] / "tools" / "dashboards" / "web"
CHART = pathlib.Path("/usr/share/javascript/chart.js/chart.min.js")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}  # fmt: skip
HEADERS = {"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff",
           "Cache-Control": "no-store"}  # fmt: skip

EVENTS = (("attach", "rank 0"), ("evict", "share"), ("pressure", "free memory is under the watermark"),
          ("killed", "process 4711 ended without a detach"))  # fmt: skip


class Feed:
    """A server on a port of its own, with a thread that lets a second of the node pass every `second`."""

    def __init__(self, node, port=0, second=1.0):
        self.node, self.second = node, second
        self.lock = threading.Condition()
        self.serial = 0
        self.events = []
        self.next_id = int(time.time() * 1e6)
        self.refuse_streams = self.refuse_all = self.closed = False
        self.keeps_events = True  # False: /api/events has none
        self.requests = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        for work in (self.server.serve_forever, self._run):
            threading.Thread(target=work, daemon=True).start()

    def _run(self):
        while not self.closed:
            with self.lock:
                self.node.tick()
                self.serial += 1
                self.lock.notify_all()
            time.sleep(self.second)

    def publish(self, name, job="", text="", size=0):
        """An event, as the daemon would publish it."""
        with self.lock:
            device = self.node.devices[0].uuid
            now = int((self.node.begun + self.node.ticks) * 1000)
            body = {"schema_version": 2, "id": self.next_id, "name": name, "time_unix_ms": now, "job": job,
                    "device": device, "bytes": size, "text": text}  # fmt: skip
            self.next_id += 1
            self.events.append(body)
            self.lock.notify_all()

    def last_events(self):
        return {"schema_version": 2, "events": self.events[-256:] if self.keeps_events else []}

    def had(self, path, headers):
        """How many events the client of a stream has."""
        named = re.search(r"last_event_id=(\d+)", path) or re.match(r"(\d+)", headers.get("Last-Event-ID", ""))
        if named is None:
            return len(self.events)
        return sum(body["id"] <= int(named[1]) for body in self.events)

    def cut(self, streams=True, everything=False):
        """Ends the streams that are open; later ones are refused, and all else too where `everything`."""
        with self.lock:
            self.refuse_streams, self.refuse_all = streams, everything
            self.lock.notify_all()

    def mend(self):
        self.cut(False, False)

    def close(self):
        with self.lock:
            self.closed = self.refuse_streams = True
            self.lock.notify_all()
        self.server.shutdown()
        self.server.server_close()


def _handler_of(feed):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path = self.path.split("?")[0]
            feed.requests.append(self.path)
            if feed.refuse_all and path.startswith("/api/"):
                self.close_connection = True
                return
            if path == "/api/stream":
                self._stream()
            elif path in ("/api/status", "/api/pages", "/api/events"):
                bodies = {"status": feed.node.status, "pages": feed.node.page_map, "events": feed.last_events}
                with feed.lock:
                    body = bodies[path.removeprefix("/api/")]()
                self._answer(200, "application/json", json.dumps(body).encode())
            else:
                self._file("index.html" if path == "/" else path.removeprefix("/assets/"))

        def _answer(self, code, kind, body):
            self.send_response(code)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _file(self, name):
            path = CHART if name == "chart.min.js" else WEB / name
            if "/" in name or not path.is_file():
                self._answer(404, "text/plain", b"not found")
                return
            self._answer(200, TYPES[path.suffix], path.read_bytes())

        def _send(self, event, number, body):
            self.wfile.write(f"event: {event}\nid: {number}\ndata: {json.dumps(body)}\n\n".encode())

        def _stream(self):
            if feed.refuse_streams:
                self._answer(503, "text/plain", b"no streams now")
                return
            self.send_response(200)
            for name, value in {**HEADERS, "Content-Type": "text/event-stream"}.items():
                self.send_header(name, value)
            self.end_headers()
            with feed.lock:
                seen, told = -1, feed.had(self.path, self.headers)
                place = feed.next_id - 1 - (len(feed.events) - told)
            try:
                while not feed.refuse_streams:
                    with feed.lock:
                        while feed.serial == seen and len(feed.events) == told and not feed.refuse_streams:
                            feed.lock.wait(5)
                        news = feed.events[told:]
                        fresh = feed.serial != seen
                        told, seen = len(feed.events), feed.serial
                        status, pages = (feed.node.status(), feed.node.page_map()) if fresh else (None, None)
                    sends = [("event", body) for body in news]
                    sends += [("status", status), ("pages", pages)] if fresh else []
                    for event, body in sends:
                        place = body["id"] if event == "event" else place
                        self._send(event, place, body)
                    self.wfile.flush()
            except OSError:
                pass
            self.close_connection = True

    return Handler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--pages", type=int, default=4000)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--hostile", action="store_true", help="names that try to break the page")
    parser.add_argument("--events", action="store_true", help="publish some")
    parser.add_argument("--disk", action="store_true", help="weights lie on disk")
    parser.add_argument("--past", type=int, default=0, help="seconds of the node that have passed at the start")
    options = parser.parse_args()
    plain = ["llama-8b-sft", "vit-large", "qlora-70b", "whisper-ft", "dit-xl"] + [f"sweep-{i:02d}" for i in range(64)]
    names = (list(HOSTILE_NAMES) if options.hostile else plain)[: options.jobs]
    feed = Feed(Node(names, options.pages, options.devices, disk=options.disk), options.port)
    for _ in range(options.past):
        feed.node.tick()
    print(feed.url, flush=True)
    for name, text in EVENTS if options.events else ():
        time.sleep(3)
        feed.publish(name, names[0], text)
    threading.Event().wait()


if __name__ == "__main__":
    main()
