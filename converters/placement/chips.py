"""One row per chip: what its Neural Engine takes and how fast it is, each number with its source and how sure it is.

Confidence: H measured by two or more independent sources, M by one, L inference, an old list or a chip's neighbour. `None` is
unknown and is said so. Families are not interchangeable: the A16 takes wide axes and the M3 does not, the A15 has a sine and
the M2 does not. The limits are the strictest of those stated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from ...errors import UsageError

Value = TypeVar("Value")
GUIDE = "ane-guide, appendix A (limits by engine generation)"
APPLE = "Apple, newsroom and technical specifications"


@dataclass(frozen=True)
class Fact(Generic[Value]):
    """A value, None where it is unknown, with its source and confidence (H, M or L)."""

    value: Value | None
    source: str
    confidence: str


@dataclass(frozen=True)
class Chip:
    """A chip's Neural Engine. Sizes in elements, rates in operations and bytes a second."""

    name: str
    title: str
    generation: str  # of the engine, as ane-guide counts it
    max_width: Fact[int]  # D1: of the axes W and H
    max_channels: Fact[int]  # D1
    max_batch: Fact[int]  # D1
    kernel_width: Fact[int]  # D4: fp16, stride 1
    kernel_height: Fact[int]  # D4
    strided_kernel: Fact[int]  # D4: fp16, an axis with a stride
    strided_kernel_height: Fact[int]  # D4
    pool_window: Fact[int]  # D22
    has_deconvolution: Fact[bool]  # D6
    has_sin: Fact[bool]  # D8
    has_texture: Fact[bool]  # D21: resizing and reflecting in hardware
    slices_saturate: Fact[bool]  # D11
    streams_palettes: Fact[bool]  # D20
    streams_int8: Fact[bool]  # D20
    streams_sparse: Fact[bool]  # D20
    has_int8_activations: Fact[bool]  # D20
    program_bytes: Fact[int]  # D19
    marketed_ops: Fact[float]  # what the maker calls operations a second, mostly of int8
    engine_flops: Fact[float]  # half precision, sustained
    engine_bandwidth: Fact[float]
    bandwidth: Fact[float]  # of the chip's memory
    gpu_flops: Fact[float]
    cpu_flops: Fact[float]

    def facts(self) -> dict[str, Fact[object]]:
        """By name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Fact)}


@dataclass(frozen=True)
class _Speed:
    """Marketed operations a second, half-precision rate, streaming rate, memory's bandwidth, the GPU's half-precision rate."""

    ops: Fact[float]
    flops: Fact[float]
    stream: Fact[float]
    memory: Fact[float]
    gpu: Fact[float]


_UNKNOWN: Fact[float] = Fact(None, "not published", "L")


def _apple(value: float | None, confidence: str = "H") -> Fact[float]:
    return _UNKNOWN if value is None else Fact(value, APPLE, confidence)


def _speed(
    ops: float | None,
    memory: float | None = None,
    gpu: float | None = None,
    flops: Fact[float] = _UNKNOWN,
    stream: Fact[float] = _UNKNOWN,
) -> _Speed:
    graphics = _UNKNOWN if gpu is None else Fact(gpu, f"{APPLE} (single precision; half is taken to run no faster)", "M")
    return _Speed(_apple(ops), flops, stream, _apple(memory), graphics)


def _limits(generation: str) -> dict[str, Fact[int]]:
    """The strictest stated limits of an engine generation, "A12" to "A16"."""
    old, wide = generation in ("A12", "A13"), generation == "A16"
    where = f"{GUIDE}; coreml_ane.md D1, D4, D22"
    sure = "L" if generation == "A12" else "H"
    return {
        "max_width": Fact(65536 if wide else 16384, where, sure),
        "max_channels": Fact(65536, where, sure),
        "max_batch": Fact(
            4096 if old else 65536, f"{where}; 4096 is stated of older engines, and taken strictly for the A13's", "L" if old else sure
        ),
        "kernel_width": Fact(13 if old else 15, f"{where}; from the A14 on 15 and 16 are both stated", "L" if generation == "A12" else "M"),
        "kernel_height": Fact(29, f"{where}; from the A14 on 29 and 32 are both stated", sure),
        "strided_kernel": Fact(7, f"{where}; from the A14 on 7 and 8 are both stated", "M"),
        "strided_kernel_height": Fact(7, f"{where}; 7 as for the width, where the tables also say 15 and 16", "L"),
        "pool_window": Fact(29 if old else 31, where, "M"),
    }


def _chip(name: str, title: str, generation: str, speed: _Speed, *, like: str = "H", int8_activations: bool | None = None) -> Chip:
    """`like`: how sure the engine's generation is for this chip."""
    order = ("A12", "A13", "A14", "A15", "A16").index(generation)

    def since(first: str, source: str, confidence: str = "M") -> Fact[bool]:
        return Fact(order >= ("A12", "A13", "A14", "A15", "A16").index(first), source, confidence if like == "H" else "L")

    mac = name.startswith("m")
    return Chip(
        name,
        title,
        generation,
        **_limits(generation),
        has_deconvolution=since("A13", "coreml_ane.md D6"),
        has_sin=since("A15", "coreml_ane.md D8: native from the A15 and the M3"),
        has_texture=since("A14", "coreml_ane.md D21: a software fallback on the M1"),
        slices_saturate=Fact(
            True if generation in ("A13", "A14") else (None if generation == "A12" else False),
            "coreml_ane.md D11: measured on A13 and A14; ane-guide finds the M3 and later clean",
            "M" if generation in ("A13", "A14") else "L",
        ),
        streams_palettes=since("A13", "coreml_ane.md D20"),
        streams_int8=since("A14", "coreml_ane.md D20 says A14/A15; ane-guide: from the A14 and the M2"),
        streams_sparse=since("A15", "coreml_ane.md D20"),
        has_int8_activations=Fact(int8_activations, "coreml_ane.md D20: Apple's README names the A17 Pro and the M4", "H"),
        program_bytes=Fact(3_000_000_000 if mac else None, "coreml_ane.md D19: 3 to 4 GB on the M1", "L"),
        marketed_ops=speed.ops,
        engine_flops=speed.flops,
        engine_bandwidth=speed.stream,
        bandwidth=speed.memory,
        gpu_flops=speed.gpu,
        cpu_flops=Fact(0.1e12 if mac else None, "assumed: what half-precision arithmetic reaches on a few cores", "L"),
    )


_ROOFLINE = "ane-guide, chapter 9 (one large product, beyond the working set)"
_ROWS = (
    _chip("a12", "A12 Bionic", "A12", _speed(5e12), int8_activations=False),
    _chip("a13", "A13 Bionic", "A13", _speed(None), int8_activations=False),
    _chip("a14", "A14 Bionic", "A14", _speed(11e12), int8_activations=False),
    _chip("a15", "A15 Bionic", "A15", _speed(15.8e12), int8_activations=False),
    _chip("a16", "A16 Bionic", "A16", _speed(17e12), int8_activations=False),
    _chip("a17", "A17 Pro", "A16", _speed(35e12), int8_activations=True),
    _chip("a18", "A18", "A16", _speed(35e12), int8_activations=True),
    _chip(
        "m1",
        "M1",
        "A13",
        _speed(
            11e12,
            68.25e9,
            2.6e12,
            Fact(4.8e12, _ROOFLINE, "M"),
            Fact(51e9, "ane-guide, chapter 9 (weights streamed, by the clock)", "M"),
        ),
        int8_activations=False,
    ),
    _chip("m2", "M2", "A14", _speed(15.8e12, 100e9, 3.6e12), int8_activations=False),
    _chip("m3", "M3", "A15", _speed(18e12, 100e9), like="M", int8_activations=False),
    _chip("m4", "M4", "A16", _speed(38e12, 120e9), like="M", int8_activations=True),
    _chip(
        "m5",
        "M5",
        "A16",
        _speed(
            None,
            153e9,
            flops=Fact(9.5e12, "ane-guide, chapter 12 (one large product)", "M"),
            stream=Fact(145e9, "ane-guide, chapter 12", "M"),
        ),
        int8_activations=True,
    ),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ROWS}


def find_chip(name: str) -> Chip:
    """A chip by its name, in any case. Raises UsageError for an unknown one."""
    chip = CHIPS.get(name.lower())
    if chip is None:
        raise UsageError(f"there is no chip {name!r} in the table; choose {', '.join(CHIPS)}")
    return chip
