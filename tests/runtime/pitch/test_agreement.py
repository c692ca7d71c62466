"""Methods with published weights, classical methods and a foreign contour on real speech: one pitch, told many ways."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.pitch_network import PitchNetwork
from rvc_coreml.models.stages import pitch_stage
from rvc_coreml.runtime.pitch import ESTIMATORS, estimate_pitch
from support.pitch_packages import CLIPS, crepe_file, fcpe_file

FEATURES = Path(__file__).parents[4] / "shared" / "real_features"
WEIGHTS = {
    "fcpe": fcpe_file,
    "crepe": lambda: crepe_file("full"),
    "crepe-tiny": lambda: crepe_file("tiny"),
    "swiftf0": lambda: embedded_path(PITCH),
}
CLASSICAL = ["harvest", "dio", *(["pm"] if importlib.util.find_spec("parselmouth") else [])]
SEMITONE = 1.0
VOICED_SHARE = 0.5  # of the frames that either of two methods finds voiced, at least so many are found by both


@cache
def network(method: str) -> PitchNetwork:
    return load_pitch(WEIGHTS[method]()).network


class Runner:
    """A stage as PyTorch runs it: clips of any length."""

    window = None
    device = torch.device("cpu")

    def __init__(self, method: str) -> None:
        self._stage = pitch_stage(network(method))

    def predict(self, inputs: Mapping[str, torch.Tensor], wanted: str | None = None) -> dict[str, torch.Tensor]:
        return self._stage.compute(inputs, wanted)


class Models:
    """A library with every model whose weights are published where tests can get them."""

    def available(self) -> list[str]:
        return list(WEIGHTS)

    def stage(self, kind: str) -> Runner:
        return Runner(kind)

    def network(self, kind: str) -> PitchNetwork:
        return network(kind)

    def say(self, line: str) -> None:
        raise AssertionError(line)


def contour(method: str, audio: np.ndarray) -> np.ndarray:
    return estimate_pitch(audio, method, models=Models())


def assert_agreement(contours: dict[str, np.ndarray]) -> None:
    for one, other in itertools.combinations(contours, 2):
        a, b = contours[one], contours[other]
        both, either = (a > 0) & (b > 0), (a > 0) | (b > 0)
        assert both.sum() > 20, (one, other)
        assert both.sum() >= VOICED_SHARE * either.sum(), (one, other)
        distance = np.median(np.abs(12 * np.log2(a[both] / b[both])))
        assert distance <= SEMITONE, (one, other, distance)


@pytest.mark.parametrize("method", ["fcpe", "crepe-tiny", "swiftf0"])
def test_a_model_method_is_the_librarys_network(method: str, speech: np.ndarray) -> None:
    audio, shares = speech[24000:56000], []
    found = estimate_pitch(audio, method, models=Models(), progress=shares.append)
    wanted = network(method).pitch(torch.from_numpy(audio)[None])
    assert found.shape == (201,)
    np.testing.assert_array_equal(found > 0, wanted > 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_every_method_is_compared() -> None:
    assert set(WEIGHTS) | {*CLASSICAL, "pm", "rmvpe"} == set(ESTIMATORS)  # RMVPE's weights are not on any index of packages


def test_all_methods_agree_on_speech_within_a_semitone(speech: np.ndarray) -> None:
    audio = speech[24000 : 24000 + 48000]
    contours = {method: contour(method, audio) for method in ["fcpe", "crepe-tiny", "swiftf0", *CLASSICAL]}
    assert_agreement(contours)
    part = slice(172, 207)  # the full model takes a while on a CPU
    full = contour("crepe", audio[part.start * 160 - 480 : part.stop * 160 + 480])[3:38]
    assert_agreement({"crepe": full} | {method: found[part] for method, found in contours.items()})


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_all_methods_agree_on_whole_clips_within_a_semitone(clip: Path) -> None:
    audio = soundfile.read(clip, dtype="float32")[0]
    assert_agreement({method: contour(method, audio) for method in [*WEIGHTS, *CLASSICAL]})


@pytest.mark.parametrize("method", ["fcpe", "crepe-tiny", "swiftf0", *CLASSICAL])
def test_methods_agree_with_the_contour_that_another_project_recorded(method: str) -> None:
    if not FEATURES.is_dir():
        pytest.skip("the recorded features (../shared/real_features) are not part of the project")
    start, frames = 500, 250
    audio = soundfile.read(FEATURES / "reference_16k.wav", dtype="float32")[0][start * 160 : (start + frames) * 160]
    recorded = np.load(FEATURES / "pitch_fine.npy")[start : start + frames]
    assert_agreement({method: contour(method, audio)[:frames], "recorded": recorded})


def test_a_contour_an_octave_off_or_mostly_unvoiced_would_be_noticed(speech: np.ndarray) -> None:
    found = contour("dio", speech[24000:56000])
    with pytest.raises(AssertionError, match=r"12\.0"):
        assert_agreement({"right": found, "wrong": found * 2})
    halved = np.where(np.arange(len(found)) % 3, 0, found)
    with pytest.raises(AssertionError):
        assert_agreement({"right": found, "wrong": halved})
