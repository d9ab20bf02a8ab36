"""The dashboard's pure functions, called in a real browser by their modules."""

from __future__ import annotations

import colour_vision
import pytest
from feed_simulation import Node


@pytest.fixture(scope="module")
def call(chromium):
    """call(module, body): what an async function with the body returns, in which m is that module of the page."""
    from fake_feed import Feed

    feed = Feed(Node(["a"]))
    chromium.driver.get(feed.url)
    yield lambda module, body: chromium.run_async(
        f"const m = await import(new URL('assets/{module}.js', document.baseURI)); {body}"
    )
    chromium.driver.get("about:blank")
    feed.close()


def test_formats(call):
    result = call("format", """
      const GIB = 2 ** 30;
      return {
        bytes: [0, 1023, 1024, 1536, 2 ** 20 * 999, 1.5 * GIB, 80 * GIB, NaN].map(m.bytes),
        seconds: [0, 5e-6, 0.00123, 0.0123, 0.5, 2.25, NaN].map(m.seconds),
        duration: [999, 61000, 3700000, 90000000].map(m.duration),
        names: ['', 'a\\u0000b', '\\u202egnp', 'x'.repeat(100)].map(n => m.nameText(n, 10)),
        binary: m.niceTicks(7.5 * GIB, 4, true).map(v => v / GIB), decimal: m.niceTicks(95, 4, false),
        none: m.niceTicks(0, 4, true), times: m.timeTicks(1000, 61000, 3),
        share: [0, 0.001, 0.5].map(m.share), rate: [0, 0.25, 3.14, 1234].map(m.perSecond),
      }""")  # fmt: skip
    assert result == {
        "bytes": ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "999 MiB", "1.50 GiB", "80.0 GiB", "–"],
        "seconds": ["0", "5 µs", "1.2 ms", "12 ms", "500 ms", "2.25 s", "–"],
        "duration": ["0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"],
        "names": ["(no name)", "a\\u0000b", "\\u202egnp", "xxxxxxxxx…"],
        "binary": [0, 2, 4, 6],
        "decimal": [0, 25, 50, 75],
        "none": [0],
        "times": [30000, 60000],
        "share": ["0%", "<1%", "50%"],
        "rate": ["0", "0.25", "3.1", "1,234"],
    }


def test_every_axis_has_a_few_round_values(call):
    odd = call("format", """
      const odd = [];
      for (const binary of [true, false]) for (const wanted of [2, 4]) for (let max = 2; max < 1e13; max *= 1.01) {
        const ticks = m.niceTicks(max, wanted, binary);
        const fits = ticks.length > 1 && ticks.length <= 2 * wanted + 1 && ticks[ticks.length - 1] <= max * 1.001;
        if (!fits) odd.push([binary, wanted, max]);
      }
      return odd.slice(0, 5)""")  # fmt: skip
    assert odd == []


def test_parts_as_shown_add_up_to_their_sum_as_shown(call):
    results = call("format", """
      const sets = [[1, 1, 1], [0.333, 0.333, 0.333], [2.5, 2.5], [0, 0], [0.004, 0.004, 0.004, 7.988]];
      return sets.map(set => m.addingUp(set.map(part => part * 2 ** 30)))""")  # fmt: skip
    for result in results:
        assert sum(round(float(part) * 100) for part in result["parts"]) == round(float(result["total"]) * 100)
    assert results[1] == {"parts": ["341.00", "340.99", "340.99"], "total": "1022.98", "unit": "MiB"}
    assert results[3] == {"parts": ["0", "0"], "total": "0", "unit": "B"}


def test_history_in_buckets(call):
    result = call("history", """
      const h = new m.History(5);
      for (let i = 1; i <= 7; i += 1) h.push(i * 1000, new Map(i < 6 ? [['a', i], ['b', 10 * i]] : [['b', 10 * i]]));
      const range = { end: 8000, width: 1000, buckets: 8, gap: 1500 };
      const buckets = (keys, more) => [...h.buckets(keys, { ...range, ...more })].map(v => Number.isNaN(v) ? null : v);
      const out = {
        kept: [h.length, h.time(0)], one: buckets(['a']), both: buckets(['a', 'b']),
        wide: buckets(['b'], { width: 2000, buckets: 4, how: 'mean' }), absent: buckets(['none'], { absent: NaN }),
        span: [m.spanFor(h, 7000, 900000), m.spanFor(h, 200000, 900000), m.spanFor(h, 7000, 60000)],
      };
      for (let i = 8; i <= 13; i += 1) h.push(i * 1000, new Map([['b', 1]]));
      out.series = [...h.keys];
      h.push(60000, new Map([['b', 2]]));
      out.gap = buckets(['b'], { end: 61000, buckets: 3 });
      return out""")  # fmt: skip
    assert result == {
        "kept": [5, 3000],
        "one": [None, None, None, 3, 4, 5, 0, 0],
        "both": [None, None, None, 33, 44, 55, 60, 70],
        "wide": [None, 30, 45, 65],
        "absent": [None] * 8,
        "span": [60000, 300000, 60000],
        "series": ["b"],
        "gap": [None, None, 2],
    }


def test_quantiles_of_what_a_histogram_gained(call):
    result = call("history", """
      const of = (counts, sum_s) => ({ bounds_s: [1, 2], counts, sum_s, count: counts.reduce((a, b) => a + b) });
      return [
        m.histogramChange(of([5, 0, 0], 2), of([5, 10, 0], 17)), m.histogramChange(of([9, 0, 0], 2), of([2, 0, 0], 1)),
        m.histogramChange(of([1, 0, 0], 1), of([1, 0, 4], 41)), m.histogramChange(null, of([0, 0, 0], 0)).count,
        m.histogramChange(undefined, undefined).count]""")  # fmt: skip
    assert result[0] == {"count": 10, "mean": 1.5, "p95": 1.95}
    assert result[1]["count"] == 2  # counts fell: the daemon is a new one
    assert result[2] == {"count": 4, "mean": 10, "p95": 2}  # beyond the last bound
    assert result[3:] == [0, 0]


def test_cells_fill_the_room_and_look_like_what_they_hold(call):
    result = call("pagemap", """
      const fits = [1, 7, 64, 1024, 4096].every(n => [[500, 180], [380, 150], [240, 60]].every(([w, h]) => {
        const { columns, rows, wide, high } = m.layout(n, w, h);
        return columns * wide <= w && columns * rows >= n && wide >= 4 && high >= 4;
      }));
      const map = { pages_per_cell: 4, cells: [[0, 4, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 3, 0], [1, 0, 0, 0, 0]] };
      const looks = [[0, 4, 0, 0, 0], [0, 2, 0, 2, 0], [0, 0, 0, 4, 0], [0, 0, 0, 0, 0], [0, 4, 4, 0, 0],
        [0, 3, 0, 0, 1], [1, 4, 0, 0, 0], [0, 0, 0, 4, 0, 4],
        [0, 0, 0, 3, 0, 2]].map(cell => m.lookOf(cell, 4));
      const half = [[0, 0, 0, 4, 0, 2], [0, 0, 0, 4, 0]].map(cell => m.lookOf(cell, 4));
      const pages = map.cells.map((_, i) => m.pagesOf(map, i));
      return { fits, pages, looks: new Set(looks).size, half: half[0] === half[1] }""")  # fmt: skip
    assert result == {"fits": True, "pages": [4, 1, 4, 1], "looks": 8, "half": True}


def test_a_restarted_daemon_gives_no_negative_rates(call):
    result = call("model", """
      const snapshot = (time, pid, steps) => ({
        time_unix_ms: time, pid, uptime_ms: time, devices: [{ uuid: 'G', kind: 'cuda', gpu: '3' }],
        jobs: [{ id: 1, name: 'a', device: 'G', steps, loaded_bytes: steps * 100 }] });
      const model = new m.Model(), rates = [];
      for (const [time, pid, steps] of [[1000, 1, 0], [2000, 1, 5], [3000, 1, 10], [4000, 2, 1], [5000, 2, 3]]) {
        model.apply(snapshot(time, pid, steps));
        rates.push([model.jobs[0].stepRate, model.jobs[0].inRate].map(v => Number.isNaN(v) ? null : v));
      }
      return { rates, label: model.label('G') }""")  # fmt: skip
    assert result["rates"] == [[None, None], [5, 500], [5, 500], [None, None], [2, 200]]
    assert result["label"] == "GPU 3"


def test_what_is_no_snapshot_or_event_is_passed_over(call):
    result = call("model", """
      const model = new m.Model();
      const taken = [null, 7, {}, { devices: 1 }, { devices: [{}], jobs: [{}] }].map(body => model.apply(body));
      model.addEvents([{ name: 'y', time_unix_ms: 1 }, { name: 'x', time_unix_ms: 2 }]);
      model.addEvents([{ name: 'x', time_unix_ms: 2 }, null, 3, { name: 'z', time_unix_ms: 3 }]);
      for (let i = 0; i < 500; i += 1) model.addEvent({ name: 'many', time_unix_ms: -i });
      const events = model.events.slice(0, 4).map(event => event.name);
      return { taken, events, kept: model.events.length }""")  # fmt: skip
    assert result == {"taken": [False] * 4 + [True], "events": ["z", "x", "y", "many"], "kept": 200}


def test_events_are_told_apart_by_their_ids(call):
    result = call("model", """
      const model = new m.Model(), event = (id, time) => ({ id, name: 'limit', time_unix_ms: time, job: 'a' });
      const fresh = [model.addEvents([event(8, 1), event(9, 1), event(9, 1)]), model.addEvent(event(9, 1)),
        model.addEvent(event(10, 1)), model.addEvents([event(8, 1), event(11, 2)])];
      return { fresh, ids: model.events.map(event => event.id) }""")  # fmt: skip
    assert result["fresh"] == [2, False, True, 1]
    assert result["ids"] == [11, 10, 9, 8]


def test_a_step_takes_the_mean_of_the_last_ones(call):
    result = call("model", """
      const snapshot = (time, steps, step_ns) => ({ time_unix_ms: time, pid: 1, uptime_ms: time,
        devices: [{ uuid: 'G' }], jobs: [{ id: 1, name: 'a', device: 'G', steps, step_ns, step_ns_last: 7e9 }] });
      const model = new m.Model();
      return [[1000, 10, 1e9], [2000, 14, 3e9], [20000, 14, 3e9], [21000, 14, 3e9]].map((values) => {
        model.apply(snapshot(...values));
        return model.jobs[0].stepSeconds;
      })""")  # fmt: skip
    assert result == [7, 0.5, 7, 7]  # one snapshot, four steps in 2 s, then none: the last one's


def test_jobs_sort_with_missing_figures_last(call):
    result = call("tables", """
      const row = ([name, stepRate]) => ({ name, stepRate, key: name });
      const rows = [['c', NaN], ['b', 1], ['d', 3], ['a', 1]].map(row);
      const names = (column, down) => m.sorted(rows, column, down, {}).map(row => row.name).join('');
      const orders = [['name', false], ['name', true], ['stepRate', true], ['stepRate', false]];
      return orders.map(order => names(...order))""")  # fmt: skip
    assert result == ["abcd", "dcba", "dabc", "abdc"]


def test_waits_grow_and_recordings_are_searched(call):
    assert call("source", "return [1, 2, 3, 4, 5, 50].map(m.backoff)") == [1000, 2000, 4000, 8000, 10000, 10000]
    found = call("recording", """
      const entries = [10, 20, 20, 30].map(time => ({ time }));
      return [5, 10, 20, 25, 99].map(t => m.lastUpTo(entries, t))""")  # fmt: skip
    assert found == [-1, 0, 2, 2, 3]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_colours_of_eight_jobs_stay_apart_for_every_eye(call, theme):
    colours, panel = call("palette", f"return [m.allColours('{theme}'), m.ink('{theme}').panel]")
    assert len(set(colours)) == 16
    for kind in colour_vision.KINDS:
        distance = colour_vision.least_distance(colours[:8], kind)
        assert distance > 0.09, f"{kind}: {distance:.3f}"
    assert min(colour_vision.contrast(colour, panel) for colour in colours) > 2.1


def test_a_job_keeps_its_colour(call):
    result = call("palette", """
      const kept = new Map(), store = { getItem: k => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v) };
      const names = Array.from({ length: 16 }, (_, i) => `job ${i}`), nine = names.slice(0, 9);
      const first = new m.JobColours(store);
      first.meet(nine);
      const before = nine.map(name => first.slot(name));
      first.meet([...names].reverse());
      const again = new m.JobColours(store);
      again.meet([...names].reverse());
      const odd = ['{', '[1]', '[["a","b"]]', 'null'].map(text => {
        const colours = new m.JobColours({ getItem: () => text, setItem() { throw new Error('full'); } });
        colours.meet(['a']);
        return colours.slot('a') >= 0;
      });
      return { stays: nine.every((name, i) => first.slot(name) === before[i]),
        all: new Set(names.map(name => first.slot(name))).size,
        reload: names.every(name => again.slot(name) === first.slot(name)), odd }""")  # fmt: skip
    assert result == {"stays": True, "all": 16, "reload": True, "odd": [True] * 4}
