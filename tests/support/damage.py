"""Damage planted in saved packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.reader import read_function


def largest_weight(package: Path) -> np.memmap:
    """The package's largest weight array, writable in place, flat."""
    function = read_function(open_package(package))
    stored = [constant.value for constant in function.constants.values() if isinstance(constant.value, np.memmap)]
    target = max(stored, key=lambda array: array.size)
    file = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data, wanted = file.read_bytes(), target.tobytes()
    assert data.count(wanted) == 1
    return np.memmap(file, dtype=target.dtype, mode="r+", offset=data.index(wanted), shape=(target.size,))
