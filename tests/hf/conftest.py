"""Fixtures of the tests with transformers: one private daemon for the folder, tiny models with random weights, a
byte-level tokenizer, text. Nothing is downloaded. Without transformers the folder is skipped; tools/check installs it.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_spec = importlib.util.spec_from_file_location(
    "python_fixtures", pathlib.Path(__file__).resolve().parents[1] / "python" / "conftest.py"
)
python_fixtures = importlib.util.module_from_spec(_spec)
sys.modules["python_fixtures"] = python_fixtures
_spec.loader.exec_module(python_fixtures)

import torch  # noqa: E402

torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other

make_daemon = python_fixtures.make_daemon
run_python = python_fixtures.run_python

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_[!p]*.py", "test_peft.py"]  # all but test_present.py, which says so


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory):
    """One daemon for the whole folder."""
    daemon = python_fixtures.Daemon(
        pathlib.Path(python_fixtures.tempfile.mkdtemp(prefix="bp-")),
        ("--device", "cpu", "--device-budget", "48MiB", "--host-budget", "1GiB", "--page-size", "16KiB"),
    )
    yield daemon
    import bitpager

    bitpager.disconnect()
    daemon.stop()


@pytest.fixture
def session(shared_daemon):
    """The default session of a test: a job of its own."""
    import gc

    import bitpager

    bitpager.disconnect()
    bitpager.optim.GlobalOptimManager.get_instance().initialize()
    made = bitpager.connect(socket=shared_daemon.socket, job="hf", linger=0)
    made._test_socket = shared_daemon.socket
    yield made
    bitpager.disconnect()
    gc.collect()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models(name, **changes) -> folder of a saved tiny model with random weights, in bfloat16 unless dtype says."""
    import tiny

    made = {}

    def get(name, **changes):
        key = (name, tuple(sorted(changes.items())))
        if key not in made:
            made[key] = str(tiny.save(name, tmp_path_factory.mktemp(name), **changes))
        return made[key]

    return get


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes as tokens, with padding and end of text."""
    import tiny

    return tiny.tokenizer()
