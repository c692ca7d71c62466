"""Small ML Programs for tests: built or traced, converted by coremltools, saved, and run by the reference executor."""

from __future__ import annotations

import json
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
from coremltools.converters.mil.backend.mil.load import MILProtoExporter
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2
from mil_coverage import definitions
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.program import OPSETS as PROGRAM_OPSETS
from rvc_coreml.runtime.reference.program import Block
from rvc_coreml.runtime.reference.registry import find_handler

OPSET = ct.target.iOS17
OPSETS = {name: getattr(ct.target, name) for name in ("iOS15", "iOS16", "iOS17", "iOS18")}
MODEL_FILE = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHT_FILE = Path("Data/com.apple.CoreML/weights/weight.bin")
_PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


def build_program(build: Callable[..., Any], inputs: Sequence[np.ndarray], opset: str = "iOS17") -> Any:
    """A MIL program whose inputs are `build`'s parameters, typed and shaped as the arrays."""
    specs = [mb.TensorSpec(shape=array.shape, dtype=types.numpy_type_to_builtin_type(array.dtype)) for array in inputs]
    return mb.program(input_specs=specs, opset_version=OPSETS[opset])(build)


def convert_program(program: Any, precision: str = "fp32", opset: str = "iOS17") -> Any:
    """Without optimisation passes, so that the package holds the operations as they were built."""
    with _quietly():
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=OPSETS[opset],
            compute_precision=_PRECISIONS[precision],
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY if precision == "fp32" else ct.PassPipeline.DEFAULT,
        )


def write_program(program: Any, path: Path, opset: str = "iOS17") -> Path:
    """A package with a program exactly as it was built, in milliseconds: no passes, and no description of features."""
    model = path / MODEL_FILE
    (model.parent / "weights").mkdir(parents=True)
    version = OPSETS[opset].value
    exporter = MILProtoExporter(program, str(model.parent / "weights"), version)
    specification: Any = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
    specification.specificationVersion = version
    specification.mlProgram.CopyFrom(exporter.export())
    exporter.blob_writers.clear()  # a writer completes its file when it goes
    model.write_bytes(specification.SerializeToString())
    manifest = {"itemInfoEntries": {"model": {"path": "com.apple.CoreML/model.mlmodel"}}, "rootModelIdentifier": "model"}
    (path / "Manifest.json").write_text(json.dumps(manifest))
    return path


def convert_module(module: torch.nn.Module, examples: Sequence[torch.Tensor], precision: str = "fp32", opset: str = "iOS17") -> Any:
    """Traced and converted as users do it; inputs are named in0, in1, ..."""
    traced = torch.jit.trace(module.eval(), tuple(examples))
    with _quietly():
        return ct.convert(
            traced,
            inputs=[ct.TensorType(name=f"in{index}", shape=tuple(example.shape)) for index, example in enumerate(examples)],
            convert_to="mlprogram",
            minimum_deployment_target=OPSETS[opset],
            compute_precision=_PRECISIONS[precision],
            skip_model_load=True,
        )


def save_package(folder: Path, build: Callable[..., Any], *inputs: np.ndarray, precision: str = "fp32") -> Path:
    """Build, convert and save as `folder`/model.mlpackage."""
    path = folder / "model.mlpackage"
    convert_program(build_program(build, inputs), precision).save(str(path))
    return path


def run_program(build: Callable[..., Any], *inputs: np.ndarray, opset: str = "iOS17", numerics: str = "declared") -> list[np.ndarray]:
    """The outputs of a saved package of `build` for these inputs, in order; what ran is noted in `EXECUTED`."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_program(build_program(build, inputs, opset), Path(folder) / "model.mlpackage", opset)
        model = ReferenceModel(path, numerics=numerics)
        outputs = model.predict(dict(zip(model.inputs, inputs, strict=True)))
        note_executed(model)
        return list(outputs.values())


EXECUTED: set[tuple[str, str]] = set()  # (operation, opset) of every operation in a program that ran to its end


def note_executed(model: ReferenceModel) -> None:
    opset = PROGRAM_OPSETS[model.program.opset]
    EXECUTED.update((operation, opset) for operation in operation_types(model))


def opset_of_definition(operation: str, opset: str) -> str:
    """The definition that a program of this opset uses, by the opset that introduced it."""
    order = list(OPSETS)
    return [since for since in definitions(operation) if order.index(since) <= order.index(opset)][-1]


def run_module(
    module: torch.nn.Module, *examples: torch.Tensor, opset: str = "iOS17"
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """What the package of a module gives, what the module gives, and the operations of the package."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.mlpackage"
        convert_module(module, examples, opset=opset).save(str(path))
        model = ReferenceModel(path)
        got = model.predict({f"in{index}": example.numpy() for index, example in enumerate(examples)})
        wanted = module(*examples)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        return list(got.values()), [item.numpy() for item in wanted], operation_types(model)


def operation_types(model: ReferenceModel) -> list[str]:
    """All operations of a loaded package, those of nested blocks included."""

    def walk(block: Block) -> Iterator[str]:
        for operation in block.operations:
            yield operation.type
            for nested in operation.blocks:
                yield from walk(nested)

    return list(walk(model.program))


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


def handler(name: str, opset: str = "iOS17") -> Callable[..., Any]:
    """A registered operation's function, taking arrays where it wants tensors and returning arrays."""
    found = find_handler(name, opset)
    assert found is not None, f"{name} has no handler in {opset}"
    function = found.function

    def call(*arguments: Any, **named: Any) -> Any:
        results = function(*map(_tensor, arguments), **{key: _tensor(value) for key, value in named.items()})
        return tuple(result.numpy() for result in results) if isinstance(results, tuple) else results.numpy()

    return call


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Asserts equal shapes and values within `tolerance`, relative and absolute."""
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 standard normal values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def numbered(*shape: int) -> np.ndarray:
    """Float32 values from 0 on, all different."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def inferred(operation: str, opset: str = "iOS17", **arguments: Any) -> np.ndarray:
    """What coremltools itself computes for an operation on constants."""
    found = []

    def build(x: Any) -> Any:
        found.append(getattr(mb, operation)(**arguments).val)
        return x

    build_program(build, [np.zeros(1, np.float32)], opset)
    return np.asarray(found[0])


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
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has been renamed", category=UserWarning)
        yield
