"""What the tests of the dashboard share: one browser, and pages before made-up nodes. Other tests here need neither."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
SECOND_S = 0.25  # in which a second of a made-up node passes


@pytest.fixture(scope="session")
def chromium():
    """The browser of the whole run."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium is not installed. Hint: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed. Hint: pip install selenium")
    from browser import Browser

    made = Browser()
    yield made
    made.close()


@pytest.fixture
def page(chromium):
    """page(node) -> (browser, feed) with the dashboard open and live. What its console complains of is an error."""
    from fake_feed import Feed

    feeds = []

    def open_page(node):
        feeds.append(Feed(node, second=SECOND_S))
        chromium.size(1280, 800)
        chromium.prefer("prefers-color-scheme", "dark")
        chromium.open(feeds[-1].url)
        chromium.wait_text("#state-text", "Live")
        chromium.wait_text("#facts", "bitpagerd")  # drawn
        return chromium, feeds[-1]

    yield open_page
    chromium.run("window.stop()")
    for feed in feeds:
        assert all(url.startswith((feed.url, "data:")) for url in chromium.requests())
        feed.close()
    assert chromium.complaints() == []
