from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil.operation import mil_list
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.registry import find_handler
from support.programs import build_program, definitions, normal, run_program, write_program

NAMES: list[Any] = ["cat", "dog", "hör", "魚"]
NUMBERS: list[Any] = [7, -3, 2**40, 0]
PROBABILITIES = np.array([[0.1, 0.2, 0.65, 0.05]], np.float32)


def answer(probabilities: np.ndarray, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    found = find_handler("classify", "iOS15")
    assert found is not None
    return found.function(torch.from_numpy(probabilities), classes)


def classifier(folder: Path, classes: list[Any], *shape: int) -> Path:
    labels = [np.int64(label) if isinstance(label, int) else label for label in classes]
    program = build_program(lambda x: mb.classify(probabilities=x, classes=mb.const(val=mil_list(labels))), [np.zeros(shape, np.float32)])
    return write_program(program, folder / "model.mlpackage")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**16), st.booleans())
def test_the_likeliest_class_and_all_probabilities_are_given(count: int, seed: int, named: bool) -> None:
    probabilities = normal(1, count, 1, seed=seed)
    classes: list[Any] = [f"class {index}" if named else 10 * index for index in range(count)]
    label, table = answer(probabilities, classes)
    assert label == classes[int(np.argmax(probabilities))]
    assert table == dict(zip(classes, probabilities.ravel().astype(float).tolist(), strict=True))


def test_the_first_of_equally_likely_classes_is_given() -> None:
    assert answer(np.array([0.2, 0.4, 0.4], np.float32), ["a", "b", "c"])[0] == "b"


@pytest.mark.parametrize("classes", [NAMES, NUMBERS], ids=["names", "numbers"])
@pytest.mark.parametrize("opset", definitions("classify"))
def test_packages_give_plain_values_as_mlmodel_does(opset: str, classes: list[Any]) -> None:
    labels = [np.int64(label) if isinstance(label, int) else label for label in classes]
    label, table = run_program(lambda x: mb.classify(probabilities=x, classes=mb.const(val=mil_list(labels))), PROBABILITIES, opset=opset)
    assert label == classes[2]
    assert table == dict(zip(classes, PROBABILITIES[0].astype(float).tolist(), strict=True))
    assert {type(item) for item in (label, *table)} == {type(classes[0])}
    assert {type(value) for value in table.values()} == {float}


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), dim=-1)


CONVERSIONS = {
    "names": (None, NAMES, ct.precision.FLOAT32),
    "numbers in half precision": ("kind", [7, -3, 5, 0], ct.precision.FLOAT16),
}


@pytest.mark.filterwarnings("ignore:.*has been renamed")
@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_converted_classifier_agrees_with_torch(tmp_path: Path, case: str) -> None:
    feature, classes, precision = CONVERSIONS[case]
    network, config = Network().eval(), ct.ClassifierConfig(classes, predicted_feature_name=feature)
    converted = ct.convert(
        torch.jit.trace(network, torch.zeros(1, 5)),
        inputs=[ct.TensorType(name="x", shape=(1, 5))],
        classifier_config=config,
        compute_precision=precision,
        minimum_deployment_target=ct.target.iOS15,
        skip_model_load=True,
    )
    converted.save(str(tmp_path / "model.mlpackage"))
    model = ReferenceModel(tmp_path / "model.mlpackage")
    name = feature or "classLabel"
    assert list(model.outputs) == [name, f"{name}_probs"]
    seen = set()
    for seed in range(6):
        x = 3 * normal(1, 5, seed=seed)
        outputs = model.predict({"x": x})
        with torch.no_grad():
            wanted = network(torch.from_numpy(x))[0].tolist()
        seen.add(outputs[name])
        assert outputs[name] == classes[int(np.argmax(wanted))]
        assert list(outputs[f"{name}_probs"]) == classes
        np.testing.assert_allclose(
            list(outputs[f"{name}_probs"].values()), wanted, atol=1e-6 if precision == ct.precision.FLOAT32 else 3e-3
        )
    assert len(seen) > 1


def test_probabilities_keep_double_precision() -> None:
    probabilities = np.array([1 / 3, 2 / 3])
    assert answer(probabilities, ["a", "b"])[1] == {"a": 1 / 3, "b": 2 / 3}


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_classes_is_refused(count: int) -> None:
    with pytest.raises(PackageError, match=f"there are {count} classes and 4 probabilities"):
        answer(PROBABILITIES, [f"class {index}" for index in range(count)])


def test_no_classes_at_all_are_refused() -> None:
    with pytest.raises(PackageError, match="0 classes and 0 probabilities"):
        answer(np.zeros((0,), np.float32), [])
