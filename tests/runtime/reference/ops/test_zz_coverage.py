"""Last in this folder: whether the tests before it ran every definition, and whether the table says what is true."""

from __future__ import annotations

from pathlib import Path

import mil_coverage
import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from support.programs import EXECUTED, opset_of_definition

HERE = Path(__file__).parent
MOST_LEFT_OUT = 12


def test_every_definition_was_run_in_its_own_opset(request: pytest.FixtureRequest) -> None:
    collected = {item.path for item in request.session.items}
    absent = [path.name for path in sorted(HERE.glob("test_*.py")) if path not in collected]
    if absent or request.config.option.keyword:
        pytest.skip(f"only a part of this folder's tests is running ({len(absent)} files are not)")
    ran = {(name, opset_of_definition(name, opset)) for name, opset in EXECUTED if name in SSAOpRegistry.core_ops}
    expected = set(mil_coverage.all_definitions()) - {(name, "iOS15") for name in (*mil_coverage.LEFT_OUT, *mil_coverage.BY_READER)}
    assert sorted(expected - ran) == []
    assert {"read_state", "write_state", "coreml_update_state"} <= {name for name, _opset in EXECUTED}


def test_the_document_is_what_the_registries_say() -> None:
    assert mil_coverage.DOCUMENT.read_text(encoding="utf-8") == mil_coverage.document()


def test_few_definitions_are_left_out_and_each_has_a_reason() -> None:
    left_out = {(name, opset) for name, opset in mil_coverage.all_definitions() if not mil_coverage.runs(name, opset)}
    assert {name for name, _opset in left_out} == set(mil_coverage.LEFT_OUT)
    assert len(left_out) <= MOST_LEFT_OUT


def test_nothing_that_is_left_out_can_come_from_the_torch_frontend() -> None:
    import coremltools.converters.mil.frontend.torch as frontend

    sources = [path.read_text(encoding="utf-8") for path in Path(frontend.__file__).parent.rglob("*.py") if "test" not in path.parts]
    assert len(sources) > 10
    for name in mil_coverage.LEFT_OUT:
        assert not any(f"mb.{name}(" in source for source in sources), name


def test_the_list_is_that_of_coremltools() -> None:
    assert len(mil_coverage.all_definitions()) == 227
    assert len(SSAOpRegistry.core_ops) == 168
