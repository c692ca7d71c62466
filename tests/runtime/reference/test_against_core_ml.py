"""The executor against the real Core ML, on a Mac: the small packages that fuzzing starts from, family by family."""

from __future__ import annotations

import sys
from pathlib import Path

import fuzz_seeds
import numpy as np
import pytest
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime import load_package
from support.programs import normal

pytestmark = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts only on macOS")
DRAWN = {"drawn"}  # Core ML's random numbers are its own


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in fuzz_seeds.write_seeds(tmp_path_factory.mktemp("seeds"))}


@pytest.mark.parametrize("name", sorted(set(fuzz_seeds.BUILDERS) - DRAWN))
def test_the_executor_gives_what_core_ml_gives_on_the_cpu(seeds: dict[str, Path], name: str) -> None:
    ours = load_package(seeds[name], backend="reference")
    theirs = load_package(seeds[name], backend="coreml", compute_units="CPU_ONLY")
    inputs = {item: normal(*feature.default) for item, feature in ours.inputs.items()}
    wanted, got = theirs.predict(inputs), ours.predict(inputs)
    assert set(got) == set(wanted)
    for output, value in wanted.items():
        assert snr_db(np.ravel(value), np.ravel(got[output])) >= 40
