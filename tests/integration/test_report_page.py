"""The page in a browser: nothing overflows a phone, nothing is fetched, everything is drawn."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from codehead.lab.reports.report import render
from made_up_results import write_protocol

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
FRAME = """<!DOCTYPE html>
<meta name="color-scheme" content="light dark">
<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<output id="probe"></output>
<script>addEventListener("message", event => document.getElementById("probe").textContent = event.data)</script>
"""  # a window has a smallest width, a frame has none
PROBE = """
<script>
addEventListener("load", () => {
  const page = document.documentElement;
  const all = selector => [...document.querySelectorAll(selector)];
  const drawings = all(".drawing img");
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    scrollWidth: page.scrollWidth,
    requests: performance.getEntriesByType("resource").length,
    images: [...document.images].every(image => image.naturalWidth > 0),
    drawings: drawings.length,
    empty: drawings.filter(one => one.getBoundingClientRect().width === 0).length,
    tables: all("table").every(one => one.closest(".scroll").clientWidth <= page.clientWidth),
    headings: all("h1, h2").map(one => one.textContent),
    smallest: Math.min(...all("p, td, th, dd, li").map(one => parseFloat(getComputedStyle(one).fontSize))),
    paper: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium; without one the tests are skipped, but where tests run automatically they fail."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    message = f"no browser is installed: {' or '.join(BROWSERS)}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module", params=[0, 1], ids=["pretraining", "fine-tuning"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a report with a probe that writes what the browser sees into the document."""
    folder = tmp_path_factory.mktemp("report")
    report = render(write_protocol(folder / "results", request.param)).page
    probed = folder / "probed.html"
    probed.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return probed


def seen(browser: str, page: Path, width: int, profile: Path, *options: str) -> dict[str, Any]:
    """What the probe saw in a frame of this width."""
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    command = [browser, *OPTIONS, *options, f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<output id="probe">(.+?)</output>', run.stdout)
    assert found, run.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_the_page_fits_the_window(browser: str, page: Path, width: int, tmp_path: Path) -> None:
    values = seen(browser, page, width, tmp_path)
    assert values["width"] == width
    assert values["scrollWidth"] <= width
    assert values["tables"]
    assert values["smallest"] >= 12
    assert values["requests"] == 0
    assert values["images"]
    assert values["drawings"] >= 2 and values["empty"] == 0
    assert {"Summary", "Tables", "Pictures", "Where the numbers come from"} <= set(values["headings"])


@pytest.mark.slow
def test_the_page_follows_a_dark_theme(browser: str, page: Path, tmp_path: Path) -> None:
    light = seen(browser, page, 800, tmp_path / "light", "--blink-settings=preferredColorScheme=1")
    dark = seen(browser, page, 800, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    brightness = [sum(map(int, re.findall(r"\d+", values["paper"])[:3])) for values in (light, dark)]
    assert brightness[0] > 700 and brightness[1] < 120
