"""A page in a real browser: what it says of itself after its scripts and a test's have run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--mute-audio")
# Added to a copy of the page. Errors are collected from before the page's own script on; the test's script calls `report`.
BEFORE = """<script>
window.complaints = [];
addEventListener("error", (event) => complaints.push(String(event.message || event.target.tagName)), true);
addEventListener("unhandledrejection", (event) => complaints.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => complaints.push(`blocked ${event.violatedDirective}`));
console.error = (...words) => complaints.push(words.join(" "));
window.report = async (result) => {
  await new Promise((done) => setTimeout(done, 200));
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    widest: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    resources: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("blob:")),
    ...result, complaints,
  });
  document.body.append(probe);
};
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for path in map(shutil.which, NAMES) if path), None) or (str(MAC) if MAC.exists() else None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed")
    return found


def opened(browser: str, folder: Path, text: str, width: int, after: str) -> dict[str, Any]:
    """What the script `after` reports."""
    page = folder / "page.html"
    page.write_text(text.replace("<body>", f"<body>{BEFORE}", 1).replace("</body>", f"{after}</body>", 1), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=15000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))
