"""Small ML Programs for tests: built or traced, converted by coremltools, saved, and run by the reference executor."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2
from rvc_coreml.runtime.reference import ReferenceModel

OPSET = ct.target.iOS17
MODEL_FILE = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHT_FILE = Path("Data/com.apple.CoreML/weights/weight.bin")
_PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}
_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}


def build_program(build: Callable[..., Any], inputs: Sequence[np.ndarray]) -> Any:
    """A MIL program whose inputs are `build`'s parameters, typed and shaped as the arrays."""
    specs = [mb.TensorSpec(shape=array.shape, dtype=_TYPES[array.dtype.name]) for array in inputs]
    return mb.program(input_specs=specs, opset_version=OPSET)(build)


def convert_program(program: Any, precision: str = "fp32") -> Any:
    """Without optimisation passes, so that the package holds the operations as they were built."""
    with _frozen_heap():
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=OPSET,
            compute_precision=_PRECISIONS[precision],
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY if precision == "fp32" else ct.PassPipeline.DEFAULT,
        )


def convert_module(module: torch.nn.Module, examples: Sequence[torch.Tensor], precision: str = "fp32") -> Any:
    """Traced and converted as users do it; inputs are named in0, in1, ..."""
    traced = torch.jit.trace(module.eval(), tuple(examples))
    with _frozen_heap():
        return ct.convert(
            traced,
            inputs=[ct.TensorType(name=f"in{index}", shape=tuple(example.shape)) for index, example in enumerate(examples)],
            convert_to="mlprogram",
            minimum_deployment_target=OPSET,
            compute_precision=_PRECISIONS[precision],
            skip_model_load=True,
        )


def save_package(folder: Path, build: Callable[..., Any], *inputs: np.ndarray, precision: str = "fp32") -> Path:
    """Build, convert and save as `folder`/model.mlpackage."""
    path = folder / "model.mlpackage"
    convert_program(build_program(build, inputs), precision).save(str(path))
    return path


def run_program(build: Callable[..., Any], *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a saved package of `build` for these inputs, in order."""
    with tempfile.TemporaryDirectory() as folder:
        model = ReferenceModel(save_package(Path(folder), build, *inputs))
        return list(model.predict(dict(zip(model.inputs, inputs, strict=True))).values())


def run_module(module: torch.nn.Module, *examples: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """What the package of a module gives, what the module gives, and the operations of the package."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.mlpackage"
        convert_module(module, examples).save(str(path))
        model = ReferenceModel(path)
        got = model.predict({f"in{index}": example.numpy() for index, example in enumerate(examples)})
        wanted = module(*examples)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        return list(got.values()), [item.numpy() for item in wanted], operation_types(model)


def operation_types(model: ReferenceModel) -> list[str]:
    return [operation.type for operation in model._function.operations]


def read_specification(package: Path) -> Any:
    specification: Any = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
    specification.ParseFromString((package / MODEL_FILE).read_bytes())
    return specification


@contextmanager
def edited_specification(package: Path) -> Iterator[Any]:
    """The model's protobuf, written back afterwards."""
    specification = read_specification(package)
    yield specification
    (package / MODEL_FILE).write_bytes(specification.SerializeToString())


def main_block(specification: Any) -> Any:
    """The only block of the function `main`."""
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    return block


def handler(name: str) -> Callable[..., torch.Tensor]:
    """A registered operation's function, taking arrays where it wants tensors and returning an array."""
    from rvc_coreml.runtime.reference.registry import HANDLERS

    function = HANDLERS[name].function

    def call(*arguments: Any, **named: Any) -> Any:
        return function(*map(_tensor, arguments), **{key: _tensor(value) for key, value in named.items()}).numpy()

    return call


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Asserts equal shapes and values within `tolerance`, relative and absolute."""
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 standard normal values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def by_name(values: Mapping[str, Any]) -> list[Any]:
    """A mapping's values as pytest parameters named by their keys."""
    import pytest

    return [pytest.param(value, id=name) for name, value in values.items()]


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return [torch.from_numpy(item) for item in value]
    return value


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """coremltools collects garbage after each conversion, which takes 0.15 s unless the heap is set aside."""
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has been renamed", category=UserWarning)
            yield
    finally:
        gc.unfreeze()
