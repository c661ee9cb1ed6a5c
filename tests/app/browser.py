"""Chromium without a window, for tests of pages; they are skipped, with the reason, where it or Selenium is missing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = float(os.environ.get("PPE_PATIENCE", "120"))  # seconds, on a machine that does other work, too


def opened(folder: Path) -> Iterator[Any]:
    """A browser with a fresh profile in this folder."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: make test-app has it")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                     "--disable-dev-shm-usage", "--window-size=1500,1400", f"--user-data-dir={folder}"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def wait(ready: Callable[[], Any], what: str) -> Any:
    """The first true result, within PATIENCE."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    last: Any = None
    while time.monotonic() < end:
        try:
            last = ready()
        except (WebDriverException, IndexError) as error:  # the page is being drawn
            last = None
            why: Any = error
        else:
            why = last
        if last:
            return last
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {PATIENCE} s ({why})")


def addresses(browser: Any) -> set[str]:
    """The URLs that pages in this browser have requested since the last call."""
    logged = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"] for one in logged if one["method"] == "Network.requestWillBeSent"]
    return {one["request"]["url"] for one in asked if not one["documentURL"].startswith("chrome")}
