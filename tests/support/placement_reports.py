"""A small package of which the linter has something to say in every section, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.converters.placement.report import Report, make_report
from rvc_coreml.converters.placement.subjects import Subject, Subjects

from .programs import build_program, write_program

ANE_OPERATIONS = ("narrow_0", "narrow_1", "narrow_2")
MODULES = {"wide": "dec.ups.0", "dilated": "dec.resblocks.<b>0</b>", "summed": "dec.m_source"}


def troubled(x: Any) -> Any:
    """Three convolutions that fit, one of 17 taps, one of dilation 5, a table look-up by sigmoid, a running sum, a slice inside."""
    weight = np.ones((4, 4, 3), np.float16)
    for name in ANE_OPERATIONS:
        x = mb.conv(x=x, weight=weight, pad_type="same", name=name)
    x = mb.conv(x=x, weight=np.ones((4, 4, 17), np.float16), pad_type="same", name="wide")
    x = mb.conv(x=x, weight=weight, dilations=[5], pad_type="same", name="dilated")
    x = mb.sigmoid(x=x, name="gate")
    x = mb.cumsum(x=x, axis=2, name="summed")
    return mb.slice_by_index(x=x, begin=[0, 0, 5], end=[1, 4, 1000], name="cut")


def troubled_package(folder: Path) -> Path:
    return write_program(build_program(troubled, [np.zeros((1, 4, 1000), np.float16)]), folder / "troubled.mlpackage")


def troubled_report(package: Path, copies: int = 1) -> Report:
    """On the M1; with copies, as if a library had several such stages."""
    facts = {"window": 100}
    found = tuple(
        Subject(f"voice '<i>{index}</i>', decoder", package, "main", "voice", "decoder", MODULES, facts) for index in range(copies)
    )
    return make_report(Subjects(package, "package", found), "m1")
