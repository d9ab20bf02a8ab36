"""Names of bitsandbytes that are not there yet: attribute access and from-import say the same words."""

from __future__ import annotations

import importlib

import pytest

NAMES = (
    ("optim", "SGD8bit"),
    ("optim", "PagedAdEMAMix8bit"),
    ("optim", "RMSprop32bit"),
    ("nn", "Linear8bitLt"),
    ("nn", "EmbeddingNF4"),
)


@pytest.mark.parametrize("module, name", NAMES)
def test_both_forms_say_what_is_not_there_yet(module, name):
    home = importlib.import_module(f"bitpager.{module}")
    words = f"bitpager.{module} has no {name} yet"
    with pytest.raises(ImportError, match=words) as imported:
        exec(f"from bitpager.{module} import {name}")
    with pytest.raises(AttributeError, match=words) as read:
        getattr(home, name)
    assert str(imported.value) == str(read.value) and "It has: " in str(read.value)
    with pytest.raises(ImportError, match=words):  # beside one that is there
        exec(f"from bitpager.{module} import {home.__all__[0]}, {name}")


@pytest.mark.parametrize("module, name", NAMES)
def test_asking_whether_it_is_there_is_no_error(module, name):
    home = importlib.import_module(f"bitpager.{module}")
    assert not hasattr(home, name) and getattr(home, name, None) is None


@pytest.mark.parametrize("module", ("optim", "nn"))
def test_other_names_are_pythons_to_refuse(module):
    with pytest.raises(ImportError, match="cannot import name 'Adamm8bit'"):
        exec(f"from bitpager.{module} import Adamm8bit")
    with pytest.raises(AttributeError, match="has no attribute 'Adamm8bit'"):
        importlib.import_module(f"bitpager.{module}").Adamm8bit  # noqa: B018
