"""A headless Chromium for tests of pages: what a page asked for, what its console said, waiting for what is to come."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT_S = 20.0


class Browser:
    def __init__(self, width=1280, height=800):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-gpu",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run"):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(WAIT_S)
        self.size(width, height)
        self.prefer("prefers-color-scheme", "dark")

    def close(self):
        self.driver.quit()

    def size(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, feature, value):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": feature, "value": value}]})

    def open(self, url):
        """A page, with the logs of those before thrown away. A port of its own is an origin with nothing remembered."""
        self.driver.get("about:blank")  # the page before must ask for nothing more
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(url)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def run_async(self, body):
        """Runs an async function's body, in which import() is relative to the page; its result as JSON."""
        script = f"const done = arguments[0]; (async () => {{ {body} }})().then(r => done([r]), e => done(String(e)))"
        answer = self.driver.execute_async_script(script)
        assert isinstance(answer, list), answer
        return answer[0]

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.textContent ?? null", selector)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def enter(self, selector, value, event):
        """Gives a control a value as a person would."""
        script = """
          const control = document.querySelector(arguments[0]);
          control.value = arguments[1];
          control.dispatchEvent(new Event(arguments[2]))"""
        self.run(script, selector, value, event)

    def press(self, *keys):
        """Keys to whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def wait(self, what, holds):
        """Until holds() is true; what: the sentence when it does not become so."""
        end, last = time.monotonic() + WAIT_S, None
        while time.monotonic() < end:
            try:
                last = holds()
            except AssertionError as error:  # a comparison that may come to hold
                last = error
            if last and not isinstance(last, Exception):
                return last
            time.sleep(0.05)
        raise AssertionError(f"not within {WAIT_S:.0f} s: {what}; last: {last!r}\n{self.driver.get_log('browser')}")

    def wait_text(self, selector, part):
        return self.wait(f"{part!r} in {selector}", lambda: part in (self.text(selector) or ""))

    def requests(self):
        """URLs that the page asked for since it was opened."""
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return urls

    def complaints(self):
        """Warnings and errors of the console, those of refused connections apart."""
        return [entry for entry in self.driver.get_log("browser")
                if entry["level"] in ("WARNING", "SEVERE") and "net::ERR_" not in entry["message"]
                and "the server responded with a status of 503" not in entry["message"]]  # fmt: skip

    def cpu_share(self, seconds):
        """Processor time that the page and its painting take, of a core, over some seconds. What the driver takes for
        its own log of the page's network is not the page's."""
        before, begun = self._cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (self._cpu_s() - before) / (time.monotonic() - begun)

    def _cpu_s(self):
        ticks, left = 0, [self.driver.service.process.pid]
        while left:
            process = pathlib.Path("/proc") / str(left.pop())
            try:
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                command = (process / "cmdline").read_text()
                for task in (process / "task").iterdir():
                    left += map(int, (task / "children").read_text().split())
            except OSError:
                continue  # it ended
            if "--type=renderer" in command or "--type=gpu-process" in command:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")
