"""Arrangements: every step against numpy, the way in and out of a package, and damaged descriptions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.models.arrangement import Arranged, Arrangement, Step, cut, pad, permute, repeat, reshape, windows

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
CASES: dict[str, tuple[Step, np.ndarray]] = {
    "pad the last axis": (pad(2, 1, 2), np.pad(VALUES, ((0, 0), (0, 0), (1, 2)))),
    "pad an axis in the middle": (pad(1, 0, 3), np.pad(VALUES, ((0, 0), (0, 3), (0, 0)))),
    "pad counted from the end": (pad(-1, 2, 0), np.pad(VALUES, ((0, 0), (0, 0), (2, 0)))),
    "cut": (cut(2, 1, 3), VALUES[:, :, 1:3]),
    "reshape": (reshape(6, 4), VALUES.reshape(6, 4)),
    "permute": (permute(2, 0, 1), VALUES.transpose(2, 0, 1)),
    "repeat": (repeat(1, 2), VALUES.repeat(2, axis=1)),
    "windows": (windows(2, 2, 1), np.lib.stride_tricks.sliding_window_view(VALUES, 2, axis=2)),
    "windows of an inner axis": (windows(1, 2, 1), np.lib.stride_tricks.sliding_window_view(VALUES, 2, axis=1).transpose(0, 1, 3, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_does_what_numpy_does(case: str) -> None:
    step, expected = CASES[case]
    assert np.array_equal(step.apply(torch.from_numpy(VALUES)).numpy(), expected)


def phases(samples: int, stride: int) -> Arrangement:
    """A waveform (1, samples) as (1, stride, 1, samples / stride) and back."""
    count = -(-samples // stride)
    steps = (pad(1, 0, count * stride - samples), reshape(1, count, stride), permute(0, 2, 1), reshape(1, stride, 1, count))
    back = (permute(0, 3, 1, 2), reshape(1, count * stride), cut(1, 0, samples))
    return Arrangement(
        (Arranged("phases", "waveform", (1, stride, 1, count), "", steps),), (Arranged("waveform", "phases", (1, samples), "", back),)
    )


@given(st.integers(1, 60), st.integers(1, 9))
def test_what_goes_in_comes_out_again_also_through_json(samples: int, stride: int) -> None:
    arrangement = phases(samples, stride)
    arrangement = Arrangement.from_dict(json.loads(json.dumps(arrangement.as_dict())))
    assert arrangement == phases(samples, stride)
    arrangement.check({"waveform": [1, samples]}, {"waveform": [1, samples]})
    waveform = torch.randn(1, samples)
    entered = arrangement.enter({"waveform": waveform})
    assert entered["phases"].is_contiguous()
    assert all(entered["phases"][0, sample % stride, 0, sample // stride] == waveform[0, sample] for sample in range(samples))
    assert torch.equal(arrangement.leave(entered)["waveform"], waveform)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"waveform": [1, 23]}, {"waveform": [1, 20]}, "does not become phases"),
        ({"audio": [1, 20]}, {"waveform": [1, 20]}, "made of waveform, which is no input"),
        ({"waveform": [1, 20]}, {"waveform": [1, 21]}, "not the stage's"),
        ({"waveform": [1, 20]}, {}, "not the stage's"),
    ],
)
def test_an_arrangement_of_other_shapes_is_refused(inputs: dict[str, list[int]], outputs: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phases(20, 5).check(inputs, outputs)


def edited(path: list[Any], value: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(phases(20, 5).as_dict()))
    place = values
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        {},
        edited(["inputs"], KeyError),
        edited(["inputs"], 5),
        edited(["inputs", 0], "phases"),
        edited(["inputs", 0, "steps"], None),
        edited(["inputs", 0, "steps", 0, "kind"], "eval"),
        edited(["inputs", 0, "steps", 0, "numbers"], [1, 0, 1 << 40]),
        edited(["inputs", 0, "steps", 0, "numbers"], [1, 0.5, 1]),
        edited(["inputs", 0, "steps", 0, "numbers"], [1, True, 1]),
        edited(["inputs", 0, "shape"], ["1"]),
    ],
)
def test_a_damaged_description_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of its own sentence each
        Arrangement.from_dict(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["inputs", 0, "steps", 0, "numbers"], [7, 0, 1]),
        (["inputs", 0, "steps", 0, "numbers"], [1, 0]),
        (["inputs", 0, "steps", 0, "numbers"], [1, 0, 1 << 30]),
        (["inputs", 0, "steps", 1, "numbers"], [1, -1, -1]),
        (["inputs", 0, "steps", 2, "numbers"], [0, 0, 1]),
        (["inputs", 0, "shape"], [1, 5, 1, 5]),
        (["inputs", 0, "shape"], [1 << 20, 1 << 20]),
        (["inputs", 0, "shape"], []),
        (["inputs", 0, "shape"], [1] * 9),
    ],
)
def test_steps_that_lead_nowhere_are_refused_without_memory(path: list[Any], value: Any) -> None:
    arrangement = Arrangement.from_dict(edited(path, value))
    with pytest.raises(ValueError):  # noqa: PT011 - of its own sentence each
        arrangement.check({"waveform": [1, 20]}, {"waveform": [1, 20]})
