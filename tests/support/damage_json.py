"""JSON of graphs and plans with something in it replaced, removed or renamed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

PIECES = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        3,
        0.5,
        "x",
        "y",
        "",
        "mean",
        [],
        [1, -1],
        {"value": "x"},
        {"value": "y"},
        {"dtype": "int64"},
        {"float": "inf"},
        {"device": "here"},
    ]
)


def change(content: Any, data: st.DataObject) -> None:
    """Replace, remove or add something somewhere."""
    place = content
    for _ in range(12):
        if isinstance(place, dict) and place:
            key: Any = data.draw(st.sampled_from(sorted(place)))
        elif isinstance(place, list) and place:
            key = data.draw(st.integers(0, len(place) - 1))
        else:
            return
        inside = place[key]
        if isinstance(inside, (dict, list)) and inside and data.draw(st.booleans() | st.just(True)):
            place = inside
            continue
        action = data.draw(st.sampled_from(["replace", "remove", "name"]))
        if action == "remove":
            del place[key]
        elif action == "name" and isinstance(inside, str):
            place[key] = data.draw(
                st.sampled_from(["aten.sum.default", "aten.add.Tensor", "operator.add", "x", "p_weight", "add", "higher_order.cond"])
            )
        else:
            place[key] = copy.deepcopy(data.draw(PIECES))
        return
