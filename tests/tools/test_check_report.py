"""tools/check_report.py: the sum over gtest, ctest, pytest and the static checks."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_report.py"

GTEST = """<testsuites><testsuite name="Ring">
<testcase name="Fills" classname="Ring" status="run" result="completed"/>
<testcase name="{second}" classname="Ring" status="run" result="completed">{inside}</testcase>
<testcase name="Off" classname="Ring" status="notrun" result="suppressed"/>
</testsuite></testsuites>"""
CTEST = '<testsuite name="x"><testcase name="{name}" status="{status}">{inside}</testcase></testsuite>'


def report(folder: Path) -> tuple[int, list[str]]:
    run = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True)
    return run.returncode, run.stdout.splitlines()


def write_build(folder: Path, name: str, status: str, gtest: str | None) -> None:
    folder.mkdir(exist_ok=True)
    inside = "<failure/>" if status == "fail" else ""
    (folder / f"ctest-{name}.junit").write_text(CTEST.format(name=name, status=status, inside=inside))
    if gtest is not None:
        (folder / f"{name}.xml").write_text(gtest)


def test_sums_all_kinds(tmp_path):
    (tmp_path / "static.txt").write_text("format passed\nclang-tidy skipped\n")
    write_build(tmp_path / "release", "ring_test", "run", GTEST.format(second="Wraps", inside=""))
    write_build(tmp_path / "release", "script", "run", None)
    (tmp_path / "pytest.xml").write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><skipped/></testcase></testsuite></testsuites>'
    )
    assert report(tmp_path) == (0, ["5 passed, 0 failed, 3 skipped"])


def test_names_failed_cases(tmp_path):
    (tmp_path / "static.txt").write_text("ruff failed\n")
    write_build(tmp_path / "release", "ring_test", "fail", GTEST.format(second="Wraps", inside="<failure/>"))
    code, lines = report(tmp_path)
    assert code == 1
    assert lines == ["FAILED ruff", "FAILED release/ring_test: Ring.Wraps", "1 passed, 2 failed, 1 skipped"]


def test_failures_say_what_was_wrong(tmp_path):
    said = '<failure message="ring_test.cc:7&#10;Expected: 1&#10;" type=""><![CDATA[the long form]]></failure>'
    write_build(tmp_path / "tsan", "ring_test", "fail", GTEST.format(second="Wraps", inside=said))
    (tmp_path / "pytest.xml").write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"><error>fixture broke</error></testcase>'
        f'<testcase classname="t" name="b"><failure message="{"line&#10;" * 40}"/></testcase></testsuite></testsuites>'
    )
    lines = report(tmp_path)[1]
    assert lines[:3] == ["FAILED tsan/ring_test: Ring.Wraps", "    ring_test.cc:7", "    Expected: 1"]
    assert lines[3:5] == ["FAILED pytest: t.a", "    fixture broke"]
    assert lines[5:-1] == ["FAILED pytest: t.b"] + ["    line"] * 12


def test_a_process_that_fails_outside_its_cases_counts(tmp_path):
    write_build(tmp_path / "asan", "ring_test", "fail", GTEST.format(second="Wraps", inside=""))
    code, lines = report(tmp_path)
    assert code == 1 and lines[-1] == "2 passed, 1 failed, 1 skipped"


def test_a_process_that_leaves_no_xml_counts_once(tmp_path):
    write_build(tmp_path / "asan", "ring_test", "fail", None)
    assert report(tmp_path) == (1, ["FAILED asan/ring_test", "0 passed, 1 failed, 0 skipped"])


def test_torn_xml_counts_as_its_entry(tmp_path):
    write_build(tmp_path / "tsan", "ring_test", "fail", "<testsuites><testsuite")
    assert report(tmp_path)[1][-1] == "0 passed, 1 failed, 0 skipped"


def test_nothing_run_is_no_success(tmp_path):
    assert report(tmp_path) == (1, ["0 passed, 0 failed, 0 skipped"])
