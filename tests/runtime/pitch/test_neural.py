"""Clips through pitch models: in one piece, in blocks, and in the windows of a package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.crepe import CrepeConfig, CrepeTiny
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.fcpe import Fcpe, FcpeConfig
from rvc_coreml.models.pitch_network import PitchNetwork
from rvc_coreml.models.stages import pitch_stage
from rvc_coreml.runtime.pitch.neural import Clip, neural_pitch
from support.rmvpe_checkpoints import RmvpeConfig, write_rmvpe
from torch import Tensor

NARROW = RmvpeConfig(base=2, levels=2, blocks=1, intermediate=1, hidden=8, end_channels=2)


class Runner:
    """A network's stage, at any length or, given one, at a window; counts what it is asked."""

    device = torch.device("cpu")

    def __init__(self, network: PitchNetwork, window: int | None = None) -> None:
        self.window: int | None = window
        self.calls = 0
        self._stage = pitch_stage(network, window or network.default_window)

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        del wanted
        self.calls += 1
        if self.window is not None:
            assert {spec.name: tuple(inputs[spec.name].shape) for spec in self._stage.inputs} == {
                spec.name: spec.shape for spec in self._stage.inputs
            }
        else:
            assert "mask" not in inputs
        return self._stage.compute(inputs)


class Failing(Runner):
    """A package that gives up after so many windows; PyTorch goes on."""

    def __init__(self, network: PitchNetwork, window: int, after: int) -> None:
        super().__init__(network, window)
        self.after = after

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        if self.calls >= self.after:
            self.window = None
        return self._stage.compute(inputs) if self.window is None else super().predict(inputs, wanted)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PitchNetwork]:
    """Narrow ones with random weights, large enough that neighbouring frames differ."""
    torch.manual_seed(3)
    rmvpe = load_pitch(write_rmvpe(tmp_path_factory.mktemp("neural") / "rmvpe.pt", NARROW)).network
    fcpe = Fcpe(FcpeConfig(hidden_dims=8, n_layers=2))
    crepe = CrepeTiny(CrepeConfig((4, 2, 2, 2, 2, 4)))
    with torch.no_grad():
        for parameter in crepe.parameters():
            parameter.mul_(3.0)
    swift = load_pitch(embedded_path(PITCH)).network  # its own weights, which are few
    return {network.kind: network.eval().requires_grad_(False) for network in (rmvpe, fcpe, crepe, swift)}


def sound(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """A gliding voice with gaps."""
    time = np.arange(int(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(150 + 60 * np.sin(2 * np.pi * 0.7 * time)) / 16000
    noise = np.random.default_rng(seed).standard_normal(len(time))
    voice = sum(np.sin(k * phase) / k for k in range(1, 9))
    return (0.1 * voice * (np.sin(2 * np.pi * 1.3 * time) > -0.5) + 0.003 * noise).astype(np.float32)


def whole(network: PitchNetwork, audio: NDArray[np.floating]) -> NDArray[np.float64]:
    return network.pitch(torch.from_numpy(np.asarray(audio, np.float32))[None]).numpy()


@pytest.mark.parametrize("kind", ["rmvpe", "fcpe", "crepe-tiny", "swiftf0"])
def test_a_clip_in_one_piece_is_what_the_network_says(networks: dict[str, PitchNetwork], kind: str) -> None:
    audio, network = sound(1.23), networks[kind]
    found = neural_pitch(audio, network, Runner(network))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, whole(network, audio), rtol=1e-4)
    assert len(set(found.round(3))) > 10


@pytest.mark.parametrize("kind", ["rmvpe", "fcpe", "crepe-tiny", "swiftf0"])
@pytest.mark.parametrize("most", [32, 100, 128])
def test_blocks_of_a_long_clip_equal_one_piece(
    networks: dict[str, PitchNetwork], kind: str, most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Salience to 1e-4 is what is promised; blocks reach over all that a frame depends on, so pitch agrees to 1e-4 too."""
    network, audio = networks[kind], sound(5.07)
    expected = whole(network, audio)
    monkeypatch.setattr(network, "whole_frames", most)
    audio.tofile(tmp_path / "clip.f32")
    runner, shares = Runner(network), []
    found = neural_pitch(np.memmap(tmp_path / "clip.f32", np.float32, "r"), network, runner, shares.append)
    assert runner.calls == -(-network.frames(len(audio)) // most)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("kind", ["fcpe", "crepe-tiny", "swiftf0"])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.21])
def test_windows_of_a_network_with_a_short_reach_are_exact(networks: dict[str, PitchNetwork], kind: str, seconds: float) -> None:
    network, audio = networks[kind], sound(seconds)
    np.testing.assert_allclose(neural_pitch(audio, network, Runner(network, 100)), whole(network, audio), rtol=1e-4)


@pytest.mark.parametrize(("seconds", "tight"), [(0.3, True), (0.99, True), (6.0, False)])
def test_windows_of_rmvpe_are_exact_where_a_clip_fits_and_with_its_whole_reach(
    networks: dict[str, PitchNetwork], seconds: float, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, audio = networks["rmvpe"], sound(seconds)
    monkeypatch.setattr(network, "context", network.context if tight else network.overlap)
    found = neural_pitch(audio, network, Runner(network, 128))
    np.testing.assert_allclose(found, whole(network, audio), rtol=1e-4)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_package_that_fails_on_the_way_is_replaced(networks: dict[str, PitchNetwork], after: int) -> None:
    network, audio = networks["rmvpe"], sound(4.0)
    np.testing.assert_allclose(neural_pitch(audio, network, Failing(network, 128, after)), whole(network, audio), rtol=1e-4)


@pytest.mark.parametrize("kind", ["rmvpe", "fcpe", "crepe-tiny", "swiftf0"])
@pytest.mark.parametrize("samples", [0, 1, 160, 500, 1111])
def test_the_shortest_clips_have_their_frames(networks: dict[str, PitchNetwork], kind: str, samples: int) -> None:
    for window in (None, 128):
        found = neural_pitch(sound(0.1)[:samples], networks[kind], Runner(networks[kind], window))
        assert found.shape == (samples // 160 + 1,)
        assert np.isfinite(found).all()


def test_decoding_in_blocks_equals_decoding_at_once(networks: dict[str, PitchNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    network, audio = networks["crepe-tiny"], sound(6.0)
    expected = whole(network, audio)
    monkeypatch.setattr("rvc_coreml.runtime.pitch.neural.WHOLE_FRAMES", 100)
    monkeypatch.setattr(type(network), "decode_overlap", 60)
    calls: list[int] = []
    decode = network.decode
    monkeypatch.setattr(network, "decode", lambda salience: (calls.append(salience.shape[1]), decode(salience))[1])
    found = neural_pitch(audio, network, Runner(network))
    assert len(calls) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_blocks_of_the_full_rmvpe_equal_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Salience within 1e-4: the convolutions reach 1583 frames, and the recurrent layer goes through all blocks."""
    network = load_pitch(write_rmvpe(tmp_path / "rmvpe.pt", RmvpeConfig())).network
    audio, found = sound(90.0), []
    for most in (network.whole_frames, 3000):
        monkeypatch.setattr(network, "whole_frames", most)
        clip = Clip(audio, network, Runner(network))
        with torch.inference_mode():
            found.append(torch.cat(list(clip.salience(None)), dim=1))
    assert len(clip.blocks) == 4
    assert (found[1] - found[0]).abs().max() < 1e-4
