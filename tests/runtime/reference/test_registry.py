from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rvc_coreml.runtime.reference.registry import HANDLERS, Handler, find_handler, mil_op
from torch import Tensor


@pytest.fixture
def registered() -> Iterator[dict[str, list[Handler]]]:
    """The registry, as it was afterwards."""
    before = dict(HANDLERS)
    yield HANDLERS
    HANDLERS.clear()
    HANDLERS.update(before)


def test_an_operation_cannot_be_registered_twice(registered: dict[str, list[Handler]]) -> None:
    def another(x: Tensor) -> Tensor:
        return x

    before = registered["relu"]
    with pytest.raises(TypeError, match="relu is registered twice"):
        mil_op("relu")(another)
    assert registered["relu"] is before


def without_annotation(x) -> Tensor:
    return x


def with_any_number(*x: Tensor) -> Tensor:
    return x[0]


def with_keywords(**x: Tensor) -> Tensor:
    return x["x"]


def with_keyword_only(*, x: Tensor) -> Tensor:
    return x


def with_unknown_annotation(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x


@pytest.mark.parametrize("function", [without_annotation, with_any_number, with_keywords, with_keyword_only, with_unknown_annotation])
def test_a_parameter_of_no_known_form_is_refused_at_registration(registered: dict[str, list[Handler]], function: Any) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__}: parameter (x|axes) has no form"):
        mil_op("invented")(function)
    assert "invented" not in registered


def test_registration_reads_forms_and_required_parameters(registered: dict[str, list[Handler]]) -> None:
    def invented(x: Tensor, axes: list[int], values: list[Tensor], mode: str = "", flag: bool = False) -> Tensor:
        return x

    mil_op("invented", "coined", moves=True)(invented)
    (handler,) = registered["invented"]
    assert registered["coined"] == [handler]
    assert handler.forms == {"x": "tensor", "axes": "ints", "values": "tensors", "mode": "str", "flag": "bool"}
    assert handler.required == {"x", "axes", "values"}
    assert handler.moves


def test_a_definition_changes_where_a_later_opset_registers_anew(registered: dict[str, list[Handler]]) -> None:
    mil_op("invented", until="iOS16")(defined_first)
    mil_op("invented", since="iOS17")(defined_later)
    found = [find_handler("invented", opset) for opset in ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")]
    assert [handler and handler.function for handler in found] == [
        defined_first,
        defined_first,
        defined_later,
        defined_later,
        defined_later,
    ]
    with pytest.raises(TypeError, match="invented is registered twice"):
        mil_op("invented", since="iOS16", until="iOS16")(defined_later)
    with pytest.raises(TypeError, match="no opsets from iOS17 to iOS15"):
        mil_op("backwards", since="iOS17", until="iOS15")(defined_later)


def defined_first(x: Tensor) -> Tensor:
    return x


def defined_later(x: Tensor) -> Tensor:
    return -x
