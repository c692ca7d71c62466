"""Model structures and compute plans of compiled models, in coremltools' own classes (models/compute_plan.py).

Which device an operation takes is a rule of the stand-in's own, and says nothing of a Mac: constants take none, as in
Core ML's plans; half precision goes to the Neural Engine where it is allowed, everything else to the GPU, then the CPU.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

_DEVICES = {"ALL": ("CPU", "GPU", "NE"), "CPU_AND_GPU": ("CPU", "GPU"), "CPU_AND_NE": ("CPU", "NE"), "CPU_ONLY": ("CPU",)}


def devices(units: str) -> list[Any]:
    return [_device(name) for name in _DEVICES[units]]


def _device(name: str) -> Any:
    from coremltools.models import compute_device

    from . import native

    makers = {
        "CPU": (compute_device.MLCPUComputeDevice, native._MLCPUComputeDeviceProxy),
        "GPU": (compute_device.MLGPUComputeDevice, native._MLGPUComputeDeviceProxy),
        "NE": (compute_device.MLNeuralEngineComputeDevice, native._MLNeuralEngineComputeDeviceProxy),
    }
    device, proxy = makers[name]
    return device(proxy())


def usage(operation: Any, units: str) -> Any:
    """MLComputePlanDeviceUsage of a protobuf operation; None for a constant."""
    from coremltools.models.compute_plan import MLComputePlanDeviceUsage
    from coremltools.proto import MIL_pb2

    if operation.type == "const" or operation.type.startswith("constexpr"):
        return None
    half = all(item.type.tensorType.dataType in (MIL_pb2.FLOAT16, MIL_pb2.BOOL) for item in operation.outputs)
    supported = [name for name in _DEVICES[units] if name != "NE" or half]
    preferred = next(name for name in ("NE", "GPU", "CPU") if name in supported)
    return MLComputePlanDeviceUsage(_device(preferred), [_device(name) for name in supported])


def cost(operation: Any, structure: Any) -> Any:
    """MLComputePlanCost: its share of all elements that the program computes; None for a constant."""
    from coremltools.models.compute_plan import MLComputePlanCost

    if operation.type == "const" or operation.type.startswith("constexpr"):
        return None
    every = [item.__proxy__.operation for function in structure.program.functions.values() for item in function.block.operations]
    whole = sum(_elements(item) for item in every if item.type != "const" and not item.type.startswith("constexpr"))
    return MLComputePlanCost(_elements(operation) / max(whole, 1))


def _elements(operation: Any) -> int:
    return sum(math.prod(axis.constant.size for axis in item.type.tensorType.dimensions) for item in operation.outputs)


def model_structure(package: Path) -> Any:
    """MLModelStructure of an ML Program; of nothing where it is another kind."""
    from coremltools.models import compute_plan as classes

    from .compiled import read_specification

    specification = read_specification(package)
    if specification.WhichOneof("Type") != "mlProgram":
        return classes.MLModelStructure(None, None, None)
    functions = {name: _function(classes, item) for name, item in specification.mlProgram.functions.items()}
    return classes.MLModelStructure(None, classes.MLModelStructureProgram(functions), None)


def _function(classes: Any, function: Any) -> Any:
    block = function.block_specializations[function.opset]
    return classes.MLModelStructureProgramFunction(_named(classes, function.inputs), _block(classes, block))


def _block(classes: Any, block: Any) -> Any:
    operations = [_operation(classes, item) for item in block.operations]
    return classes.MLModelStructureProgramBlock(_named(classes, block.inputs), operations, list(block.outputs))


def _operation(classes: Any, operation: Any) -> Any:
    from .native import _MLModelStructureProgramOperationProxy

    inputs = {name: _argument(classes, item) for name, item in operation.inputs.items()}
    blocks = [_block(classes, block) for block in operation.blocks]
    proxy = _MLModelStructureProgramOperationProxy(operation)
    return classes.MLModelStructureProgramOperation(inputs, operation.type, _named(classes, operation.outputs), blocks, proxy)


def _argument(classes: Any, argument: Any) -> Any:
    bindings = [
        classes.MLModelStructureProgramBinding(item.name, None)
        if item.WhichOneof("binding") == "name"
        else classes.MLModelStructureProgramBinding(None, classes.MLModelStructureProgramValue())
        for item in argument.arguments
    ]
    return classes.MLModelStructureProgramArgument(bindings)


def _named(classes: Any, items: Any) -> list[Any]:
    return [classes.MLModelStructureProgramNamedValueType(item.name, classes.MLModelStructureProgramValueType()) for item in items]
