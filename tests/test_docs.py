"""What the documents say of the program is so."""

from __future__ import annotations

import re
from pathlib import Path

from rvc_coreml.runtime.reference import limits
from rvc_coreml.runtime.reference.numerics import MAC_LIMIT, POLICIES, RULES, SLICE_LIMIT

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference_executor.md"


def table_names(text: str, heading: str) -> list[str]:
    table = text[text.index(f"| {heading} |") :].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_reference_executors_document_names_every_policy_rule_and_limit() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert table_names(text, "policy") == list(POLICIES)
    assert table_names(text, "rule") == list(RULES)
    assert f"±{MAC_LIMIT:.0f}" in text
    assert f"±{SLICE_LIMIT:.0f}" in text
    assert limits.BASE_BYTES == 1 << 30
    assert f"{limits.PER_PACKAGE_BYTE} times the package and {limits.PER_INPUT_BYTE} times the inputs" in text
    assert limits.SHARE_OF_MEMORY == 0.75


def test_links_in_documents_lead_somewhere() -> None:
    for document in DOCUMENT.parent.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
