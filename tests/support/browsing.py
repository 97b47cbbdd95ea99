"""Headless Chromium for tests of pages: that of the system (Debian: chromium, chromium-driver)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
)
PHONE, DESKTOP = (390, 844), (1280, 900)
LONGEST = 120
"""Seconds to wait for what takes a moment, on a machine that has other things to do."""


def started() -> Iterator[Any]:
    """Yield a browser, and end it; skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(LONGEST)
    yield driver
    driver.quit()


def show(browser: Any, address: str, size: tuple[int, int] = DESKTOP) -> None:
    """Open a page on a screen of this size."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)


def until(browser: Any, condition: str) -> None:
    """Wait until a condition of the page's script holds."""
    end = time.monotonic() + LONGEST
    while not browser.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, f"never came true: {condition}"
        time.sleep(0.05)
