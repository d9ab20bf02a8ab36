"""The wheel: it installs without compiler or network, and what it installs works on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import BUILD, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the build folder."""
    for tool in ("patchelf", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, str(ROOT / "tools" / "build_wheel.py"), "--build-dir", str(BUILD), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_tag_and_contents(wheel):
    name = os.path.basename(wheel)
    assert name.startswith("bitpager-") and "-py3-none-manylinux_2_" in name and name.endswith("_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        modes = {item.filename: item.external_attr >> 16 for item in archive.infolist()}
        metadata = next(archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    for native in ("bitpagerd", "bitpager", "libbitpager.so"):
        assert f"bitpager/_native/{native}" in names
    assert "Provides-Extra: hf\n" in metadata and 'Requires-Dist: peft>=0.19; extra == "hf"\n' in metadata
    assert modes["bitpager/_native/bitpagerd"] & 0o111
    assert {"bitpager/py.typed", "bitpager/allocator_guard.cc", "bitpager/optim/gradient_gather.cc"} <= names


def test_installed_package_verifies_itself(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), wheel]
    subprocess.run(pip, check=True, capture_output=True)
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    dropped = ("BITPAGER_BUILD_DIR", "BITPAGER_LIBRARY", "BITPAGERD", "BITPAGER_SOCKET", "LD_LIBRARY_PATH")
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    env.update(PYTHONPATH=str(target), XDG_RUNTIME_DIR=str(run))
    command = [sys.executable, "-m", "bitpager"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(target) in result.stdout
    version = subprocess.run([str(target / "bin" / "bitpagerd"), "--version"], env=env, capture_output=True, text=True)
    assert version.returncode == 0 and "0.1" in version.stdout


def test_missing_build_is_named(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "build_wheel.py"), "--build-dir", str(tmp_path), "--out", "x"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "bitpagerd" in result.stderr and "Hint" in result.stderr
