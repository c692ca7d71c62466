"""The report page in a real browser: it draws, plays, unfolds, filters, and complains of nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rvc_coreml.golden_outputs.reports import Report, render_html
from support.browser import browser, opened
from support.reports import audio_check, feature_check, problem_check, report_of

__all__ = ["browser"]
AFTER = """<script>
(async () => {
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  document.querySelectorAll('.unfold[aria-expanded="false"]').forEach((button) => button.click());
  await pause(400);
  const colours = (canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const found = new Set();
    for (let i = 0; i < data.length && found.size < 9; i += 4) found.add(`${data[i]},${data[i + 1]},${data[i + 2]},${data[i + 3]}`);
    return found.size;
  };
  const ready = (audio) => new Promise((done) => {
    if (audio.readyState > 0 || audio.error) return done();
    audio.addEventListener("loadedmetadata", done);
    audio.addEventListener("error", done);
    audio.load();
  });
  const sounds = [...document.querySelectorAll("audio")];
  await Promise.race([Promise.all(sounds.map(ready)), pause(8000)]);
  const shown = () => [...document.querySelectorAll("tr.check")].filter((row) => row.offsetParent !== null).length;
  const bad = document.querySelector('[data-show="bad"]');
  const everything = shown();
  bad.click();
  const notGood = shown();
  document.querySelector('[data-show="all"]').click();
  report({
    rows: document.querySelectorAll("tr.check").length,
    details: document.querySelectorAll("tr.detail").length,
    colours: [...document.querySelectorAll("canvas")].map(colours),
    durations: sounds.map((audio) => audio.duration || 0),
    text: document.querySelector("main").innerText,
    everything, notGood,
  });
})();
</script>"""


@pytest.fixture(scope="module")
def report() -> Report:
    explained = {"operation": "conv_post", "operation_type": "conv", "module": "dec.conv_post", "snr_db": 3.0, "text": "it departs <here>"}
    broken = audio_check(10.0, case="loud", seconds=0.3)
    checks = [feature_check(60.0), feature_check(38.0, case="short", frames=1), audio_check(60.0, seconds=0.4), broken, problem_check()]
    found = report_of(*checks)
    return replace(found, checks=(*checks[:3], replace(broken, explanation=explained), checks[4]))


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_draws_everything_plays_its_sounds_and_says_no_error(browser: str, report: Report, tmp_path: Path, width: int) -> None:
    found = opened(browser, tmp_path, render_html(report), width, AFTER)
    assert found["complaints"] == []
    assert found["rows"] == found["everything"] == len(report.checks)
    assert found["details"] == 4  # the check that could not be made has none
    assert len(found["colours"]) == 2 * 4 + 3 * 4  # two checks of features; two of audio, one of them at the top as well
    assert min(found["colours"]) > 2  # more than a ground and a line
    assert len(found["durations"]) == 3 * 3
    for duration in found["durations"]:
        assert duration == pytest.approx(0.3, abs=0.01) or duration == pytest.approx(0.4, abs=0.01)
    assert found["notGood"] == 3
    assert found["resources"] == []
    assert found["widest"] <= 0
    assert "it departs <here>" in found["text"]
    assert "dec.conv_post" in found["text"]


def test_a_fault_in_the_page_would_be_seen(browser: str, report: Report, tmp_path: Path) -> None:
    text = render_html(report)
    broken = text.replace("context.putImageData(pixels, 0, 0);", "").replace("RIFF", "RAFF", 1)
    broken = broken.replace("</main>", '<img src="https://example.invalid/x.png"></main>', 1)
    assert broken != text
    found = opened(browser, tmp_path, broken, 1280, AFTER)
    assert min(found["colours"]) <= 2
    assert max(found["durations"]) == 0
    assert any(complaint.startswith("blocked img-src") for complaint in found["complaints"])
