"""tools/setup and tools/quickstart before anything is installed: platform, packages, arguments.

Commands that would change the machine (apt-get, sudo) are replaced by stand-ins on PATH that write down what they
were asked.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path):
    """run(script, **environment): bash with stand-ins first on PATH. machine.stand_in(name, body) adds one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "log").mkdir()

    def stand_in(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    def run(script: str, **environment: str) -> subprocess.CompletedProcess:
        prelude = f'ROOT="{ROOT}"; LOG="{tmp_path}/log"; set -euo pipefail; . "$ROOT/tools/setup"\n'
        own = {"PATH": f"{folder}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")}
        environment = {**os.environ, **own, **environment}
        return subprocess.run(
            ["bash", "-c", prelude + script], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
        )

    run.stand_in = stand_in
    run.said = lambda: (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    return run


@pytest.mark.parametrize(("system", "hardware"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("MINGW64_NT", "x86_64")])
def test_other_platforms_are_told(machine, system, hardware):
    machine.stand_in("uname", f'[ "$1" = -s ] && echo {system} || echo {hardware}')
    run = machine("need_platform")
    assert run.returncode == 1
    assert f"bitpager runs on Linux x86-64; this is {system} {hardware}." in run.stderr
    assert "hint:" in run.stderr


def test_nothing_missing_installs_nothing(machine):
    machine.stand_in("dpkg-query", "echo installed")
    machine.stand_in("apt-get", 'echo "$@" >>"$SAID"')
    run = machine("need_packages g++ cmake")
    assert run.returncode == 0, run.stderr
    assert machine.said() == ""


def test_only_missing_packages_in_one_call(machine):
    machine.stand_in("dpkg-query", '[ "${@: -1}" = cmake ] && echo installed || exit 1')
    machine.stand_in("apt-get", 'echo "$@" >>"$SAID"')
    machine.stand_in("id", "echo 0")
    run = machine("need_packages g++ cmake ninja-build")
    assert run.returncode == 0, run.stderr
    calls = machine.said().splitlines()
    assert calls == [
        "install -y --no-install-recommends --simulate g++ ninja-build",
        "install -y --no-install-recommends g++ ninja-build",
    ]


def test_prometheus_does_not_become_a_service(machine):
    machine.stand_in("dpkg-query", '[ "${@: -1}" = prometheus ] && exit 1 || echo installed')
    machine.stand_in("id", "echo 0")
    machine.stand_in("apt-get", 'echo "apt-get $@" >>"$SAID"')
    machine.stand_in("systemctl", 'echo "systemctl $@" >>"$SAID"')
    assert machine("runs_systemd() { true; }; need_packages g++ prometheus").returncode == 0
    assert machine.said().splitlines()[0] == "systemctl mask prometheus.service"
    assert machine.said().splitlines()[-1].endswith("--no-install-recommends prometheus")
    assert machine("runs_systemd() { true; }; need_packages g++").returncode == 0
    assert machine("runs_systemd() { false; }; need_packages g++ prometheus").returncode == 0
    assert machine.said().count("mask") == 1


def test_stale_lists_are_refreshed_once(machine):
    machine.stand_in("dpkg-query", "exit 1")
    machine.stand_in("apt-get", 'echo "$1" >>"$SAID"; [[ "$*" != *--simulate* ]]')
    machine.stand_in("id", "echo 0")
    assert machine("need_packages g++").returncode == 0
    assert machine.said().split() == ["install", "update", "install"]


def test_failed_install_names_the_command(machine):
    machine.stand_in("dpkg-query", "exit 1")
    machine.stand_in("apt-get", "echo 'E: Unable to locate package'; exit 100")
    machine.stand_in("id", "echo 0")
    run = machine("need_packages g++ cmake")
    assert run.returncode == 1
    assert "E: Unable to locate package" in run.stderr
    assert "apt-get install -y --no-install-recommends g++ cmake" in run.stderr


def test_sudo_that_refuses_is_told_with_the_command(machine):
    machine.stand_in("dpkg-query", "exit 1")
    machine.stand_in("id", "echo 1000")
    machine.stand_in("sudo", "exit 1")
    run = machine("need_packages g++")
    assert run.returncode == 1
    assert "sudo apt-get install -y --no-install-recommends g++" in run.stderr


def test_sudo_is_used_when_not_root(machine):
    machine.stand_in("dpkg-query", "exit 1")
    machine.stand_in("id", "echo 1000")
    machine.stand_in("sudo", '[ "$1" = -n ] || echo "$@" >>"$SAID"')
    assert machine("need_packages g++").returncode == 0
    assert machine.said().splitlines()[-1].endswith("apt-get install -y --no-install-recommends g++")


def test_failed_step_shows_the_end_of_its_log(machine):
    run = machine('step "Doing it" doing bash -c "seq 100; echo the cause >&2; exit 3" || echo "came back"')
    assert run.returncode == 0
    assert "came back" in run.stdout
    assert "Doing it: FAILED" in run.stderr and "| the cause" in run.stderr
    assert "| 50\n" not in run.stderr


def test_steps_show_no_control_codes_without_a_terminal(machine):
    run = machine('step "Doing it" doing seq 5')
    assert "\x1b" not in run.stdout + run.stderr
    assert "\r" not in run.stdout + run.stderr


@pytest.mark.parametrize("script", ["quickstart", "check"])
def test_unknown_argument_is_usage(script):
    run = subprocess.run([ROOT / "tools" / script, "--no-such"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "unknown argument: --no-such" in run.stderr


@pytest.mark.parametrize("script", ["quickstart", "check", "bench"])
def test_help_needs_no_set_up(script):
    run = subprocess.run([ROOT / "tools" / script, "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert f"tools/{script}" in run.stdout
