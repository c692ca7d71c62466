"""The placement page in a real browser: it draws every operation, answers pointer and keys, filters, and complains of nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.converters.placement.page import render_page
from support.browser import browser, opened
from support.placement_reports import ANE_OPERATIONS, troubled_package, troubled_report

__all__ = ["browser"]
OPERATIONS = len(ANE_OPERATIONS) + 5
AFTER = """<script>
(() => {
  const strip = document.querySelector(".strip");
  const about = document.querySelector(".about");
  const cells = [...strip.querySelectorAll(".op")];
  const press = (key) => strip.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  strip.focus();
  const first = about.innerText;
  for (let i = 0; i < 3; i++) press("ArrowRight");
  const fourth = about.innerText;
  press("End");
  const last = about.innerText;
  press("Home");
  const home = about.innerText;
  cells[4].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  const pointed = about.innerText;
  const dimmed = () => cells.filter((cell) => cell.classList.contains("dim")).length;
  const rows = () => [...document.querySelectorAll("#stage0 tr[data-section]")].filter((row) => !row.hidden).length;
  const all = rows();
  document.querySelector('#stage0 [data-show="hazard"]').click();
  const hazards = { dimmed: dimmed(), rows: rows() };
  document.querySelector('#stage0 [data-show="all"]').click();
  const style = (cell) => getComputedStyle(cell);
  report({
    operations: document.querySelectorAll(".strip .op").length,
    stops: document.querySelectorAll('.strip [tabindex], .strip[tabindex="0"]').length,
    active: strip.getAttribute("aria-activedescendant"),
    heights: [...new Set(cells.map((cell) => style(cell).height))].length,
    patterns: cells.map((cell) => style(cell).backgroundImage !== "none"),
    first, fourth, last, home, pointed, all, hazards, afterwards: dimmed(),
  });
})();
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_page(troubled_report(troubled_package(tmp_path_factory.mktemp("package")), copies=2))


def check(found: dict[str, Any]) -> None:
    assert found["complaints"] == []
    assert found["resources"] == []
    assert found["widest"] <= 0
    assert found["operations"] == 2 * OPERATIONS
    assert found["stops"] == 2  # one for each strip
    assert found["first"].startswith("1. conv")
    assert "No rule is against it" in found["first"]
    assert found["home"] == found["first"]
    assert "dec.ups.0" in found["fourth"]
    assert "D4-kernel" in found["fourth"]
    assert "width 17" in found["fourth"]
    assert "Remedy: split it into an equal sum" in found["fourth"]
    assert found["last"].startswith(f"{OPERATIONS}. slice_by_index")
    assert "dec.resblocks.<b>0</b>" in found["pointed"]  # a name is text
    assert found["active"] == "s0o4"
    assert found["heights"] == 2 + (found["patterns"].count(True) > 1)
    assert found["patterns"] == [False, False, False, True, False, False, True, False]
    assert found["all"] > 3
    assert found["hazards"]["rows"] < found["all"]
    assert 0 < found["hazards"]["dimmed"] < OPERATIONS
    assert found["afterwards"] == 0


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_answers_pointer_and_keys_and_says_no_error(browser: str, page: str, tmp_path: Path, width: int) -> None:
    check(opened(browser, tmp_path, page, width, AFTER))


def test_a_fault_in_the_page_would_be_seen(browser: str, page: str, tmp_path: Path) -> None:
    broken = page.replace("background: repeating-linear-gradient(45deg", "backgrund: repeating-linear-gradient(45deg")
    broken = broken.replace("</main>", '<img src="https://example.invalid/x.png"><p style="width:3000px">wide</p></main>', 1)
    found = opened(browser, tmp_path, broken, 1280, AFTER)
    assert found["patterns"] != [False, False, False, True, False, False, True, False]
    assert any(complaint.startswith("blocked img-src") for complaint in found["complaints"])
    assert found["widest"] > 0


def test_the_page_tells_it_all_without_scripts(page: str) -> None:
    text = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for word in ("D4-kernel", "dec.ups.0 (wide)", "D11-slice", "D5-dilation", "not a measurement", "Neural Engine"):
        assert word in text
    assert "<b>0</b>" not in text.replace("<b>0</b> of", "")
    assert "voice '<i>" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
