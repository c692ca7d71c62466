"""Reports say what was found, in forms that other programs read, and hold nothing that could harm who opens them."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.golden_outputs.metrics import compare, compare_audio, frame_errors_db
from rvc_coreml.golden_outputs.reports import Check, Report, page, render_html, render_junit, render_markdown, render_table
from rvc_coreml.golden_outputs.reports.evidence import AUDIO_SECONDS, CURVE_POINTS, MAP_COLUMNS, MAP_ROWS, evidence_of
from rvc_coreml.golden_outputs.reports.markdown import MAX_CHARACTERS
from rvc_coreml.golden_outputs.thresholds import Verdict, judge
from support.reports import HOSTILE, audio_check, feature_check, problem_check, report_of

GOOD, DEGRADED, BROKEN = 60.0, 38.0, 10.0  # dB of noise added


# ---------------------------------------------------------------- verdicts


def test_a_report_is_as_bad_as_its_worst_check() -> None:
    good, degraded, broken = (feature_check(db) for db in (GOOD, DEGRADED, BROKEN))
    assert [check.verdict for check in (good, degraded, broken)] == [Verdict.GOOD, Verdict.DEGRADED, Verdict.BROKEN]
    assert report_of(good).passed
    assert report_of(good, degraded).passed
    assert not replace(report_of(good, degraded), strict=True).passed
    assert report_of(good, degraded, broken).verdict is Verdict.BROKEN
    assert report_of(good, problem_check()).failed == [problem_check()]
    assert not report_of().passed  # nothing was checked
    assert not replace(report_of(good), widened=("the limit x is looser",)).passed


def test_the_reason_is_what_decided_or_the_problem_and_nothing_where_all_is_good() -> None:
    assert feature_check(GOOD).reason == ""
    assert re.search(r"snr_db 10\.\d+ is below 30", feature_check(BROKEN).reason)
    assert problem_check("it\ndied").reason == "it died"


def test_json_has_every_documented_key_and_no_infinity() -> None:
    exact = feature_check(np.inf)
    values = json.loads(json.dumps(report_of(exact, problem_check(), feature_check(BROKEN)).as_dict(), allow_nan=False))
    assert values["counts"] == {"good": 1, "degraded": 0, "broken": 2}
    assert (values["checks"][0]["snr_db"], values["checks"][0]["exact"]) == (None, True)
    assert "snr_db" not in values["checks"][1]
    explained = replace(feature_check(BROKEN), explanation={"operation": "conv", "snr_db": -np.inf, "text": "t"})
    assert json.loads(json.dumps(explained.as_dict(), allow_nan=False))["explanation"]["snr_db"] is None


def test_the_table_has_a_row_for_every_check_with_what_decided() -> None:
    headings, rows = render_table(report_of(feature_check(GOOD), feature_check(BROKEN), problem_check("no file")))
    assert [len(row) for row in rows] == [len(headings)] * 3
    assert rows[0][-1] == "good"
    assert rows[1][-1].startswith("broken: ")
    assert rows[2][-1] == "broken: no file"


# ---------------------------------------------------------------- JUnit

# The common schema (junit-10.xsd of the Jenkins xUnit plugin): which attributes and children an element may have.
ATTRIBUTES: dict[str, tuple[set[str], set[str]]] = {  # required, optional
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors", "disabled"}),
    "testsuite": ({"name", "tests"}, {"failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id", "package"}),
    "properties": (set(), set()),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname"}, {"time", "assertions", "status"}),
    "failure": (set(), {"message", "type"}),
    "error": (set(), {"message", "type"}),
    "system-out": (set(), set()),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out"},
    "properties": {"property"},
    "testcase": {"failure", "error", "system-out"},
}


def parsed(report: Report) -> Xml.Element:
    """The document, after checking it against the schema's rules and its own counts."""
    root = Xml.fromstring(render_junit(report).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional = ATTRIBUTES[element.tag]
        assert required <= set(element.attrib) <= required | optional, element.tag
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    for element in (root, *root):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            assert int(element.attrib[name]) == len(list(element.iter(tag)))
        assert float(element.attrib["time"]) >= 0
    for suite in root:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    return root


def test_junit_tells_wrong_numbers_from_checks_that_could_not_be_made() -> None:
    root = parsed(report_of(feature_check(GOOD), feature_check(DEGRADED), feature_check(BROKEN), problem_check("no such file")))
    cases = [[child.tag for child in case] for case in root.iter("testcase")]
    assert sorted(cases) == [[], ["error"], ["failure"], ["system-out"]]
    assert root.find(".//error").attrib["message"] == "no such file"  # type: ignore[union-attr]
    assert "snr_db: 10" in (root.find(".//failure").text or "")  # type: ignore[union-attr]


def test_junit_fails_what_strict_fails_and_widened_thresholds() -> None:
    report = replace(report_of(feature_check(DEGRADED)), strict=True, widened=("the limit x is looser",))
    root = parsed(report)
    assert [found.attrib["type"] for found in root.iter("failure")] == ["degraded", "widened"]


def test_junit_is_well_formed_whatever_names_hold() -> None:
    text = HOSTILE + "\x00\x1b\ud800\uffff"
    root = parsed(replace(report_of(problem_check(text), replace(feature_check(BROKEN), case=text)), library=text))
    assert len(list(root.iter("testcase"))) == 2


# ---------------------------------------------------------------- Markdown


def test_markdown_has_the_verdict_first_and_unfolds_only_what_is_not_good() -> None:
    text = render_markdown(report_of(feature_check(GOOD, case="fine"), feature_check(BROKEN, case="wrong")))
    head, rest = text.split("<details>")
    assert head.splitlines()[0].startswith("## ❌ ")
    assert "| wrong |" in head
    assert "fine" not in head
    assert "| fine |" in rest
    assert rest.count("</details>") == 1
    assert render_markdown(report_of(feature_check(GOOD))).split("<details>")[0].count("|") == 0


def test_markdown_tables_keep_their_columns_whatever_names_hold() -> None:
    hostile = replace(feature_check(BROKEN), case=HOSTILE, explanation={"operation": "a`b|c", "text": HOSTILE})
    text = render_markdown(replace(report_of(hostile, problem_check(HOSTILE)), library=HOSTILE))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block
    assert "<script" not in text
    assert "@someone" not in text
    assert not re.search(r"(?<!\\)\[click", text)


@pytest.mark.parametrize("decibels", [GOOD, BROKEN])
def test_markdown_stays_within_what_a_comment_may_hold(decibels: float) -> None:
    check = feature_check(decibels)
    text = render_markdown(report_of(*[replace(check, case=f"case {index}") for index in range(900)]))
    assert len(text) < MAX_CHARACTERS + 200
    assert "too long to be shown here" in text
    assert text.count("<details>") == text.count("</details>")


# ---------------------------------------------------------------- evidence


def samples(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i2") / 32767


def test_evidence_of_audio_is_the_audio_and_its_difference_made_as_loud() -> None:
    rng = np.random.default_rng(0)
    reference = np.sin(np.arange(16000) / 20).astype(np.float32) * 0.5
    actual = reference + 0.001 * rng.standard_normal(16000).astype(np.float32)
    evidence = evidence_of(reference, actual, 0, 160, 16000)
    assert evidence is not None
    values = evidence.values
    np.testing.assert_allclose(samples(values["reference"]), reference, atol=2e-5)
    np.testing.assert_allclose(samples(values["actual"]), actual, atol=2e-5)
    gain = 10 ** (values["gain_db"] / 20)
    np.testing.assert_allclose(samples(values["difference"]) / gain, actual - reference, atol=3e-5)
    assert np.abs(samples(values["difference"])).max() == pytest.approx(0.5, rel=1e-2)
    assert (values["seconds"], values["shown"], values["clipped"]) == (1.0, 1.0, False)


def test_long_audio_is_cut_and_loud_audio_is_said_to_be() -> None:
    reference = np.full(int(AUDIO_SECONDS * 8000) + 8000, 0.5, np.float32)
    evidence = evidence_of(reference, 4.25 * reference, 0, 80, 8000)
    assert evidence is not None
    assert (evidence.values["shown"], evidence.values["seconds"]) == (AUDIO_SECONDS, AUDIO_SECONDS + 1)
    assert len(samples(evidence.values["reference"])) == AUDIO_SECONDS * 8000
    assert evidence.values["clipped"]


def test_a_curve_keeps_the_worst_frame_wherever_it_is() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((1, 8, 5000))
    actual = reference + 1e-4 * rng.standard_normal(reference.shape)
    actual[0, :, 3333] += 5
    evidence = evidence_of(reference, actual, 2)
    assert evidence is not None
    curve = evidence.values["curve"]
    assert len(curve) == CURVE_POINTS
    assert min(curve) == pytest.approx(frame_errors_db(reference, actual, 2).min(), abs=0.05)
    assert np.argmin(curve) == pytest.approx(3333 / 5000 * CURVE_POINTS, abs=1)


def test_a_map_shows_one_wrong_value_among_millions() -> None:
    reference = np.random.default_rng(0).standard_normal((1, 2000, 768)).astype(np.float32)
    actual = reference.copy()
    actual[0, 1234, 567] += 10
    evidence = evidence_of(reference, actual, 1)
    assert evidence is not None
    error = np.frombuffer(base64.b64decode(evidence.values["error"]), np.uint8).reshape(MAP_ROWS, MAP_COLUMNS)
    row, column = np.unravel_index(error.argmax(), error.shape)
    assert error.max() == 255
    assert np.count_nonzero(error) == 1
    assert row == pytest.approx(567 / 768 * MAP_ROWS, abs=1)
    assert column == pytest.approx(1234 / 2000 * MAP_COLUMNS, abs=1)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 300)), st.integers(0, 2), st.booleans())
def test_evidence_is_finite_and_small_for_every_shape(shape: tuple[int, int, int], axis: int, broken: bool) -> None:
    reference = np.random.default_rng(0).standard_normal(shape)
    actual = reference.copy()
    if broken:
        actual.flat[-1] = np.nan
        actual.flat[0] = np.inf
    evidence = evidence_of(reference, actual, axis)
    assert evidence is not None
    text = json.dumps(evidence.values, allow_nan=False)
    assert evidence.size * 0.5 - 200 < len(text) < evidence.size * 2 + 400
    assert evidence.values["rows"] <= MAP_ROWS
    assert evidence.values["columns"] <= MAP_COLUMNS
    assert len(base64.b64decode(evidence.values["error"])) == evidence.values["rows"] * evidence.values["columns"]


def test_there_is_no_evidence_of_nothing() -> None:
    assert evidence_of(np.zeros((1, 0)), np.zeros((1, 0))) is None
    assert evidence_of(np.zeros((1, 2)), np.zeros((1, 3))) is None


# ---------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Elements that have to be closed, are; and everything that could load something is collected."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})
    OPTIONAL = frozenset({"html", "body"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append((self.stack[-1] if self.stack else "", data))


def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(render_html(report))
    reader.close()
    assert reader.stack == []
    return reader


def rows(reader: Reader, kind: str) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in reader.tags if tag == "tr" and kind in (attributes.get("class") or "").split()]


def unfolded(reader: Reader) -> dict[str, Any]:
    texts = [data for tag, data in reader.data if tag == "script"]
    return json.loads(texts[0])


def test_the_page_asks_for_nothing_from_anywhere() -> None:
    reader = read(report_of(audio_check(GOOD), feature_check(BROKEN)))
    assert not [tag for tag, _attributes in reader.tags if tag in ("link", "iframe", "img", "object", "embed", "base", "form")]
    for tag, attributes in reader.tags:
        assert not {"src", "href", "srcset", "action", "onclick", "onload", "onerror"} & set(attributes), tag
    policy = next(attributes["content"] for _tag, attributes in reader.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = "".join(data for tag, data in reader.data if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_has_a_row_for_every_check_and_its_reason() -> None:
    report = report_of(feature_check(GOOD), feature_check(DEGRADED), problem_check("cannot be read"))
    reader = read(report)
    assert len(rows(reader, "check")) == 3
    assert len(rows(reader, "why")) == 2
    assert "cannot be read" in [data for _tag, data in reader.data]
    dots = [attributes["class"] for tag, attributes in reader.tags if tag == "circle"]
    assert dots == ["dot good", "dot degraded"]


def test_the_page_says_hostile_names_and_does_not_obey_them() -> None:
    hostile = replace(audio_check(BROKEN), component=HOSTILE, case=HOSTILE, explanation={"operation": HOSTILE, "text": HOSTILE})
    report = replace(report_of(hostile, problem_check(HOSTILE)), library=HOSTILE, notes=(HOSTILE,), widened=(HOSTILE,))
    reader = read(report)
    assert sum(tag == "script" for tag, _attributes in reader.tags) == 2
    assert not [tag for tag, _attributes in reader.tags if tag in ("img", "b-hostile")]
    assert unfolded(reader)["checks"]["0"]["explanation"]["operation"] == HOSTILE


def test_a_page_beyond_its_size_leaves_good_checks_evidence_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [audio_check(GOOD, case="good"), audio_check(BROKEN, case="broken"), audio_check(GOOD, case="good too")]
    sizes = [check.evidence.size for check in checks if check.evidence is not None]
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", int(1.5 * sizes[1]))
    report = report_of(*checks)
    found = unfolded(read(report))["checks"]
    assert ["evidence" in found[str(index)] for index in range(3)] == [False, True, False]
    assert "left out" in found["0"]["left_out"]
    assert len(render_html(report)) < 1.5 * sizes[1] + 60_000


def test_the_worst_sound_is_the_one_to_listen_to_and_of_equals_the_pipeline() -> None:
    good, whole, broken = audio_check(GOOD), audio_check(GOOD, stage="pipeline"), audio_check(BROKEN, case="loud")
    assert unfolded(read(report_of(feature_check(GOOD), good, whole)))["listen"] == 2
    assert unfolded(read(report_of(good, whole, broken)))["listen"] == 2
    assert unfolded(read(report_of(feature_check(GOOD))))["listen"] is None


def test_a_check_of_audio_is_judged_by_its_own_table() -> None:
    check = audio_check(GOOD)
    assert check.comparison is not None
    assert check.comparison.audio is not None
    assert judge(check.comparison, "decoder", "fp16") == check.judgement
    assert compare(np.ones(4), np.ones(4)).audio is None
    assert compare_audio(np.ones(4000), np.ones(4000), 16000).audio is not None
    assert isinstance(check, Check)
