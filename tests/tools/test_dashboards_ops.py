"""tools/dashboards for Prometheus and Grafana, against a real daemon with jobs and a real Prometheus: every query names
metrics and labels that are exported, every alert fires.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import promql
import pytest
from live_prometheus import CONFIG, DIRECT, ROOT, RULES, Node, Prometheus, await_that

GRAFANA = ROOT / "tools" / "dashboards" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "bitpager.json").read_text())
ALERTS = {
    "BitpagerDown",
    "BitpagerPressure",
    "BitpagerThrash",
    "BitpagerSessionKilled",
    "BitpagerNonFinite",
    "BitpagerHostNearlyCommitted",
}
# Of the scrape, not of the daemon. (`job` is both: honor_labels keeps the daemon's.)
SCRAPE_LABELS = {"instance", "job"}
ANNOTATIONS = {note["name"] for note in DASHBOARD["annotations"]["list"]}
# That nothing is wrong is told by no series; the test cannot make a reader too slow.
WHEN_WRONG = {"bitpager_events_dropped_total"}
# Exported only where there is something to say.
NOT_ON_CPU = {"bitpager_link_bytes_per_second"}
VARIABLES = {"$__rate_interval": "20s", "$__range": "5m", "$gpu": ".*", "$job": ".*"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="promtool and prometheus are not installed (Debian's package prometheus)",
)


def promtool(*arguments, text=None):
    """(exit code, output)."""
    done = subprocess.run(["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


# ---- files alone ----


@pytest.mark.parametrize(
    "expression, selectors, grouping",
    (
        ("up == 0", ["up{}"], set()),
        ('sum by (a, b) (rate(m_total{x="1",y=~".*"}[5m])) > 1e3', ['m_total{x="1",y=~".*"}'], {"a", "b"}),
        ('sum(m{s="} by (q) {"}) without (z) # not{this}', ['m{s="} by (q) {"}'], {"z"}),
        ("a offset 5m unless on (i) group_left (k) b @ end() or c", ["a{}", "b{}", "c{}"], {"i", "k"}),
        ("sum / count", ["sum{}", "count{}"], set()),
        ("time() - rate_total[1h30m:5s]", ["rate_total{}"], set()),
        ("histogram_quantile(0.99, sum by (le) (rate(h_bucket[20s])))", ["h_bucket{}"], {"le"}),
    ),
)
def test_selectors_are_found(expression, selectors, grouping):
    found = promql.named(expression)
    assert [str(one) for one in found.selectors] == selectors and found.grouping == grouping


def test_what_is_not_understood_is_refused():
    for wrong in ('{job="a"}', "m{a=b}", 'm{a="b"', "sum by (a", "m $ n"):
        with pytest.raises(ValueError):
            promql.named(wrong)


@needs_promtool
def test_rules_and_configuration_pass_promtool():
    for what, file in (("rules", RULES), ("config", CONFIG)):
        code, output = promtool("check", what, file)
        assert code == 0 and "SUCCESS" in output, output


@needs_promtool
def test_each_alert_fires_for_what_it_is_about(tmp_path):
    tests = ROOT / "tests" / "tools" / "alerts_test.yaml"
    code, output = promtool("test", "rules", tests)
    assert code == 0, output
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == ALERTS
    fired = re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- exp_labels", tests.read_text())
    assert set(fired) == ALERTS, "an alert that no test sees fire"


@needs_promtool
def test_a_rule_that_does_not_fire_is_found(tmp_path):
    (tmp_path / "rules.yaml").write_text(RULES.read_text().replace("> 0.9\n", "> 0.99\n"))
    tests = (ROOT / "tests" / "tools" / "alerts_test.yaml").read_text()
    (tmp_path / "tests.yaml").write_text(re.sub(r"- \.\./.*yaml", "- rules.yaml", tests))
    code, output = promtool("test", "rules", tmp_path / "tests.yaml")
    assert code != 0 and "BitpagerPressure" in output


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_grafana_reads_the_dashboard():
    assert DASHBOARD["uid"] == "bitpager-node" and 36 <= DASHBOARD["schemaVersion"] <= 41
    assert "id" not in DASHBOARD and "__inputs" not in DASHBOARD
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert {panel["type"] for panel in panels()} <= {"timeseries", "stat", "table", "heatmap"}
    for panel in panels():
        assert panel["title"] and panel["description"], panel["id"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "gpu", "job"]
    assert all(variables[name]["includeAll"] and variables[name]["multi"] for name in ("gpu", "job"))


def test_panels_do_not_overlap():
    taken = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] and at["x"] + at["w"] <= 24 and at["h"] > 0, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], panel["title"]


def test_units_are_those_of_the_metrics():
    """Bytes in bytes, rates of bytes in Bps, times in s, so that nobody reads one for the other."""
    for panel in panels():
        unit = panel["fieldConfig"]["defaults"].get("unit", panel["options"].get("yAxis", {}).get("unit"))
        for target in panel["targets"] if panel["type"] == "timeseries" else ():
            names = {one.name for one in promql.named(plain(target["expr"])).selectors}
            if unit in ("percentunit", "short", "cps"):
                continue
            if names == {"bitpager_job_step_seconds_total", "bitpager_steps_total"}:
                assert unit == "s", panel["title"]  # the seconds over the steps
                continue
            rate = "rate(" in target["expr"] and "quantile" not in target["expr"]
            kind = {"_bytes": "bytes", "_bytes_total": "Bps", "_per_second": "Bps", "_seconds": "s"}
            wanted = {
                kind[max((end for end in kind if re.sub("_bucket$|_sum$", "", name).endswith(end)), key=len)]
                for name in names
                if name != "bitpager_draining"
            }
            assert wanted <= {unit} and (not rate or unit == "Bps"), (panel["title"], names)


def test_provisioning_files_name_the_data_source():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "bitpager.yaml").read_text())
    assert source["apiVersion"] == 1 and source["datasources"][0]["type"] == "prometheus"
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "bitpager.yaml").read_text())
    assert provider["apiVersion"] == 1 and provider["providers"][0]["type"] == "file"
    assert provider["providers"][0]["options"]["path"].startswith("/")


# ---- queries ----


def plain(expression: str, instance="") -> str:
    """An expression as Grafana would send it."""
    expression = expression.replace("$instance", instance)
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def dashboard_targets():
    """(where, expression, legend)."""
    found = [(panel["title"], t["expr"], t["legendFormat"]) for panel in panels() for t in panel["targets"]]
    for note in DASHBOARD["annotations"]["list"]:
        if "expr" in note:
            found.append((note["name"], note["expr"], ""))
    return found


def variable_queries():
    """(variable, selector, label) of label_values(selector, label)."""
    found = []
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["definition"] == variable["query"]["query"]
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
            found.append((variable["name"], selector, label))
    return found


def exported(text: str) -> dict:
    """{series name: labels} of an exposition."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", line).groups()
            found.setdefault(name, set()).update(re.findall(r'(\w+)="(?:\\.|[^"\\])*"', labels or ""))
    return found


class Live:
    """A node under load and its Prometheus."""

    def __init__(self):
        budgets = ("--device-budget", "1MiB", "--host-budget", "24MiB", "--page-size", "16KiB", "--window-pages", "8")
        self.node = Node("--device", "cpu", *budgets)
        self.prometheus = None
        try:
            self.jobs = {name: self.node.train(name, quota) for name, quota in (("first", "512KiB"), ("second", "0"))}
            self.prometheus = Prometheus(self.node.address)
            for job in self.jobs.values():
                job.await_training()
            self.be_refused()
            scrapes = "count_over_time(bitpager_errors_total[1m]) > 4"
            await_that("some scrapes", lambda: self.prometheus.query(scrapes))
        except BaseException:
            self.close()
            raise

    def be_refused(self):
        """An error for the daemon to count."""
        import bitpager

        with pytest.raises(bitpager.InvalidArgumentError):
            bitpager.connect(socket=self.node.daemon.socket, job="refused", device_quota=1, default=False)

    def visit(self):
        """A session that attaches, for a while."""
        import bitpager

        return bitpager.connect(socket=self.node.daemon.socket, job="visitor", linger=0, default=False)

    def close(self):
        if self.prometheus is not None:
            self.prometheus.close()
        self.node.close()


@pytest.fixture(scope="module")
def live():
    made = Live()
    yield made
    made.close()


@needs_promtool
def test_the_exposition_passes_promtool(live):
    text = live.node.metrics()
    code, output = promtool("check", "metrics", text=text)
    assert (code, output) == (0, "")
    assert {'job="first"', 'job="second"'} <= set(re.findall(r'job="\w+"', text))


@needs_promtool
def test_every_query_names_what_is_exported(live):
    there = exported(live.node.metrics())
    expressions = [(where, plain(expression)) for where, expression, _ in dashboard_targets()]
    expressions += [(name, plain(selector)) for name, selector, _ in variable_queries()]
    expressions += [(rule["name"], rule["query"]) for rule in rules(live)]
    assert len(expressions) > 50
    for where, expression in expressions:
        found = promql.named(expression)
        known = set(SCRAPE_LABELS)
        for selector in found.selectors:
            if selector.name == "up":
                continue
            if selector.name not in NOT_ON_CPU:
                assert selector.name in there, f"{where}: nobody exports {selector.name}"
            known |= there.get(selector.name, {"gpu", "UUID", "direction"})
            for label, _, _ in selector.matchers:
                assert label in known, f"{where}: {selector.name} has no label {label}"
        assert found.grouping <= known, f"{where}: {found.grouping - known} are no labels of {expression}"
    for name, selector, label in variable_queries():
        assert label in there[promql.named(plain(selector)).selectors[0].name] | {"instance"}, name


@needs_promtool
def test_every_selector_finds_series(live):
    """Values of matchers too: a misspelt direction="to_device" would match nothing."""
    for where, expression, _ in dashboard_targets():
        for selector in promql.named(plain(expression, live.node.address)).selectors:
            if selector.name not in NOT_ON_CPU:
                assert live.prometheus.ask("series", **{"match[]": str(selector)}), f"{where}: {selector}"
    for name, selector, label in variable_queries():
        values = live.prometheus.ask(f"label/{label}/values", **{"match[]": plain(selector, live.node.address)})
        wanted = {"instance": [live.node.address], "gpu": ["cpu"], "job": ["first", "second"]}[name]
        assert values == wanted


@needs_promtool
def test_every_query_answers_with_the_labels_of_its_legend(live):
    live.be_refused()  # an error for the panels of errors
    with live.visit():  # and an event
        recent = "increase(bitpager_events_total[20s]) > 0 and on () (increase(bitpager_errors_total[20s]) > 0)"
        await_that("a recent error and event", lambda: live.prometheus.query(recent))
    silent = set()
    for where, expression, legend in dashboard_targets():
        result = live.prometheus.query(plain(expression, live.node.address))
        if not result and where in ANNOTATIONS:
            continue  # of restarts and kills, of which the others here want none
        if not result:
            silent |= {selector.name for selector in promql.named(plain(expression)).selectors}
        elif "by (job" in expression or "{{job}}" in legend:
            # Quotas are shown where there is one.
            wanted = {"first"} if "quota_bytes" in expression and "> 0" in expression else {"first", "second"}
            assert wanted <= {series["metric"]["job"] for series in result}, f"{where}: {expression}"
        for series in result:
            missing = set(re.findall(r"\{\{(\w+)\}\}", legend)) - series["metric"].keys()
            assert not missing, f"{where}: the legend wants {missing} of {series['metric']}"
    assert silent <= NOT_ON_CPU | WHEN_WRONG, silent


def table(heading: str) -> list:
    """Rows of cells of the first table behind a heading of telemetry.md, without the table's own heading."""
    text = (ROOT / "client" / "python" / "docs" / "telemetry.md").read_text()
    section = text.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(?m)(?:^\|.*\|\n)+", section).group().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@needs_promtool
def test_the_documentation_names_exactly_what_is_exported(live):
    text = live.node.metrics()
    types = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    labels = {name: set() for name in types}
    for series, found in exported(text).items():
        family = series if series in types else re.sub("_bucket$|_sum$|_count$", "", series)
        labels[family] |= found - {"le"}
    rows = {row[0].strip("`"): row for row in table("## Metrics")}
    assert rows.keys() == types.keys()
    for name, (_, kind, said, meaning) in rows.items():
        assert kind == types[name] and meaning, name
        if name not in NOT_ON_CPU:
            assert {label for label in said.split(", ") if label} == labels[name], name
    for name in re.findall(r"bitpager_\w+", RULES.read_text()):
        assert re.sub("_bucket$|_sum$|_count$", "", name) in rows


@needs_promtool
def test_every_documented_path_answers(live):
    for path, answer in table("## HTTP"):
        path = path.strip("`").replace("cells=N", "cells=64")
        with DIRECT.open(f"http://{live.node.address}{path}", timeout=10) as reply:
            assert reply.status == 200 and reply.read(15), path
            kind = reply.headers["Content-Type"]
        wanted = {"/api/stream?cells=64": "text/event-stream", "/": "text/html", "/metrics": "text/plain"}
        assert kind.startswith(wanted.get(path, "application/json")) and answer, path


@needs_promtool
def test_the_documentation_names_every_event(live):
    events = set(re.findall(r'bitpager_events_total\{event="(\w+)"\}', live.node.metrics()))
    section = (ROOT / "client" / "python" / "docs" / "telemetry.md").read_text().split("\n| name | when | bytes |\n")[1]
    assert set(re.findall(r"(?m)^\| (\w+) \|", section.split("\n\n")[0])) == events


@needs_promtool
def test_the_dashboard_tells_what_the_daemon_tells(live):
    """A number all the way through: daemon, scrape, query of a panel."""
    told = live.node.status()
    panel = next(panel for panel in panels() if panel["title"].startswith("Host memory"))
    result = live.prometheus.query(plain(panel["targets"][0]["expr"], live.node.address))
    shown = {(s["metric"]["job"], s["metric"]["kind"]): int(s["value"][1]) for s in result}
    for job in told["jobs"]:
        kinds = [value for (name, _), value in shown.items() if name == job["name"]]
        assert len(kinds) == 2 and sum(kinds) == job["host_bytes"] > 0


def rules(live) -> list:
    """The rules as Prometheus has read them."""
    return [rule for group in live.prometheus.ask("rules")["groups"] for rule in group["rules"]]


@needs_promtool
def test_alerts_fire_in_a_real_prometheus(live):
    assert {rule["name"] for rule in rules(live)} == ALERTS
    # One scrape that a busy machine answers too late is a daemon that is down, for half a second.
    wrong = {"BitpagerDown", "BitpagerSessionKilled", "BitpagerNonFinite"}
    await_that("none of these fires", lambda: not wrong & live.prometheus.firing().keys())

    def fires(alert, **labels):
        def look():
            return [one for one in live.prometheus.firing().get(alert, ()) if labels.items() <= one.items()]

        await_that(f"{alert} fires with {labels}", look)

    live.jobs["first"].say("nan")
    fires("BitpagerNonFinite", job="first", gpu="cpu", instance=live.node.address)
    live.jobs["second"].kill()
    fires("BitpagerSessionKilled", instance=live.node.address, severity="warning")
    fill_the_host_budget(live)
    fires("BitpagerHostNearlyCommitted", instance=live.node.address)
    assert all(rule["health"] == "ok" for rule in rules(live)), [rule.get("lastError") for rule in rules(live)]
    live.node.daemon.stop()
    fires("BitpagerDown", job="bitpager", severity="critical")


def fill_the_host_budget(live):
    """A job with a buffer of nearly all that is left of it."""
    import bitpager
    from bitpager import _lib

    session = bitpager.connect(socket=live.node.daemon.socket, job="filler", linger=0, default=False)
    told = live.node.status()
    left = told["host_budget_bytes"] - told["host_committed_bytes"]
    buffer, address = _lib.c_uint64(), _lib.c_void_p()
    _lib.check(_lib.lib().bp_buffer_create(session.handle, left // 100 * 97, _lib.byref(buffer), _lib.byref(address)))
    live.filler = session
