"""The guides in client/python/docs do what they say: every block runs (see guide.py), every link leads somewhere, and
every name of ours in the prose exists."""

from __future__ import annotations

import os
import pathlib
import re
import stat
import subprocess
import sys

import bitpager
import guide
import pytest
import tiny
import torch

pytest.importorskip("peft")
pytest.importorskip("trl")
ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "client" / "python" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Pages of these names are run here; others have tests of their own.
RUN_HERE = {
    "alternatives.md",
    "formats.md",
    "index.md",
    "memory.md",
    "moving-from-bitsandbytes.md",
    "optimizers-8bit.md",
    "qlora.md",
    "several-jobs.md",
    "sharing.md",
    "telemetry.md",
}
TESTED_ELSEWHERE = {
    "libtorch.md": "tests/torch/consumer",  # builds and runs the program that the page's blocks are taken from
    "out-of-memory.md": "tests/python/test_out_of_memory_guide.py",
}
FLAGS_OF_OTHERS = {"--gpus", "--shm-size"}  # of container engines


def page(name):
    return pytest.param(guide.Page(DOCS / name), id=name)


@pytest.fixture
def names(models):
    """What capitals in rules stand for."""
    return {
        "LLAMA": repr(models("llama")),
        "LLAMA_FOLDER": models("llama"),
        "LLAMA_FLOAT16": repr(models("llama", dtype=torch.float16)),
        "BNB": repr(str(ROOT / "tests" / "golden" / "bnb-llama" / "nf4")),
        "TEXT": str(pathlib.Path(re.__file__)),
    }


def given():
    """What a page may take for granted."""
    rows = tiny.Windows(8, 32)
    batches = [{key: value[None] for key, value in rows[i].items()} for i in range(4)]
    return {"train_dataset": rows, "eval_dataset": tiny.Windows(4, 32, skip=9), "dataloader": batches}


@pytest.fixture
def shell(shared_daemon, tmp_path):
    """(folder, environment) of shell blocks: commands as a wheel installs them, this folder's daemon, and a bitpagerd
    that serves a socket of the test's own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    python = f'exec "{sys.executable}"'
    own = tmp_path / "own.sock"
    write_program(tools / "python", f'{python} "$@"')
    native = bitpager._lib.program_path
    plan = f'[ "$1" = plan ] && shift && {python} -m bitpager.plan "$@"'  # as bitpager.commands sends it
    write_program(tools / "bitpager", f'{plan}\nexec "{native("bitpager")}" "$@"')
    shape = "--page-size 16KiB --window-pages 8 --device cpu"
    write_program(tools / "bitpagerd", f'exec "{native("bitpagerd")}" --socket {own} {shape} "$@"')
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "client").symlink_to(ROOT / "client")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    environment.update(BITPAGER_SOCKET=shared_daemon.socket, OWN_SOCKET=str(own), NO_COLOR="1", OMP_NUM_THREADS="1")
    yield folder, environment
    if own.exists():
        subprocess.run([native("bitpager"), "drain", "--socket", str(own)], check=True)


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("page", [page(name) for name in sorted(RUN_HERE) if (DOCS / name).is_file()])
def test_blocks_do_what_they_say(page, session, shared_daemon, names, shell, monkeypatch):
    folder, environment = shell
    bitpager.disconnect()
    monkeypatch.setenv("BITPAGER_SOCKET", shared_daemon.socket)
    monkeypatch.setenv("BITPAGER_JOB", "guide")
    monkeypatch.chdir(folder)
    namespace = {"__name__": "__main__", **{name: given()[name] for name in page.given}}
    for block in page.blocks:
        code = page.substituted(block.code, names)
        if block.kind == guide.SHELL:
            starts = re.search(r"^bitpagerd ", code, re.MULTILINE)
            socket = environment["OWN_SOCKET" if starts else "BITPAGER_SOCKET"]
            printed = guide.run_shell(page, block, code, folder, {**environment, "BITPAGER_SOCKET": socket})
        elif block.kind != guide.RUN:
            continue
        elif block.needs_gpu and not guide.has_gpu():
            guide.check_unrun(page, block)
            continue
        else:
            printed = guide.run_python(page, block, code, namespace)
        if block.printed is not None:
            said = page.substituted(block.printed, names)
            assert guide.printed_as_said(said, printed), f"{page.path.name}:{block.line} printed\n{printed}"


@pytest.mark.parametrize("page", [page(name) for name in sorted(RUN_HERE) if (DOCS / name).is_file()])
def test_pages_are_well_made(page):
    assert not page.idle_rules(), page.idle_rules()
    assert set(page.given) <= set(given())
    for block in page.blocks:
        assert block.kind in guide.KINDS, f"{page.path.name}:{block.line}: unknown kind of block {block.kind!r}"
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dep")[2], re.M))
    for said in re.findall(r"bitpager\[([\w,]+)\]", page.text):
        assert set(said.split(",")) <= extras, said


def test_every_page_is_tested_somewhere():
    assert {path.name for path in PAGES} == RUN_HERE | TESTED_ELSEWHERE.keys()
    assert all((ROOT / test).is_file() for test in TESTED_ELSEWHERE.values())


def test_index_links_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()))
    there = {path.name for path in PAGES} - {"index.md"}
    assert there == linked, there ^ linked


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", guide.Page(path).prose()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        found = path if not file else (path.parent / file).resolve()
        assert found.exists(), f"{path.name} links {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links {target}"


def anchors(path):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", guide.Page(path).prose(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(name for name in RUN_HERE if (DOCS / name).is_file()))
def test_names_in_the_prose_exist(name):
    """`bitpager.x.y`, and the commands and flags of our programs."""
    prose = guide.Page(DOCS / name).prose()
    for dotted in set(re.findall(r"`(bitpager(?:\.\w+)+)", prose)):
        assert guide.resolve(dotted) is not None, dotted
    helps = help_of("bitpager")
    for command in set(re.findall(r"`bitpager ([a-z]+)", prose)):
        assert re.search(rf"^  {command}\b", helps, re.MULTILINE), f"bitpager {command}"
    flags = set(re.findall(r"`(?:bitpagerd )?(--[a-z-]+)", prose)) - FLAGS_OF_OTHERS
    known = help_of("bitpagerd") + help_of("bitpager", "limit") + help_of("bitpager", "events") if flags else ""
    assert all(re.search(rf"^ *(-\w,)?{flag}\b", known, re.MULTILINE) for flag in flags), flags


def help_of(program, *arguments):
    path = bitpager._lib.program_path(program)
    return subprocess.run([path, *arguments, "--help"], capture_output=True, text=True, check=True).stdout


def test_rules_and_marks_are_read(tmp_path):
    (tmp_path / "p.md").write_text(
        '<!-- test\n"big" -> SMALL\nsteps=100 -> steps=2\ngiven: dataloader\nunused -> x\n-->\n# T\n'
        '```python\nx = "big", dict(steps=100)\n```\n\n```text\nout\n```\n'
        "```python\n# raises bitpager.UnsupportedError: not there\nraise ValueError\n```\n"
        "```python\n# needs a GPU\nimport bitpager\nbitpager.nothing()\n```\n"
    )
    page = guide.Page(tmp_path / "p.md")
    first, second, third = page.blocks
    assert page.substituted(first.code, {"SMALL": "'s'"}) == "x = 's', dict(steps=2)\n"
    assert first.line == 9 and first.printed == "out\n" and page.given == ["dataloader"]
    assert page.idle_rules() == ["unused"]
    assert second.raises == ("bitpager.UnsupportedError", "not there") and third.needs_gpu
    with pytest.raises(AssertionError, match="is no bitpager.UnsupportedError"):
        guide.run_python(page, second, second.code, {})
    with pytest.raises((AttributeError, ImportError)):
        guide.check_unrun(page, third)
    assert guide.printed_as_said("a\n...\nd", "a\nb\nc\nd\n") and guide.printed_as_said("a\n...", "a\nb\n")
    assert not guide.printed_as_said("a\n...\nd", "a\nb\nc\n") and not guide.printed_as_said("a", "a\nb")
