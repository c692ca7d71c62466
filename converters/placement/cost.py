"""A model of how long a function takes on a chip, unit by unit. It is a model: nothing here was measured by this project.

Each operation takes the longer of its arithmetic at its unit's rate and its traffic at its unit's bandwidth. On the Neural Engine
values below the working set stay on the chip, so that only constants and larger values count as traffic. Every run of operations on
one unit is one dispatch; at each switch the values that the next unit reads are moved. Runs are cut in program order, and units
work one after the other. What a chip does not state is derived from the M1 (`rate_of`), and said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chips import CHIPS, Chip, Fact

if TYPE_CHECKING:
    from .assess import Placed

UNITS: tuple[str, ...] = ("ane", "gpu", "cpu")
REFERENCE = "m1"
WORKING_SET = 2 << 20  # bytes; coreml_ane.md D13

ASSUMPTIONS: dict[str, Fact[float]] = {
    "ane_dispatch_seconds": Fact(200e-6, "ane-guide, chapter 9: 222 us for one layer, 6.3 us each of 32 in one program", "M"),
    "gpu_dispatch_seconds": Fact(100e-6, "assumed: half of the Neural Engine's", "L"),
    "cpu_dispatch_seconds": Fact(10e-6, "assumed", "L"),
    "gpu_operation_seconds": Fact(5e-6, "assumed: one kernel started for each operation", "L"),
    "cpu_operation_seconds": Fact(1e-6, "assumed", "L"),
    "ane_operation_seconds": Fact(0.0, "ane-guide, chapter 9: operations of one program share its dispatch", "M"),
    "switch_seconds": Fact(50e-6, "assumed: synchronisation between units, beside the copy", "L"),
    "engine_share_of_marketed": Fact(4.8e12 / 11e12, "the M1's sustained rate over its marketed one, for chips without a measurement", "L"),
    "engine_share_of_bandwidth": Fact(51 / 68.25, "the M1's streaming rate over its memory's, for chips without a measurement", "L"),
}


@dataclass(frozen=True)
class Times:
    """Predicted seconds. `by_unit` is arithmetic and traffic, `counts` how many operations; `switches` changes of unit.

    `assumptions` are the numbers that went in, with their sources; `is_model` is there for whoever prints it.
    """

    by_unit: dict[str, float]
    counts: dict[str, int]
    dispatches: dict[str, int]
    dispatch_seconds: float
    switches: int
    transfer_bytes: int
    transfer_seconds: float
    assumptions: dict[str, Fact[float]]
    is_model: bool = True

    @property
    def total(self) -> float:
        return sum(self.by_unit.values()) + self.dispatch_seconds + self.transfer_seconds


def rates_of(chip: Chip) -> dict[str, Fact[float]]:
    """FLOPs and bytes a second of each unit; what the chip does not state is taken from its marketed rate or the M1, and is L."""
    reference = CHIPS[REFERENCE]

    def value(name: str) -> float | None:
        return getattr(chip, name).value

    def stated(name: str) -> Fact[float]:
        fact: Fact[float] = getattr(chip, name)
        if fact.value is not None:
            return fact
        return Fact(getattr(reference, name).value, f"not published for {chip.title}: as on the {reference.title}", "L")

    engine: Fact[float] = chip.engine_flops
    marketed, memory = value("marketed_ops"), value("bandwidth")
    if engine.value is None and marketed is not None:
        share = ASSUMPTIONS["engine_share_of_marketed"]
        derated = marketed / 2 if chip.has_int8_activations.value else marketed  # marketed in int8 at twice the half-precision rate
        engine = Fact(derated * (share.value or 0.0), f"{chip.marketed_ops.source}, times {share.source}", "L")
    stream: Fact[float] = chip.engine_bandwidth
    if stream.value is None and memory is not None:
        share = ASSUMPTIONS["engine_share_of_bandwidth"]
        stream = Fact(memory * (share.value or 0.0), f"{chip.bandwidth.source}, times {share.source}", "L")
    return {
        "ane_flops": engine if engine.value is not None else stated("engine_flops"),
        "ane_bandwidth": stream if stream.value is not None else stated("engine_bandwidth"),
        "gpu_flops": stated("gpu_flops"),
        "gpu_bandwidth": stated("bandwidth"),
        "cpu_flops": stated("cpu_flops"),
        "cpu_bandwidth": stated("bandwidth"),
    }


def predict(operations: Sequence[Placed], chip: Chip) -> Times:
    """Counted operations in program order. Those of open shape take no time."""
    rates = rates_of(chip)
    by_unit, counts, dispatches = (dict.fromkeys(UNITS, 0.0), dict.fromkeys(UNITS, 0), dict.fromkeys(UNITS, 0))
    made: dict[str, str] = {}
    last, switches, moved, copied = None, 0, 0, set[tuple[str, str]]()
    for operation in operations:
        unit = operation.unit
        by_unit[unit] += _seconds(operation, unit, rates)
        counts[unit] += 1
        if unit != last:
            dispatches[unit] += 1
            switches += last is not None
            last = unit
        for tensor in operation.inputs:
            if tensor.name is not None and made.get(tensor.name, unit) != unit and (tensor.name, unit) not in copied:
                copied.add((tensor.name, unit))
                moved += tensor.bytes
        made |= {tensor.name: unit for tensor in operation.outputs if tensor.name is not None}
    dispatch = sum(dispatches[unit] * _assumed(f"{unit}_dispatch_seconds") for unit in UNITS)
    transfer = switches * _assumed("switch_seconds") + 2 * moved / (rates["gpu_bandwidth"].value or 1.0)  # written and read again
    return Times(by_unit, counts, dispatches, dispatch, switches, moved, transfer, rates | ASSUMPTIONS)


def _seconds(operation: Placed, unit: str, rates: dict[str, Fact[float]]) -> float:
    traffic = operation.bytes
    if unit == "ane":
        values = [tensor for tensor in (*operation.inputs, *operation.outputs) if not tensor.is_fixed]
        traffic = operation.constant_bytes + sum(tensor.bytes for tensor in values if tensor.bytes > WORKING_SET)
    arithmetic = (operation.flops or 0) / (rates[f"{unit}_flops"].value or 1.0)
    return max(arithmetic, traffic / (rates[f"{unit}_bandwidth"].value or 1.0)) + _assumed(f"{unit}_operation_seconds")


def _assumed(name: str) -> float:
    return ASSUMPTIONS[name].value or 0.0
