"""tools/check_includes.py on small made-up trees."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_includes.py"


def check(root: Path) -> tuple[int, str]:
    run = subprocess.run([sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


@pytest.fixture
def tree(tmp_path):
    """A tree with a header in each folder, into which tests write more."""

    def write(path: str, *lines: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")

    for folder in ("client/wire", "client/torch", "client", "quant", "optim8bit", "kernels", "paging", "daemon"):
        write(f"{folder}/a.h", "#pragma once")
    write("kernels/local.h", "#pragma once")
    write.root = tmp_path
    return write


def test_project_itself_obeys():
    code, out = check(SCRIPT.parent.parent)
    assert code == 0, out


@pytest.mark.parametrize(
    ("file", "included"),
    [
        ("daemon/b.cc", "paging/a.h"),
        ("daemon/b.cc", "kernels/a.h"),
        ("kernels/b.cc", "optim8bit/a.h"),
        ("optim8bit/b.cc", "quant/a.h"),
        ("quant/b.cc", "client/wire/a.h"),
        ("client/b.cc", "quant/a.h"),
        ("client/b.cc", "kernels/local.h"),
        ("client/b.cc", "client/a.h"),
        ("client/torch/b.cc", "client/a.h"),
        ("client/torch/b.cc", "client/torch/a.h"),
        ("tests/b.cc", "daemon/a.h"),
        ("tools/b.cc", "paging/a.h"),
    ],
)
def test_allowed(tree, file, included):
    tree(file, f'#include "{included}"')
    code, out = check(tree.root)
    assert code == 0, out


@pytest.mark.parametrize(
    ("file", "included"),
    [
        ("paging/b.cc", "kernels/a.h"),
        ("paging/b.cc", "client/a.h"),
        ("client/wire/b.h", "client/a.h"),
        ("client/b.cc", "kernels/a.h"),
        ("client/b.cc", "client/torch/a.h"),
        ("client/torch/b.cc", "kernels/local.h"),
        ("client/b.cc", "daemon/a.h"),
        ("client/b.cc", "paging/a.h"),
        ("kernels/b.cc", "daemon/a.h"),
        ("kernels/b.cc", "client/a.h"),
        ("quant/b.cc", "optim8bit/a.h"),
        ("quant/b.h", "kernels/a.h"),
        ("optim8bit/b.cc", "kernels/a.h"),
    ],
)
def test_forbidden(tree, file, included):
    tree(file, "// first line", f'#include "{included}"')
    code, out = check(tree.root)
    assert code == 1
    assert f"{file}:2: {included}" in out


def test_missing_header_is_named(tree):
    tree("daemon/b.cc", '#include "b.h"')
    code, out = check(tree.root)
    assert code == 1 and "daemon/b.cc:1: b.h: no such file" in out


@pytest.mark.parametrize("header", ["cuda.h", "cuda_runtime.h", "cublas_v2.h", "nvml.h", "cub/cub.cuh"])
def test_cuda_headers_only_under_their_folder(tree, header):
    tree("kernels/cuda/b.cc", f"#include <{header}>")
    assert check(tree.root)[0] == 0
    tree("kernels/b.cc", f"#include <{header}>")
    code, out = check(tree.root)
    assert code == 1 and "only kernels/cuda/ may include CUDA headers" in out


def test_torch_and_spdlog_meet_through_a_header(tree):
    tree("tools/log.h", "#include <spdlog/spdlog.h>")
    tree("tools/b.cc", "#include <torch/torch.h>")
    assert check(tree.root)[0] == 0
    tree("tools/b.cc", "#include <torch/torch.h>", '#include "tools/log.h"')
    code, out = check(tree.root)
    assert code == 1 and "tools/b.cc: includes both torch and spdlog" in out


def test_unnamed_test_is_found(tree):
    tree("tests/daemon/b_test.cc", "int main() {}")
    code, out = check(tree.root)
    assert code == 1 and "tests/daemon/b_test.cc: named in no CMakeLists.txt" in out
    tree("tests/daemon/CMakeLists.txt", "bitpager_test(b_test SOURCES b_test.cc)")
    assert check(tree.root)[0] == 0


def test_empty_tree_is_no_success(tmp_path):
    assert check(tmp_path)[0] == 2
