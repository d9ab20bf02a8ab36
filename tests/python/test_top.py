"""bitpager top, events and record against real daemons and real steps; top in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import termios
import time

import bitpager
import pytest
import torch
from bitpager import optim
from conftest import BUILD, Daemon
from terminal import LIMIT_S, Terminal

CLI = os.environ.get("BITPAGER_CLI") or str(BUILD / "bin" / "bitpager")
REPLAY = str(BUILD / "bin" / "bitpager-replay")
# Room for a twentieth of what the steps below want, so that pages stream.
TIGHT = ("--device-budget", "512KiB", "--host-budget", "256MiB", "--page-size", "16KiB", "--window-pages", "2")


def start(daemon, *words, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([CLI, *words, "--socket", daemon.socket], **pipes)


def finish(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Job:
    """A training job of `name`; step() does one step. A context manager."""

    def __init__(self, daemon, name, elements=4_000_000):
        self.session = bitpager.connect(socket=daemon.socket, job=name, linger=0, default=False)
        self.parameter = torch.nn.Parameter(torch.ones(elements))
        self.parameter.grad = torch.ones(elements)
        self.optimizer = optim.PagedAdamW8bit([self.parameter], session=self.session)

    def step(self):
        self.optimizer.step()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()


@pytest.fixture
def tight(make_daemon):
    return make_daemon(*TIGHT)


# ---- top


def test_top_is_live_and_obeys_its_keys(tight):
    with Job(tight, "alpha") as alpha, Job(tight, "beta", 50_000) as beta:
        beta.step()
        with Terminal([CLI, "top", "--socket", tight.socket, "--interval", "0.2"], columns=120) as top:
            rate = re.compile(r"^alpha +cpu +\S+ KiB +[1-9][\d.]* +[\d.]+ [KMG]iB ", re.M)
            top.wait(rate.search, alpha.step)
            assert "2 jobs" in top.text and re.search(r"^cpu +\[#+", top.text, re.M), top.text
            assert re.search(r"^host +\[", top.text, re.M) and "to device" in top.text
            order = re.compile(r"^alpha.*^beta", re.M | re.S)
            assert order.search(top.text), top.text
            assert re.search(r"^\d\d:\d\d:\d\d attach beta", top.text, re.M), top.text
            top.type(b"r")
            top.wait(lambda text: "r reversed" in text and not order.search(text))
            top.type(b"s")
            top.wait(lambda text: "s sort: STEPS/s" in text)
            top.type(b"h")
            top.wait(lambda text: "share of the time" in text and "alpha" not in text)
            top.type(b"h")
            top.wait(lambda text: "alpha" in text)
            top.type(b"\x1b[C\x1b[C")  # right, twice
            top.wait(lambda text: "STEPS/s" not in text.split("\ns sort")[0].split("q quit")[0] and "TO DEV/s" in text)
            top.type(b"\x1b[D\x1b[D")
            top.resize(40, 10)
            top.wait(lambda text: re.search(r"^alpha +cpu +\S+ KiB", text, re.M) and "q quit" in text)
            assert all(len(line) <= 40 for line in top.text.splitlines())
            top.type(b"q")
            assert top.exit_code() == 0
            assert termios.tcgetattr(top.master) == top.modes_before


def test_top_waits_for_a_daemon_that_goes_and_comes_back(tight, tmp_path):
    with Terminal([CLI, "top", "--socket", tight.socket, "--interval", "0.2"]) as top:
        top.wait(lambda text: "steps/s" in text)
        first = f"pid {tight.process.pid}"
        assert first in top.text
        tight.kill()
        top.wait(lambda text: "AWAY since" in text)
        assert first in top.text, "the last figures stay"
        again = Daemon(tmp_path, TIGHT)
        try:
            # It serves its requests first; it answers queries once all of its sockets are there.
            asked = [CLI, "status", "--socket", again.socket]
            wait_for(lambda: subprocess.run(asked, capture_output=True).returncode == 0)
            os.rename(again.socket + ".status", tight.socket + ".status")
            os.rename(again.socket + ".events", tight.socket + ".events")
            top.wait(lambda text: f"pid {again.process.pid}" in text and "AWAY" not in text)
        finally:
            top.process.send_signal(signal.SIGTERM)
            assert top.exit_code() == 0
            again.stop()


def test_top_holds_no_key_back_while_the_daemon_hangs(tight):
    with Terminal([CLI, "top", "--socket", tight.socket, "--interval", "0.1", "--timeout", "600000"]) as top:
        top.wait(lambda text: "steps/s" in text)
        tight.process.send_signal(signal.SIGSTOP)
        try:
            top.type(b"h")
            top.wait(lambda text: "share of the time" in text)
            top.type(b"q")
            assert top.exit_code() == 0
        finally:
            tight.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("no_color, colored", [(None, True), ("1", False)])
def test_top_has_no_colour_where_none_is_wanted(tight, no_color, colored):
    command = [CLI, "top", "--socket", tight.socket]
    with Job(tight, "alpha") as alpha, Terminal(command, NO_COLOR=no_color) as top:
        alpha.step()
        top.wait(lambda text: re.search(r"^cpu +\[##", text, re.M))
        assert bool(re.search(rb"\x1b\[[\d;]*3[0-7][;m]", top.raw)) == colored
        top.type(b"\x03")  # the interrupt key
        assert top.exit_code() == 0


def test_top_says_that_a_terminal_is_not_known(tight):
    unknown = {"no-such-terminal": "'no-such-terminal' is not in", "dumb": "cannot place", "": "not set"}
    for term, words in unknown.items():
        with Terminal([CLI, "top", "--socket", tight.socket], columns=200, TERM=term) as top:
            assert top.exit_code() == 1
            assert words in top.text and "--once" in top.text, top.text
    code, _, err = finish(start(tight, "top", stdin=subprocess.DEVNULL))
    assert code == 1 and "needs a terminal" in err and "--once" in err


def test_top_once_is_one_frame_with_real_rates(tight):
    with Job(tight, "alpha") as alpha:
        alpha.step()
        process = start(tight, "top", "--once", "--json", "--interval", "2")
        while process.poll() is None:
            alpha.step()
        code, out, err = finish(process)
        assert code == 0 and err == "" and out.count("\n") == 1
        sample = json.loads(out)
        job = sample["jobs"][0]
        assert job["name"] == "alpha" and job["steps_per_s"] > 0 and job["to_device_bytes_per_s"] > 0
        assert job["resident_bytes"] <= 512 << 10 and isinstance(job["loaded_bytes"], int)
        assert sample["interval_s"] >= 1.9 and sample["totals"]["steps_per_s"] == pytest.approx(job["steps_per_s"])
        process = start(tight, "top", "--once", "--interval", "0.5")
        while process.poll() is None:
            alpha.step()
        code, out, err = finish(process)
        assert code == 0 and "\x1b" not in out and re.search(r"^alpha +cpu .* \d+%", out, re.M), out


def test_top_json_is_a_line_for_each_sample_until_nobody_reads(tight):
    process = start(tight, "top", "--json", "--interval", "0.1")
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert lines[0]["time_unix_ms"] < lines[1]["time_unix_ms"] < lines[2]["time_unix_ms"]
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0 and process.stderr.read() == ""
    process.stderr.close()


def test_without_a_daemon_all_end_with_3(tmp_path):
    for words in (["top"], ["top", "--once"], ["events"], ["events", "--follow"], ["record", str(tmp_path / "r")]):
        command = [CLI, *words, "--socket", str(tmp_path / "none.sock")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert result.returncode == 3 and "Hint: " in result.stderr and result.stdout == "", words
    assert not (tmp_path / "r").exists()
    for words in (["top", "--interval", "0"], ["record"], ["record", "x", "--cells", "5"], ["top", "--interval", "x"]):
        assert subprocess.run([CLI, *words], capture_output=True).returncode == 2, words


# ---- events

KEYS = {"schema_version", "id", "name", "time_unix_ms", "job", "device", "bytes", "text"}


def test_events_are_those_that_the_daemon_keeps(tight):
    for name in ("alpha", "beta"):
        Job(tight, name, 5000).session.close()
    wait_for(lambda: finish(start(tight, "events"))[1].count(" detach ") == 2)
    code, out, err = finish(start(tight, "events", "--json", "--job", "beta"))
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "" and [event["name"] for event in events] == ["attach", "detach"]
    assert all(set(event) == KEYS and event["job"] == "beta" for event in events)
    code, out, _ = finish(start(tight, "events"))
    assert code == 0 and re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d attach alpha .*cpu", out, re.M), out


def test_events_follow_gives_each_once_and_ends_with_the_daemon(tight):
    Job(tight, "early", 5000).session.close()
    process = start(tight, "events", "--follow", "--json")
    assert json.loads(process.stdout.readline())["job"] == "early"
    for i in range(5):
        Job(tight, f"late{i}", 5000).session.close()
        time.sleep(0.3)  # past the second look at what is kept
    tight.stop()
    code, out, err = finish(process)
    assert code == 3 and "has ended" in err
    events = [json.loads(line) for line in out.splitlines()]
    attached = [event["job"] for event in events if event["name"] == "attach"]
    assert attached == [f"late{i}" for i in range(5)]
    assert [event["name"] for event in events if event["job"] == "late4"] == ["attach", "detach"]


def test_events_follow_ends_at_a_signal_or_when_nobody_reads(tight):
    Job(tight, "early", 5000).session.close()
    process = start(tight, "events", "--follow")
    assert "attach early" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 0 and err == ""
    process = start(tight, "events", "--follow")
    assert "attach early" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0 and process.stderr.read() == ""
    process.stderr.close()


# ---- record


def test_a_recording_is_whole_lines_until_the_signal(tight, tmp_path):
    file = tmp_path / "run.jsonl"
    process = start(tight, "record", str(file), "--interval", "0.1")
    wait_for(lambda: file.exists() and file.read_text().count('"type":"status"') > 4)
    with Job(tight, "alpha") as alpha:
        wait_for(lambda: alpha.step() or re.search(r'"steps":[1-9].*"type":"status"', file.read_text()))
    wait_for(lambda: '"type":"event"' in file.read_text())
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 0 and out == "" and str(file) in err
    text = file.read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0]["bitpager_record"] == 1 and lines[0]["started_unix_ms"] > 0
    assert {line["type"] for line in lines[1:]} == {"status", "event", "pages"}
    maps = [line["body"] for line in lines[1:] if line["type"] == "pages"]
    assert all(one != next_one for one, next_one in zip(maps, maps[1:])), "page maps when they changed"
    assert max(len(one["devices"][0]["cells"]) for one in maps) > 64
    assert all(line["time_unix_ms"] >= lines[0]["started_unix_ms"] for line in lines[1:])
    statuses = [line["body"] for line in lines[1:] if line["type"] == "status"]
    steps = max(job["steps"] for status in statuses for job in status["jobs"] if job["name"] == "alpha")
    result = subprocess.run([REPLAY, "--json", "--budget", "10%", str(file)], capture_output=True, text=True)
    summary, *rows = json.loads(result.stdout)
    assert result.returncode == 0 and summary["jobs"][0]["steps"] == steps > 0
    assert summary["jobs"][0]["peak_resident_bytes"] <= 512 << 10 and summary["jobs"][0]["to_device_bytes"] >= 0
    assert summary["events"]["attach"] == 1 and summary["page_maps"] == len(maps)
    assert [row["policy"] for row in rows] == ["lru", "clock", "scan"] and rows[0]["visits"] >= rows[0]["pages"]
    code, _, err = finish(start(tight, "record", str(file)))
    assert code == 1 and "not empty" in err and file.read_text() == text


def test_a_recording_ends_after_its_duration_and_tells_of_a_full_disk(tight):
    code, out, err = finish(start(tight, "record", "-", "--interval", "0.1", "--duration", "0.5"))
    assert code == 0 and len([json.loads(line) for line in out.splitlines()]) >= 3, err
    code, _, err = finish(start(tight, "record", "/dev/full"))
    assert code == 1 and "No space left" in err and "Hint: " in err


def test_a_recording_goes_on_with_the_next_daemon(tight, tmp_path):
    file = tmp_path / "run.jsonl"
    process = start(tight, "record", str(file), "--interval", "0.1")
    wait_for(lambda: file.exists() and file.read_text().count('"type":"status"') >= 2)
    tight.kill()
    again = Daemon(tmp_path, TIGHT)
    try:
        for ending in (".status", ".events"):
            os.rename(again.socket + ending, tight.socket + ending)
        wait_for(lambda: f'"pid":{again.process.pid},' in file.read_text())
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
        assert code == 0 and "looking for it again" in err and "is back" in err
    finally:
        again.stop()
