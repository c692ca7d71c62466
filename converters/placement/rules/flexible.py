"""D17: shapes that are not fixed."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip
from ..registry import Found, rule
from ..view import FunctionView, OperationView

MAX_ENUMERATED = 128  # D17: shapes that one model may list
_D17 = "coreml_ane.md D17 (coremltools #1764, #1909, #2370; fixed shapes are the only reliable way)"
_REMEDY = "convert one package, or one function, for each fixed shape"


def _open(operation: OperationView) -> str | None:
    found = next((tensor for tensor in operation.tensors if tensor.is_open), None)
    return None if found is None else str(found)


@rule("D17-range", "A shape that is open", "off-ane", source=_D17, confidence="H")
def open_shape(operation: OperationView, chip: Chip) -> Iterator[Found]:
    shown = _open(operation)
    if shown is not None and not operation.function.enumerated:
        yield Found(f"its shape is open ({shown}), and such operations run on the CPU or GPU", _REMEDY)


@rule("D17-enumerated", "A shape out of a list", "off-ane", source=_D17, confidence="M")
def listed_shape(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Up to 128 listed shapes can go to the engine; a layer norm has been kept off it (#1909)."""
    listed, shown = operation.function.enumerated, _open(operation)
    if not listed or shown is None:
        return
    if listed > MAX_ENUMERATED:
        yield Found(f"{listed} shapes are listed, above {MAX_ENUMERATED} ({shown})", _REMEDY)
    elif operation.type == "layer_norm":
        yield Found(f"a layer norm of a listed shape has been kept off the engine ({shown})", _REMEDY, proven=False)
    else:
        yield Found(
            f"its shape is one of {listed} listed ones ({shown}); switching between them has left the engine", _REMEDY, proven=False
        )


@rule("D17-inputs", "Several inputs with listed shapes", "hazard", source=_D17, confidence="M", scope="function")
def listed_inputs(function: FunctionView, chip: Chip) -> Iterator[Found]:
    """Before iOS 18 one input may have them."""
    flexible = [name for name, kind in function.function.inputs.items() if None in getattr(kind, "shape", ())]
    if function.enumerated and len(flexible) > 1 and function.opset in ("iOS15", "iOS16", "iOS17"):
        yield Found(f"the inputs {', '.join(flexible)} have listed shapes, and before iOS 18 one may", _REMEDY)
