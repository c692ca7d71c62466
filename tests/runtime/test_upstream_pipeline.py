"""The whole pipeline against RVC-WebUI's own output (golden_outputs/upstream/pipeline_v2_40k), on full-size seeded networks."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rvc_coreml.golden_outputs
from rvc_coreml.errors import UsageError
from rvc_coreml.golden_outputs.seeded_weights import noise_draw
from rvc_coreml.models import load_voice
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.retrieval import read_index
from rvc_coreml.runtime.upstream import seeded
from rvc_coreml.runtime.validation import validate_library
from seeded_checkpoints import write_hubert, write_voice
from torch_library import write_torch_library

UPSTREAM = Path(rvc_coreml.golden_outputs.__file__).parent / "upstream"
STEPS = 2  # of int16


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    with np.load(UPSTREAM / "pipeline_v2_40k.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> Iterator[Library]:
    folder, seed = tmp_path_factory.mktemp("upstream"), int(case["seed"])
    hubert = write_hubert(folder / "hubert_base.pt", seed, half=False)
    voice = write_voice(folder / "voice.pth", str(case["version"]), 40, True, seed, half=False)
    assert load_voice(voice).config.to_list() == ast.literal_eval(str(case["config"]))
    made = write_torch_library(folder / "library", hubert, {"voice": voice}, index=read_index(UPSTREAM / "pipeline_v2_40k.index"))
    for path in (hubert, voice):
        path.unlink()  # hundreds of megabytes
    yield made
    shutil.rmtree(folder)


def options(case: dict[str, Any]) -> dict[str, float]:
    return {name: float(case[name]) for name in ("index_rate", "protect", "rms_mix_rate")}


def convert(converter: VoiceConverter, case: dict[str, Any], **changes: Any) -> np.ndarray:
    seed = int(case["seed"])
    given = {**options(case), **changes}
    samples, rate = converter.convert(
        case["audio16k"], 16000, f0=case["f0_hz"], noise=lambda index, shape: noise_draw(index, shape, seed), **given
    )
    assert rate == 40000
    return (samples * 32768).astype(np.int16).astype(int)


def distance(ours: np.ndarray, case: dict[str, Any]) -> int:
    assert ours.shape == case["output"].shape
    return int(np.abs(ours - case["output"]).max())


def test_upstreams_output_is_reproduced_and_every_option_counts(library: Library, case: dict[str, Any]) -> None:
    converter = VoiceConverter(library, "voice", "torch", device="cpu")
    assert distance(convert(converter, case), case) <= STEPS
    changes = ({"index_rate": 0.7, "protect": 0.5}, {"protect": 0.5}, {"retrieval": "exact"})
    for change in changes:
        assert distance(convert(converter, case, **change), case) > 10 * STEPS, change  # what is close is close for a reason
    with pytest.raises(UsageError, match=r"f0 has to be finite Hz of shape \(360,\)"):
        converter.convert(case["audio16k"], 16000, f0=case["f0_hz"][:-1])


def test_doing_all_the_work_that_upstream_does_changes_nothing(library: Library, case: dict[str, Any]) -> None:
    converter = VoiceConverter(library, "voice", "torch", device="cpu", config=OptimizationConfig.upstream())
    assert distance(convert(converter, case), case) <= STEPS


def test_validate_against_upstream_holds_every_stage_and_the_whole_conversion_against_it(library: Library) -> None:
    report = validate_library(library, choose_backend("torch", device="cpu"), against="upstream")
    assert report.failed == []
    assert {check.stage for check in report.checks} == {"content_encoder", "text_encoder", "flow", "decoder", "pipeline"}
    for check in report.checks:
        assert check.comparison is not None
        assert check.comparison.snr_db >= (70 if check.stage == "pipeline" else 100), check  # the pipeline's is 16-bit


def test_other_weights_are_not_taken_for_upstreams(library: Library) -> None:
    weights = library.voice("voice").weights
    assert seeded(weights, 1)
    assert not seeded(weights, 2)
