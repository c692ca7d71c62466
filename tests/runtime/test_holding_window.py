"""Of a stage's several windows a segment takes the shortest that holds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from rvc_coreml.runtime.synthesis import SegmentSynthesizer

ENTRIES: dict[str, Any] = {
    "text_encoder": SimpleNamespace(window=500),
    "text_encoder@4352": SimpleNamespace(window=4352),
    "text_encoder@928": SimpleNamespace(window=928),
    "flow": SimpleNamespace(window=600),
}


@pytest.mark.parametrize(
    ("frames", "entry"),
    [
        (1, "text_encoder"),
        (500, "text_encoder"),
        (501, "text_encoder@928"),
        (929, "text_encoder@4352"),
        (4352, "text_encoder@4352"),
        (9000, "text_encoder@4352"),
    ],
)
def test_the_shortest_window_that_holds_a_segment_is_taken(frames: int, entry: str) -> None:
    synthesizer = cast(Any, SegmentSynthesizer)("v2", {}, ENTRIES, None, None, None, None)
    assert synthesizer._holding("text_encoder", frames) == entry
    assert synthesizer._holding("flow", frames) == "flow"
