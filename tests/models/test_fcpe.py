"""FCPE against torchfcpe's own front end, network and decoder, with the published weights, on real speech."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import CheckpointError, IncompleteCheckpoint, WrongCheckpointKind
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.fcpe import Fcpe, FcpeConfig
from safetensors.torch import save_file
from support.pitch_packages import CLIPS, audio_of, fcpe_file, original_fcpe

NARROW = FcpeConfig(hidden_dims=16, n_layers=2)


@cache
def network() -> Fcpe:
    loaded = load_pitch(fcpe_file()).network
    assert isinstance(loaded, Fcpe)
    return loaded


def narrow(seed: int = 0) -> Fcpe:
    torch.manual_seed(seed)
    return Fcpe(NARROW).eval()


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@torch.inference_mode()
def test_front_end_salience_and_pitch_agree_with_torchfcpe(clip: Path) -> None:
    audio, original = audio_of(clip), original_fcpe()
    mel = original.wav2mel(audio[..., None], 16000)
    features = network().features(audio)
    assert (features.transpose(1, 2).exp() - mel.exp()).abs().max() < 1e-5
    assert (features.transpose(1, 2) - mel).abs().max() < 5e-3  # logarithms of what is nearly nothing
    wanted = original.model(mel)
    assert wanted.max() > 0.5, "there is no pitch in this clip"
    assert (network()(mel.transpose(1, 2)) - wanted).abs().max() < 1e-4
    assert (network()(features) - wanted).abs().max() < 1e-4
    pitch = original(audio[..., None], 16000)[0, :, 0]
    assert 0.3 < (pitch > 0).float().mean() < 0.99
    assert (network().pitch(audio) - pitch).abs().max() < 0.01


@pytest.mark.parametrize("samples", [100, 160, 161, 500, 1600, 4799])
@torch.inference_mode()
def test_short_audio_has_as_many_frames_as_torchfcpe_gives(samples: int) -> None:
    audio = audio_of(CLIPS[0])[:, 20000 : 20000 + samples]
    features = network().features(audio)
    assert features.shape == (1, 128, samples // 160 + 1)
    if samples > 432:  # below, torchfcpe pads with zeros or fails
        mel = original_fcpe().wav2mel(audio[..., None], 16000)
        assert (features.transpose(1, 2).exp() - mel.exp()).abs().max() < 1e-5


@given(salience=st.integers(0, 2**32 - 1), threshold=st.sampled_from([1e-4, 0.006, 0.4, 0.99]))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_decoding_agrees_with_torchfcpe_for_any_salience(salience: int, threshold: float) -> None:
    values = torch.rand(1, 12, 360, generator=torch.Generator().manual_seed(salience)) ** 6
    values[0, 0, 0], values[0, 1, 359], values[0, 2, 2], values[0, 3, 356] = 1, 1, 1, 1  # peaks at the edges
    values[0, 4] *= threshold
    model = original_fcpe().model
    wanted = model.cent_to_f0(model.latent2cents_local_decoder(values, threshold=threshold))[0, :, 0]
    found = network().decode(values, threshold)
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@given(frames=st.integers(1, 90), tail=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_masked_frames_change_nothing(frames: int, tail: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 128, frames, generator=generator) - 5
    longer = torch.cat([features, torch.randn(1, 128, tail, generator=generator) * 9], dim=2)
    mask = (torch.arange(frames + tail) < frames).float()[None, None]
    statistics = narrow().clip_statistics(features)
    found = narrow().body(longer, mask, *statistics)[:, :frames]
    assert (found - narrow()(features)).abs().max() < 1e-6


@torch.inference_mode()
def test_a_window_with_its_context_is_exact() -> None:
    """With the clip's statistics; the context is what the layers see and not a frame less."""
    model = narrow().double()
    assert model.context == 2 + 2 * 15
    assert network().context == 2 + 6 * 15
    features = torch.randn(1, 128, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    statistics = tuple(values.double() for values in model.clip_statistics(features))
    whole = model.body(features, None, *statistics)
    start, stop = 50, 150
    part = model.body(features[:, :, start:stop], None, *statistics)
    wrong = (part - whole[:, start:stop]).abs().amax(dim=(0, 2)) > 1e-13
    assert not wrong[model.context : -model.context].any()
    assert wrong[model.context - 1]
    assert wrong[-model.context]


@torch.inference_mode()
def test_statistics_of_a_long_clip_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = narrow(), torch.randn(1, 128, 1000, generator=torch.Generator().manual_seed(2)) - 8
    whole = model.clip_statistics(features)
    norm, first = model.input_stack["1"], model.input_stack["0"](features)
    assert (first * whole[0] + whole[1] - norm(first)).abs().max() < 1e-5
    monkeypatch.setattr("rvc_coreml.models.fcpe.STATISTICS_PIECE", 37)
    for part, wanted in zip(model.clip_statistics(features), whole, strict=True):
        assert (part - wanted).abs().max() < 1e-5


def content() -> dict[str, Any]:
    """The published file's content with the smallest network that has its entries."""
    stored = torch.load(fcpe_file(), map_location="cpu", weights_only=True)
    return {"config_dict": stored["config_dict"], "model": dict(stored["model"])}


def changed(part: str, field: str, value: object) -> dict[str, Any]:
    file = content()
    file["config_dict"] = copy.deepcopy(file["config_dict"])
    file["config_dict"][part][field] = value
    return file


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("model", "conv_only", False, "model.conv_only is False, where True is expected"),
        ("model", "type", "Other", "model.type is 'Other'"),
        ("model", "out_dims", 180, "model.out_dims is 180"),
        ("model", "use_harmonic_emb", True, "model.use_harmonic_emb is True"),
        ("model", "hidden_dims", "512", "hidden_dims '512'"),
        ("model", "hidden_dims", 510, "describes no network"),
        ("model", "n_layers", True, "n_layers True"),
        ("model", "n_layers", 10**9, "n_layers 1000000000"),
        ("model", "f0_min", float("nan"), "describes no network"),
        ("model", "f0_min", 5000.0, "is empty"),
        ("mel", "hop_size", 512, "mel.hop_size is 512, where 160 is expected"),
        ("mel", "sr", None, "mel.sr is None"),
        ("mel", "type", "stft", "mel.type is 'stft'"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path: Path, part: str, field: str, value: object, said: str) -> None:
    path = tmp_path / "fcpe.pt"
    file = changed(part, field, value)
    file["model"] = {name: tensor for name, tensor in file["model"].items() if tensor.numel() < 2000} | {
        "input_stack.0.weight": torch.zeros(1)
    }
    torch.save(file, path)
    with pytest.raises(WrongCheckpointKind, match=said):
        load_pitch(path)


def test_files_without_configuration_or_with_attention_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fcpe.pt"
    tensors = {"input_stack.0.weight": torch.zeros(1), "net.encoder_layers.0.norm.weight": torch.zeros(1)}
    torch.save({"model": tensors}, path)
    with pytest.raises(IncompleteCheckpoint, match="lacks config_dict"):
        load_pitch(path)
    tensors["net.encoder_layers.0.attn.to_q.weight"] = torch.zeros(1)
    torch.save({"model": tensors, "config_dict": content()["config_dict"]}, path)
    with pytest.raises(WrongCheckpointKind, match="attention layers"):
        load_pitch(path)
    for config in (None, [], {"model": {}}, {"model": 1, "mel": {}}):
        del tensors["net.encoder_layers.0.attn.to_q.weight"]
        torch.save({"model": tensors, "config_dict": config}, path)
        with pytest.raises(CheckpointError, match="FCPE that is not supported"):
            load_pitch(path)
        tensors["net.encoder_layers.0.attn.to_q.weight"] = torch.zeros(1)


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    file = content()
    del file["model"]["net.encoder_layers.3.conformer.net.6.bias"]
    torch.save(file, tmp_path / "fcpe.pt")
    with pytest.raises(IncompleteCheckpoint, match=r"1 entry missing: net\.encoder_layers\.3\.conformer\.net\.6\.bias"):
        load_pitch(tmp_path / "fcpe.pt")


def test_the_librarys_safetensors_builds_the_same_network(tmp_path: Path) -> None:
    loaded = load_pitch(fcpe_file())
    assert loaded.kind == "fcpe"
    save_file(
        {name: tensor.contiguous() for name, tensor in loaded.source_state.items()}, tmp_path / "m.safetensors", loaded.file_metadata()
    )
    again = load_pitch(tmp_path / "m.safetensors", "fcpe").network
    assert isinstance(again, Fcpe)
    assert again.config == loaded.network.config
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
