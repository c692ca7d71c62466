"""Golden outputs of a library, damaged for a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from rvc_coreml.golden_outputs.golden import Golden, GoldenSet
from rvc_coreml.runtime.goldens import golden_folder
from rvc_coreml.runtime.library import Component

Change = Callable[[np.ndarray], np.ndarray]


def change_golden(component: Component, name: str, case: str, change: Change) -> None:
    """Alter every output of one case and record it as if it were right: hashes agree."""
    folder = golden_folder(component)
    found = GoldenSet.load(folder)
    golden = found.sets[name][case]
    found.sets[name][case] = altered(golden, change)
    shutil.rmtree(folder)
    found.save(folder)


def altered(golden: Golden, change: Change) -> Golden:
    return replace(golden, outputs={name: change(value).astype(np.float32) for name, value in golden.outputs.items()})
