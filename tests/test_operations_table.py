"""docs/operations.md: complete, every reshape with its reason, and its counts those of packages that are made today."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from count_operations import (
    COLUMNS,
    DOCUMENT,
    LAYOUTS,
    NETWORKS,
    NO_REASON,
    Counted,
    Rearranged,
    count_package,
    document,
    table,
    unexplained,
)
from rvc_coreml.models.layouts import ANE
from rvc_coreml.runtime.library import Library

NARROW = {"flow": "flow", "decoder": "decoder_40k"}  # a narrow voice has as many operations as one of full size
FOLDED = ("operations", "slices")  # of a decoder: as many as its window needs, which is a smaller one in the tests' library


def rows(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """(network, layout) -> cells of the first table by heading."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    headings = lines[0]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for cells in lines[2:]:
        if len(cells) != len(headings):
            break
        found[cells[0], cells[1]] = dict(zip(headings, cells, strict=True))
    return found


@pytest.fixture(scope="module")
def documented() -> dict[tuple[str, str], dict[str, str]]:
    return rows(DOCUMENT.read_text(encoding="utf-8"))


def narrow(library: Path, stage: str) -> Counted:
    voice = Library.open(library).voice("v2")
    entry = voice.manifest.stages[stage]
    return count_package(voice.package(stage), NARROW[stage], ANE, entry.window, voice.operations(stage))


def test_the_table_has_every_network_in_every_layout(documented: dict[tuple[str, str], dict[str, str]]) -> None:
    assert set(documented) == {(network, layout) for network in NETWORKS for layout in LAYOUTS}
    text = DOCUMENT.read_text(encoding="utf-8")
    assert NO_REASON not in text
    assert "GRU" in text


@pytest.mark.parametrize("stage", NARROW)
def test_the_counts_are_those_of_a_package(small_library: Path, documented: dict[tuple[str, str], dict[str, str]], stage: str) -> None:
    counted = narrow(small_library, stage)
    assert unexplained([counted]) == []
    ((_key, made),) = rows("\n".join(table([counted]))).items()
    said = documented[NARROW[stage], ANE]
    for heading in ("operations", *COLUMNS, "hazards", "unproven"):
        if stage == "decoder" and heading in FOLDED:
            continue
        assert made[heading] == said[heading], heading


def test_what_has_no_reason_is_named(small_library: Path) -> None:
    counted = narrow(small_library, "flow")
    assert counted.of("slices") == counted.operations.get("slice_by_index", 0)
    stray = Rearranged("transpose", "stray_1", "dec.resblocks.3", (1, 2), (2, 1))
    assert unexplained([replace(counted, rearranged=(stray,))]) == ["flow: transpose at dec.resblocks.3 (stray_1), (1, 2) to (2, 1)"]
    assert NO_REASON in document([replace(counted, rearranged=(stray,))])
    assert unexplained([replace(counted, layout="plain", rearranged=(stray,))]) == []
