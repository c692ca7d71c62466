"""Where Core ML would run every operation of a package, as the worker reads it from MLComputePlan. Not yet run on a Mac."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import BackendError
from .compiled_cache import CompiledCache, compile_alone
from .model import COMPILED, import_coremltools

UNITS = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}  # coremltools' classes
Row = tuple[str, str, str, tuple[str, ...], float]  # an output's name, type, preferred unit, supported units, share of the cost


def package_plan(path: Path, compute_units: str, cache: CompiledCache | None, toolchain: str, wait: float) -> dict[str, list[Row]]:
    """`plan_rows` of a package, compiled by way of the cache, or of a compiled model. Raises BackendError."""
    ct = import_coremltools()
    if path.suffix == COMPILED:
        return plan_rows(ct, path, compute_units)

    def compile_package(package: Path, _folder: Path) -> Path:
        try:
            return Path(ct.models.utils.compile_model(str(package)))
        except OSError as error:  # Core ML's, not the cache's
            raise BackendError(str(error)) from error

    entry = compile_alone(path, compile_package) if cache is None else cache.open(path, toolchain, compile_package, wait)
    with entry:
        return plan_rows(ct, entry.path, compute_units)


def plan_rows(ct: Any, compiled: Path, compute_units: str) -> dict[str, list[Row]]:
    """Function -> its operations in order, those without a device (constants, casts at the border) left out.

    A path that holds no compiled model ends the process (coremltools issue 2757). Raises BackendError before macOS 14.4,
    and for a model that is no ML Program.
    """
    try:
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(str(compiled), compute_units=ct.ComputeUnit[compute_units])
    except RuntimeError as error:
        raise BackendError(f"it has no compute plan to give: {error}") from error
    program = plan.model_structure.program
    if program is None:
        raise BackendError("its structure is not that of an ML Program")
    return {name: list(_rows(plan, function.block)) for name, function in program.functions.items()}


def _rows(plan: Any, block: Any) -> Iterator[Row]:
    for operation in block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None and operation.outputs:
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            supported = tuple(_unit(device) for device in usage.supported_compute_devices)
            share = 0.0 if cost is None else float(cost.weight)
            yield operation.outputs[0].name, _plain(operation.operator_name), _unit(usage.preferred_compute_device), supported, share
        for inner in operation.blocks:
            yield from _rows(plan, inner)


def _unit(device: Any) -> str:
    return UNITS.get(type(device).__name__, type(device).__name__)


def _plain(name: str) -> str:
    """Compiled models call operations by their opset too, such as ios17.conv."""
    return name.rpartition(".")[2]
