"""JUnit XML as continuous integration reads it: a suite for every component and stage, a case for every check.

A wrong number is a `failure`; a check that could not be made (a package that does not load or run) is an `error`.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from .model import Check, Report, groups

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no other characters


def render_junit(report: Report) -> str:
    """The whole document."""
    root = Xml.Element("testsuites", name=_clean(f"rvc-coreml validate {report.title}"))
    for (component, stage), checks in groups(report.checks).items():
        suite = _suite(root, f"{component}, {stage}", report)
        for check in checks:
            _case(suite, check, report)
        _count(suite)
    if report.widened:
        suite = _suite(root, "thresholds", report)
        for sentence in report.widened:
            case = Xml.SubElement(suite, "testcase", classname="thresholds", name=_clean(sentence), time="0.000")
            Xml.SubElement(case, "failure", message=_clean(sentence), type="widened").text = _clean(sentence)
        _count(suite)
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: Xml.Element, name: str, report: Report) -> Xml.Element:
    suite = Xml.SubElement(root, "testsuite", name=_clean(name), timestamp=_clean(report.created.removesuffix("Z")), hostname="localhost")
    properties = Xml.SubElement(suite, "properties")
    facts = {"library": report.title, "backend": report.backend, "detail": report.detail, "against": report.against}
    for key, value in {**facts, **report.tools}.items():
        Xml.SubElement(properties, "property", name=_clean(key), value=_clean(str(value)))
    return suite


def _case(suite: Xml.Element, check: Check, report: Report) -> None:
    where = f"{check.component}.{check.stage}"
    case = Xml.SubElement(suite, "testcase", classname=_clean(where), name=_clean(check.name), time=f"{check.seconds:.3f}")
    if not report.accepts(check):
        kind = "error" if check.judgement is None else "failure"
        found = Xml.SubElement(case, kind, message=_clean(check.reason), type=check.verdict.value)
        found.text = _clean(_details(check))
    elif check.reason:
        Xml.SubElement(case, "system-out").text = _clean(f"{check.verdict.value}: {check.reason}")


def _details(check: Check) -> str:
    lines = [check.reason]
    if check.comparison is not None:
        lines += [f"{name}: {value}" for name, value in check.comparison.as_dict().items()]
    if check.explanation is not None:
        lines.append(f"explanation: {check.explanation.get('text', '')}")
    return "\n".join(lines)


def _count(suite: Xml.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", "0")
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
