"""docs/own_models.md: its programs run, one after the other, and its table is that of the rewrites."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from rvc_coreml.converters.lowerings import REWRITES, registered_lowerings, remove_lowering

DOCUMENT = Path(__file__).parents[3] / "docs" / "own_models.md"


def test_the_programs_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    first = [line for line in programs[0].splitlines() if line]
    assert len(first) <= 10, "a model of one's own in ten lines"
    known: dict[str, object] = {"__name__": "own_models"}
    try:
        for program in programs:
            exec(compile(program, str(DOCUMENT), "exec"), known)
    finally:
        for operation in registered_lowerings():
            remove_lowering(operation)
        _TORCH_OPS_REGISTRY.name_to_func_mapping.pop("deg2rad", None)
    assert (tmp_path / "network" / "graph.json").exists()
    assert "network: 1 package" in capsys.readouterr().out
    assert len(programs) == 4


def test_the_document_lists_every_rewrite() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", text.split("## Rewrites")[1], re.MULTILINE) == sorted(
        (name, rewrite.note) for name, rewrite in REWRITES.items()
    )
