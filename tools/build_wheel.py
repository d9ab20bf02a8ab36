#!/usr/bin/env python3
"""Builds the wheel: the Python package, the daemon, the command and every library they need, so that a machine
installs it without root or compiler.

    python tools/build_wheel.py --build-dir build/release --out dist

It is also the project's PEP 517 backend (pip install .), which takes the native files from the CMake build folder named
by BITPAGER_BUILD_DIR, else builds them into build/wheel. Needs the standard library, patchelf, readelf; no packages.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "client" / "python" / "bitpager"
NATIVE = {"bin/bitpagerd": "bitpagerd", "bin/bitpager": "bitpager", "lib/libbitpager.so": "libbitpager.so"}
# Built where there is a CUDA compiler: kernels that a training process runs itself.
NATIVE_CUDA = {"lib/libbitpager_cuda.so": "libbitpager_cuda.so"}
# glibc of Ubuntu 22.04: the bundle runs there and on all that is newer.
NEWEST_GLIBC = 35
# Programs of the bundle beside those of the wheel, where they were built.
TEST_PROGRAMS = "*_cuda_*_test"
TARGETS = ("bitpagerd", "bitpager", "bitpager_shared")

# Of glibc and the loader: every Linux of the platform tag has them.
SYSTEM_LIBRARIES = re.compile(r"(ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libresolv|libutil)\.so\.\d+")
# Never beside libbitpager.so, where a Python process could pick them up in place of its own.
PROGRAM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s)\.so\.\d+")


class BuildError(RuntimeError):
    """The wheel cannot be built; the message says why and gives a hint."""


def run(*command) -> str:
    """Output of a command; BuildError with its words when it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing. Hint: apt-get install patchelf binutils cmake") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(map(str, command))} failed:\n{error.stdout}{error.stderr}") from error


def project() -> dict:
    """name, version and so on of pyproject.toml's [project], as far as the wheel needs them. (tomllib comes with Python
    3.11; the table is simple enough for configparser.)"""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(ROOT / "pyproject.toml")
    table = {key: value.strip() for key, value in parser["project"].items()}
    scripts = {key: value.strip().strip('"') for key, value in parser["project.scripts"].items()}
    unquoted = {key: value.strip('"') for key, value in table.items()}
    return {
        **unquoted,
        "dependencies": re.findall(r'"([^"]+)"', table["dependencies"]),
        "license": re.findall(r'"([^"]+)"', table["license"])[0],
        "classifiers": re.findall(r'"([^"]+)"', table["classifiers"]),
        "scripts": scripts,
        "extras": {
            name: re.findall(r'"([^"]+)"', value) for name, value in parser["project.optional-dependencies"].items()
        },
    }


# ---- native files ----


def native_files(build_dir: pathlib.Path) -> dict:
    """{name in _native: path}; BuildError naming what is not built."""
    missing = [name for name in NATIVE if not (build_dir / name).exists()]
    if missing:
        raise BuildError(
            f"{build_dir} lacks {', '.join(missing)}. Hint: cmake --build {build_dir} --target {' '.join(TARGETS)}"
        )
    there = {**NATIVE, **{name: target for name, target in NATIVE_CUDA.items() if (build_dir / name).exists()}}
    return {target: (build_dir / name).resolve() for name, target in there.items()}


def needed(path) -> list:
    """DT_NEEDED names of an ELF file."""
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", run("readelf", "-d", str(path)))


def resolved(path) -> dict:
    """{soname: path} that the loader would use for an ELF file, dependencies of dependencies included."""
    found = {}
    for line in run("ldd", str(path)).splitlines():
        match = re.match(r"\s*(\S+) => (\S+)", line)
        if match and match.group(2) == "not":
            raise BuildError(f"{path} needs {match.group(1)}, which is not on this machine")
        if match:
            found[match.group(1)] = pathlib.Path(match.group(2))
    return found


def bundle(files: dict, folder: pathlib.Path) -> None:
    """Copies native files and the libraries they need into `folder`, and makes each look for libraries there first."""
    folder.mkdir(parents=True)
    libraries = {}
    guests = set()  # libraries that come into Python processes: their C++ runtime is the process's, never the bundled
    for target, source in files.items():
        shutil.copy2(source, folder / target)
        wanted = {s: p for s, p in resolved(source).items() if not SYSTEM_LIBRARIES.fullmatch(s)}
        if target.startswith("lib"):
            if any(PROGRAM_LIBRARIES.fullmatch(soname) for soname in needed(source)):
                raise BuildError(f"{source} needs the C++ runtime as a shared library; link it statically")
            guests.update(soname for soname in wanted if not PROGRAM_LIBRARIES.fullmatch(soname))
        libraries.update(wanted)
    for soname, source in libraries.items():
        shutil.copy2(source.resolve(), folder / soname)
    for path in folder.iterdir():
        path.chmod(0o755)
        place = ["--remove-rpath"] if path.name in guests else ["--set-rpath", "$ORIGIN"]
        run("patchelf", *place, str(path))
        if ".so" in path.name:
            path.chmod(0o644)
    strip(folder)
    check_bundle(folder)


def strip(folder: pathlib.Path) -> None:
    """Leaves debug information out of the wheel, where the tool for it exists."""
    if shutil.which("strip"):
        for path in folder.iterdir():
            subprocess.run(["strip", "--strip-debug", str(path)], check=False, capture_output=True)


def check_bundle(folder: pathlib.Path) -> None:
    """Every needed library is in the folder or glibc's."""
    present = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        outside = [name for name in needed(path) if name not in present and not SYSTEM_LIBRARIES.fullmatch(name)]
        if outside:
            raise BuildError(f"{path.name} still needs {', '.join(outside)} from outside the wheel")


def platform_tag(folder: pathlib.Path) -> str:
    """manylinux_2_N_x86_64 for the newest glibc symbol that any file needs."""
    newest = 17
    for path in folder.iterdir():
        versions = re.findall(r"GLIBC_2\.(\d+)", run("readelf", "-V", str(path)))
        newest = max([newest, *map(int, versions)])
    return f"manylinux_2_{newest}_x86_64"


# ---- the wheel file ----


def metadata(table: dict) -> str:
    """The METADATA file."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {table['name']}",
        f"Version: {table['version']}",
        f"Summary: {table['description']}",
        f"Requires-Python: {table['requires-python']}",
        f"License: {table['license']}",
    ]
    lines += [f"Classifier: {item}" for item in table["classifiers"]]
    lines += [f"Requires-Dist: {item}" for item in table["dependencies"]]
    for extra, items in table["extras"].items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {item}; extra == "{extra}"' for item in items)]
    readme = ROOT / "README.md"
    if readme.is_file():
        lines += ["Description-Content-Type: text/markdown", "", readme.read_text()]
    return "\n".join(lines) + "\n"


def write_wheel(out: pathlib.Path, tag: str, entries: dict, table: dict) -> pathlib.Path:
    """Writes the archive. entries: {path in it: (bytes, executable)}. Same input, same file."""
    name = f"{table['name']}-{table['version']}"
    info = f"{name}.dist-info"
    scripts = "".join(f"{key} = {value}\n" for key, value in table["scripts"].items())
    entries = dict(entries)
    entries[f"{info}/METADATA"] = (metadata(table).encode(), False)
    wheel = f"Wheel-Version: 1.0\nGenerator: bitpager\nRoot-Is-Purelib: false\nTag: {tag}\n"
    entries[f"{info}/WHEEL"] = (wheel.encode(), False)
    entries[f"{info}/entry_points.txt"] = (f"[console_scripts]\n{scripts}".encode(), False)
    for licence in ("LICENSE", "THIRD_PARTY.md"):
        if (ROOT / licence).is_file():
            entries[f"{info}/{licence}"] = ((ROOT / licence).read_bytes(), False)
    record = []
    for path, (content, _) in sorted(entries.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(content)}")
    record.append(f"{info}/RECORD,,")
    entries[f"{info}/RECORD"] = (("\n".join(record) + "\n").encode(), False)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, (content, executable) in sorted(entries.items()):
            item = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            item.external_attr = ((0o755 if executable else 0o644) | 0o100000) << 16
            item.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(item, content)
    return target


def package_entries() -> dict:
    """The Python files."""
    kinds = (".py", ".typed", ".cc")
    files = [path for path in PACKAGE.rglob("*") if path.suffix in kinds and "_native" not in path.parts]
    return {f"bitpager/{path.relative_to(PACKAGE).as_posix()}": (path.read_bytes(), False) for path in files}


def build(build_dir: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Makes the wheel from a finished CMake build; returns its path."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise BuildError("bitpager runs on Linux x86-64 alone")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "_native"
        bundle(native_files(build_dir), folder)
        entries = package_entries()
        for path in folder.iterdir():
            entries[f"bitpager/_native/{path.name}"] = (path.read_bytes(), os.access(path, os.X_OK))
        return write_wheel(out, f"py3-none-{platform_tag(folder)}", entries, project())


# ---- the portable bundle ----

# What the bundle takes from the source tree: (path, place in it).
BUNDLE_SOURCES = (
    ("client/bitpager.h", "include/bitpager.h"),
    ("tools/benchmarks", "tools/benchmarks"),
    ("tools/private_daemon.py", "tools/private_daemon.py"),
    ("tools/bitpagerd.toml", "etc/bitpagerd.toml"),
    ("tools/systemd", "systemd"),
    ("tests/gpu", "tests/gpu"),
    ("tests/golden", "tests/golden"),
    ("README.md", "README.md"),
    ("LICENSE", "LICENSE"),
    ("THIRD_PARTY.md", "THIRD_PARTY.md"),
)


def make_bundle(build_dir: pathlib.Path, out: pathlib.Path) -> None:
    """Fills `out` with programs and their libraries (bin/), the wheel, tests and benchmarks. BuildError when a file
    needs a newer glibc than the bundle promises."""
    tests = {path.name: path for path in sorted((build_dir / "bin").glob(TEST_PROGRAMS))}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "bin"
        bundle({**native_files(build_dir), **tests}, folder)
        check_glibc(folder)
        copy_source(folder, out / "bin")
    for source, place in BUNDLE_SOURCES:
        copy_source(ROOT / source, out / place)
    (out / "wheel").mkdir(parents=True, exist_ok=True)
    build(build_dir, out / "wheel")


def copy_source(source: pathlib.Path, target: pathlib.Path) -> None:
    """A file or folder of the tree, without caches."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.exists():
        shutil.copy2(source, target)


def check_glibc(folder: pathlib.Path) -> None:
    """No file needs a symbol of a glibc newer than NEWEST_GLIBC."""
    for path in sorted(folder.iterdir()):
        newest = max((int(v) for v in re.findall(r"GLIBC_2\.(\d+)", run("readelf", "-V", str(path)))), default=0)
        if newest > NEWEST_GLIBC:
            raise BuildError(
                f"{path.name} needs glibc 2.{newest}; the bundle promises 2.{NEWEST_GLIBC}. Hint: configure with "
                "-DBITPAGER_PORTABLE=ON, with the static libraries of ZeroMQ, PGM and sodium installed"
            )


# ---- PEP 517 and PEP 660 ----


def _build_dir() -> pathlib.Path:
    named = os.environ.get("BITPAGER_BUILD_DIR")
    if named:
        return pathlib.Path(named).resolve()
    folder = ROOT / "build" / "wheel"
    if shutil.which("cmake") is None:
        raise BuildError("cmake is missing and BITPAGER_BUILD_DIR names no build folder. Hint: ./tools/quickstart")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DBITPAGER_TESTS=OFF"]
    subprocess.run([*map(str, configure)], check=True)
    subprocess.run(["cmake", "--build", str(folder), "-j", str(os.cpu_count()), "--target", *TARGETS], check=True)
    return folder


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 517."""
    return build(_build_dir(), pathlib.Path(wheel_directory)).name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 660: a wheel that points into this tree; native files are found in the build folder."""
    entries = {"bitpager_editable.pth": (f"{PACKAGE.parent}\n".encode(), False)}
    return write_wheel(pathlib.Path(wheel_directory), "py3-none-any", entries, project()).name


def build_sdist(sdist_directory, config_settings=None):
    """PEP 517: the tracked files of the repository."""
    import tarfile

    table = project()
    name = f"{table['name']}-{table['version']}"
    target = pathlib.Path(sdist_directory) / f"{name}.tar.gz"
    with tarfile.open(target, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in run("git", "-C", str(ROOT), "ls-files").splitlines():
            archive.add(ROOT / path, f"{name}/{path}")
        info = tarfile.TarInfo(f"{name}/PKG-INFO")
        content = metadata(table).encode()
        info.size = len(content)
        import io

        archive.addfile(info, io.BytesIO(content))
    return target.name


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517."""
    return []


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


def main() -> int:
    """Command line; see the file's top."""
    parser = argparse.ArgumentParser(description="Builds the bitpager wheel from a finished CMake build.")
    parser.add_argument("--build-dir", type=pathlib.Path, required=True, help="CMake build folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=pathlib.Path, help="where to put the wheel")
    what.add_argument("--bundle", type=pathlib.Path, help="folder to fill with the portable bundle")
    arguments = parser.parse_args()
    try:
        if arguments.bundle:
            make_bundle(arguments.build_dir.resolve(), arguments.bundle)
        else:
            print(build(arguments.build_dir.resolve(), arguments.out))
    except BuildError as error:
        print(f"build_wheel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
