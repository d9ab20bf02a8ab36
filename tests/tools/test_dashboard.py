"""The dashboard in a real browser, before a made-up node; test_dashboard_live.py has it before a real daemon."""

from __future__ import annotations

import json

import pytest
from feed_simulation import HOSTILE_NAMES, Node

pytest.importorskip("selenium", reason="selenium is not installed. Hint: pip install selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402


def column(browser, name):
    """The texts of a column of the table of jobs, from above."""
    return texts(browser, f"#jobs tbody [data-column={name}]")


def texts(browser, selector, read="textContent"):
    """A property of all that the selector finds."""
    return browser.run("return [...document.querySelectorAll(arguments[0])].map(e => e[arguments[1]])", selector, read)


def bytes_of(browser, selector):
    return int(browser.run("return document.querySelector(arguments[0]).dataset.bytes", selector))


# ---- figures


def test_figures_are_the_nodes_and_add_up(page):
    browser, feed = page(Node(["a", "b", "c"]))
    with feed.lock:  # time stands still
        status = feed.node.status()
        device = status["devices"][0]
        sizes = sorted((job["resident_bytes"] for job in status["jobs"]), reverse=True)
        jobs = [f"{size:,} bytes" for size in sizes]
        browser.wait("the used bytes", lambda: bytes_of(browser, "#device-used") == device["used_bytes"])
        browser.wait("the host's bytes", lambda: bytes_of(browser, "#host-used") == device["host_committed_bytes"])
        browser.wait("the jobs' bytes", lambda: texts(browser, "#jobs tbody td.gauge", "title") == jobs)
        for place in ("#device-sum", "#card-sum", "#host-sum"):
            left, right = browser.text(place).split(" = ")
            parts = [round(float(part.split()[0]) * 100) for part in left.split(" + ")]
            assert sum(parts) == round(float(right.split()[0]) * 100), browser.text(place)
    steps = browser.text("#facts")
    browser.wait("figures that go on", lambda: browser.text("#facts") != steps)


def test_all_that_the_page_shows_is_there(page):
    browser, feed = page(Node(["a", "b"]))
    assert browser.text("#errors") == "no errors"
    feed.node.errors = {"full": 3, "internal": 1, "protocol": 1}
    browser.wait("errors, and what is none", lambda: browser.text("#errors") == "2 errors · 3 full")
    feed.publish("evict", "a", "share", 4 << 20)
    browser.wait_text("#events", "evict")
    assert "4.00 MiB · share" in browser.text("#events")
    feed.publish("killed", "b", "process 7")
    browser.wait_text("#events li", "killed")
    browser.wait_text("#said", "killed b: process 7")  # said aloud
    painted = """
      const { width, height } = arguments[0], context = arguments[0].getContext('2d');
      return new Set(new Uint32Array(context.getImageData(0, 0, width, height).data.buffer)).size"""
    for canvas in browser.driver.find_elements(By.CSS_SELECTOR, ".plot canvas, .maps canvas"):
        browser.wait("something painted", lambda c=canvas: browser.run(painted, c) > 3)
        assert len(canvas.get_attribute("aria-label")) > 20
    assert browser.text("#map-note").startswith("2,933 pages of 2.00 MiB")
    browser.run("document.querySelectorAll('.small-button').forEach(b => b.click())")
    rows = browser.wait("tables beside all charts", lambda: browser.run(
        "return [...document.querySelectorAll('.chart-table')].map(t => t.querySelectorAll('tbody tr').length)"
    ) == [2, 2, 4, 4, 4] and True)  # fmt: skip
    assert rows


def test_an_empty_node_says_what_will_come(page):
    browser, _ = page(Node([], pages=0))
    browser.wait_text("#jobs-empty", "No job is attached")
    browser.wait_text("#maps", "No pages yet")
    browser.wait_text("#panel-device .empty", "No job has pages")
    assert "attach" in browser.text("#events-empty")


def test_names_are_text_and_nothing_more(page):
    browser, feed = page(Node(HOSTILE_NAMES, pages=900))
    feed.publish("error", HOSTILE_NAMES[0], HOSTILE_NAMES[1])
    browser.wait_text("#events", "<img src=x")
    assert len(column(browser, "name")) == len(HOSTILE_NAMES)
    shown = "".join(column(browser, "name"))
    assert "<img src=x onerror=" in shown and "\\u000a" in shown and "\\u202e" in shown and "(no name)" in shown
    assert browser.run("return document.querySelectorAll('#main img, #main script, body > script').length") == 0
    assert browser.run("return document.title").endswith("bitpager")
    swatches = "return [...document.querySelectorAll('#jobs tbody .swatch')].map(s => s.style.backgroundColor)"
    assert len(set(browser.run(swatches))) == len(HOSTILE_NAMES)


def test_the_disk_is_shown_where_there_is_one(page):
    browser, feed = page(Node(["sft", "qlora", "other", "base"], disk=True))  # the first and fourth lie on disk
    with feed.lock:
        status = feed.node.status()
        device = status["devices"][0]
        assert device["disk_committed_bytes"] > 0
        browser.wait("the disk's bytes", lambda: bytes_of(browser, "#disk") == device["disk_committed_bytes"])
        left, right = browser.text("#disk-sum").split(" = ")
        parts = [round(float(part.split()[0]) * 100) for part in left.split(" + ")]
        assert sum(parts) == round(float(right.split()[0]) * 100) and "on disk" in left
        exact = {job["name"]: f"{job['disk_bytes']:,} bytes" for job in status["jobs"]}
        rows = dict(zip(column(browser, "name"), texts(browser, "#jobs tbody [data-column=disk]", "title")))
        assert rows == exact
    assert browser.text("#panel-host h2") == "Committed: ↑ host, ↓ disk"
    named = "return document.querySelector('#panel-host canvas').getAttribute('aria-label')"
    browser.wait("the host in the chart's words", lambda: "↑ other" in browser.run(named))
    browser.wait("the disk", lambda: "↓ sft" in browser.run(named))
    browser.run("[...document.querySelectorAll('.segments.small button')].find(b => b.textContent === 'Kinds').click()")
    browser.run("document.querySelector('#panel-host .small-button').click()")
    browser.wait_text("#panel-host .chart-table", "↓ quantized weights")
    assert browser.run("return document.querySelector('#key-disk').hidden") is False
    browser.run("document.querySelector('.maps canvas').focus()")
    browser.press(Keys.END)
    for _ in range(60):  # some cell of the last job is away and was written
        if "on disk" in browser.text("#said"):
            break
        browser.press(*[Keys.ARROW_LEFT] * 5)
    assert "0 on the host, " in browser.text("#said") and "on disk" in browser.text("#said")
    assert browser.run("return document.documentElement.scrollHeight") <= 800  # still one screen
    shown = "return getComputedStyle(document.querySelector('#jobs [data-column=disk]')).display"
    assert browser.run(shown) != "none"
    room = browser.run("const r = document.querySelector('.jobs .scroll'); return r.scrollWidth - r.clientWidth")
    assert room <= 0, "a column is cut off"


def test_without_a_disk_nothing_speaks_of_one(page):
    browser, _ = page(Node(["a"]))
    browser.wait("the job", lambda: len(column(browser, "name")) == 1)
    assert browser.run("return document.querySelector('#disk').hidden && document.querySelector('#key-disk').hidden")
    assert browser.run("return getComputedStyle(document.querySelector('#jobs [data-column=disk]')).display") == "none"
    assert browser.text("#panel-host h2") == "Committed on the host"


# ---- connection


def test_a_lost_connection_shows_and_heals(page):
    browser, feed = page(Node(["a"]))
    feed.cut(everything=True)
    browser.wait_text("#state-text", "Disconnected since")
    assert browser.run("return document.querySelector('#state').getAttribute('role')") == "status"
    used = browser.text("#facts")
    feed.mend()
    browser.click("#retry")
    browser.wait_text("#state-text", "Live")
    browser.wait("new figures", lambda: browser.text("#facts") != used)


def test_events_of_a_gap_come_once_each(page):
    browser, feed = page(Node(["a"]))
    feed.publish("attach", "a", "before")
    browser.wait_text("#events", "before")
    feed.keeps_events = False  # only the stream can bring what was missed
    feed.cut(everything=True)
    browser.wait_text("#state-text", "Disconnected since")
    for text in ("same", "same", "other"):  # two that differ in nothing but their ids
        feed.publish("limit", "a", text)
    feed.mend()
    browser.click("#retry")
    browser.wait_text("#events", "other")
    assert texts(browser, "#events .text") == ["other", "same", "same", "before"]
    asked = [path for path in feed.requests if path.startswith("/api/stream")]
    assert f"last_event_id={feed.events[0]['id']}" in asked[-1] and "last_event_id" not in asked[0]
    feed.keeps_events = True  # now both bring all of them
    feed.cut(everything=True)
    browser.wait_text("#state-text", "Disconnected since")
    feed.publish("killed", "a", "last")
    feed.mend()
    browser.click("#retry")
    browser.wait_text("#events", "last")
    used = browser.text("#facts")
    browser.wait("figures that go on", lambda: browser.text("#facts") != used)
    assert texts(browser, "#events .text") == ["last", "other", "same", "same", "before"]


def test_without_a_stream_it_polls(page):
    browser, feed = page(Node(["a"]))
    feed.cut(streams=True)
    browser.wait_text("#state-text", "Polling")
    feed.publish("limit", "a", "told by polling")
    browser.wait_text("#events", "told by polling")
    before = browser.text("#facts")
    browser.wait("figures that go on", lambda: browser.text("#facts") != before)


def test_a_hidden_tab_draws_nothing(page):
    browser, _ = page(Node(["a"]))
    browser.run("Object.defineProperty(document, 'hidden', {get: () => window.away ?? false, configurable: true})")
    browser.run("window.away = true")
    browser.run_async("await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame)")
    before = browser.text("#facts")
    # Long enough for several messages of the stream to come, as the page's own entries tell.
    browser.run_async("await new Promise(done => setTimeout(done, 1500))")
    assert browser.text("#facts") == before
    browser.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait("a drawing", lambda: browser.text("#facts") != before)


# ---- use


def test_keyboard_sorts_switches_and_looks_at_cells(page):
    browser, _ = page(Node(["bb", "aa", "cc"]))
    browser.wait("three jobs", lambda: len(column(browser, "name")) == 3)
    browser.run("document.querySelector('#jobs th[data-column=name] button').focus()")
    browser.press(Keys.ENTER)
    browser.wait("names upwards", lambda: column(browser, "name") == ["aa", "bb", "cc"])
    browser.press(Keys.SPACE)
    browser.wait("names downwards", lambda: column(browser, "name") == ["cc", "bb", "aa"])
    assert texts(browser, "#jobs th[aria-sort=descending]") == ["Job"]
    browser.press(Keys.TAB, Keys.ENTER)
    browser.wait("the next column", lambda: texts(browser, "#jobs th[aria-sort=descending]") == ["Sess."])
    browser.run("document.querySelector('#jobs tbody button.name').focus()")
    browser.press(Keys.ENTER)
    browser.wait_text("#jobs-note", "Esc shows all")
    browser.press(Keys.ESCAPE)
    browser.wait("no focus", lambda: "Esc" not in browser.text("#jobs-note"))
    browser.run("document.querySelector('.maps canvas').focus()")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    browser.wait_text("#said", "pages on the device")
    assert browser.run("return [...document.querySelectorAll('button')].every(b => b.tabIndex === 0)")


def test_dark_and_light(page):
    browser, _ = page(Node(["a"]))
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(ground)
    browser.prefer("prefers-color-scheme", "light")
    browser.wait_text("#theme", "Dark")
    light = browser.run(ground)
    assert dark != light
    browser.run("document.querySelector('#theme').focus()")
    browser.press(Keys.ENTER)
    assert browser.run(ground) == dark
    browser.driver.refresh()
    browser.wait_text("#state-text", "Live")
    assert browser.run(ground) == dark  # remembered, against the system's


def test_one_device_or_all(page):
    browser, feed = page(Node(["a", "b", "c", "d"], devices=2))
    browser.wait("two maps", lambda: browser.run("return document.querySelectorAll('.maps canvas').length") == 2)
    second = feed.node.devices[1].uuid
    browser.enter("#device", second, "change")
    browser.wait("one map", lambda: browser.run("return document.querySelectorAll('.maps canvas').length") == 1)
    assert sorted(column(browser, "name")) == ["b", "d"]


def test_nothing_is_wider_than_the_window(page):
    browser, _ = page(Node(["a", "b"]))
    browser.wait("the jobs", lambda: len(column(browser, "name")) == 2)
    assert browser.run("return document.documentElement.scrollHeight") <= 800  # one screen
    for width in (1280, 768, 390):
        browser.size(width, 800)
        browser.wait("the window's width", lambda w=width: browser.run("return innerWidth") == w)
        browser.wait("no more width", lambda w=width: browser.run("return document.documentElement.scrollWidth") <= w)


# ---- recordings


def recording(path, seconds=40, cut=False):
    node = Node(["taped", "other"], pages=600)
    lines = [{"bitpager_record": 1, "started_unix_ms": int(node.begun * 1000)}]
    for second in range(seconds):
        node.tick()
        if second == seconds // 2:
            node.drop("other")
            event = {"name": "killed", "time_unix_ms": node.status()["time_unix_ms"], "job": "other", "text": "halfway"}
            lines.append({"type": "event", "time_unix_ms": event["time_unix_ms"], "body": event})
        for kind, body in (("status", node.status()), ("pages", node.page_map())):
            lines.append({"type": kind, "time_unix_ms": node.status()["time_unix_ms"], "body": body})
    text = "\n".join(map(json.dumps, lines)) + "\n"
    path.write_text(text + '{"type":"status","time_un' if cut else text)
    return path


def seek(browser, second):
    browser.enter("#seek", second, "input")


def test_a_recording_opens_moves_and_closes(page, tmp_path):
    browser, _ = page(Node(["living"]))
    file = browser.driver.find_element(By.ID, "file")
    file.send_keys(str(recording(tmp_path / "tape.jsonl", cut=True)))
    browser.wait_text("#state-text", "Recording")
    browser.wait_text("#player-name", "tape.jsonl · 40 samples · 1 lines could not be read")
    seek(browser, 10)
    browser.wait("both jobs", lambda: sorted(column(browser, "name")) == ["other", "taped"])
    browser.run("document.querySelector('#jobs tbody button.name').click()")
    seek(browser, 30)
    browser.wait("the one that was left", lambda: column(browser, "name") == ["taped"])
    browser.wait_text("#events", "halfway")
    seek(browser, 5)
    browser.wait("both jobs again", lambda: len(column(browser, "name")) == 2)
    assert browser.run("return document.querySelectorAll('#events li').length") == 0
    browser.enter("#speed", "60", "change")
    browser.click("#play")
    browser.wait("the end", lambda: browser.run("return Number(document.querySelector('#seek').value)") >= 39)
    browser.wait_text("#play", "Play")
    assert "39 s of 39 s" in browser.run("return document.querySelector('#seek').getAttribute('aria-valuetext')")
    browser.click("#live")
    browser.wait("the living job", lambda: column(browser, "name") == ["living"])
    assert "Esc" not in browser.text("#jobs-note")  # the job in focus was the recording's
    assert browser.text("#state-text") == "Live"


def test_a_file_that_is_no_recording_is_refused(page, tmp_path):
    browser, _ = page(Node(["living"]))
    wrong = tmp_path / "wrong.jsonl"
    for text, words in (("nonsense\n", "no recording"), ('{"bitpager_record":2}\n', "version 2"),
                        ('{"bitpager_record":1}\n', "no status")):  # fmt: skip
        wrong.write_text(text)
        browser.driver.find_element(By.ID, "file").send_keys(str(wrong))
        browser.wait_text("#notice", words)
    assert browser.text("#state-text") == "Live"


def test_a_dropped_recording_opens(page, tmp_path):
    browser, _ = page(Node(["living"]))
    text = recording(tmp_path / "tape.jsonl", seconds=3).read_text()
    browser.run("""
      const data = new DataTransfer(); data.items.add(new File([arguments[0]], 'dropped.jsonl'));
      window.dispatchEvent(new DragEvent('dragover', {dataTransfer: data, cancelable: true}));
      window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}))""", text)  # fmt: skip
    browser.wait_text("#player-name", "dropped.jsonl · 3 samples")


# ---- cost


def test_many_pages_and_jobs_cost_little(page):
    browser, feed = page(Node([f"job {i}" for i in range(16)], pages=70_000))
    feed.second = 1.0
    browser.wait("sixteen jobs", lambda: len(column(browser, "name")) == 16)
    shares = []
    for _ in range(20):  # the first holds the compilation of the page; a busy machine makes all dearer
        shares.append(browser.cpu_share(4.0))  # charts of many jobs are drawn once in this time
        if shares[-1] < 0.05:
            break
    assert min(shares) < 0.05, f"of a core: {shares}"
