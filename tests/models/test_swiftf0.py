"""SwiftF0 against onnxruntime on the file that it is read from, on real speech and on sound whose pitch is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import CheckpointError, IncompleteCheckpoint, UnreadableCheckpoint, WrongCheckpointKind
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.swiftf0 import CLASSES, F0_MAX, F0_MIN, FRAME, SILENCE_PEAK, SwiftF0, at_ten_ms, class_hertz
from safetensors.torch import save_file
from support.pitch_packages import CLIPS, audio_of

RATE = 16000
RECORDED = Path(__file__).parents[3] / "shared" / "real_features" / "reference_16k.wav"
TOLERANCE = 1e-4
BIN = (2093.75 / 46.875) ** (1 / 94)  # from a class to the next, as swift_f0/core.py has it


@cache
def network() -> SwiftF0:
    loaded = load_pitch(embedded_path(PITCH)).network
    assert isinstance(loaded, SwiftF0)
    return loaded


@cache
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(embedded_path(PITCH)), providers=["CPUExecutionProvider"])


def original(audio: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pitch in Hz and confidence of each frame as onnxruntime has them, within the project's range."""
    edges = {name: np.array(value, np.float32) for name, value in (("fmin", F0_MIN), ("fmax", F0_MAX))}
    pitch, confidence = session().run(["pitch", "confidence"], {"audio": audio.numpy(), **edges})
    return np.asarray(pitch)[0], np.asarray(confidence)[0]


def assert_equals_original(audio: torch.Tensor) -> None:
    pitch, confidence = original(audio)
    salience = network()(network().features(audio))
    found = network().decode(salience, threshold=0.0).numpy()
    inside = confidence > 0  # the file's confidence is 0 where its strongest class is out of range
    np.testing.assert_array_equal(found > 0, inside)
    assert np.abs(salience[0, :, -1].numpy() - confidence)[inside].max(initial=0) < TOLERANCE
    assert np.abs(found / pitch - 1)[inside].max(initial=0) < TOLERANCE
    near = np.abs(confidence - 0.5) > TOLERANCE
    np.testing.assert_array_equal((network().decode(salience).numpy() > 0)[near], (confidence >= 0.5)[near])


@pytest.mark.parametrize("clip", [*CLIPS, RECORDED], ids=lambda path: path.stem)
@torch.inference_mode()
def test_pitch_and_confidence_agree_with_onnxruntime_on_speech(clip: Path) -> None:
    if not clip.is_file():
        pytest.skip("the recorded features (../shared/real_features) are not part of the project")
    audio = audio_of(clip)
    assert 0.3 < (original(audio)[1] >= 0.5).mean() < 0.99, "there is no speech in this clip"
    assert_equals_original(audio)


@pytest.mark.parametrize("samples", [1, 255, 256, 257, 511, 512, 1000, 2049, 4799])
@torch.inference_mode()
def test_short_audio_agrees_with_onnxruntime(samples: int) -> None:
    audio = audio_of(CLIPS[0])[:, 20000 : 20000 + samples]
    assert network().features(audio).shape == (1, 3, 128, max(1, samples // FRAME))
    assert_equals_original(audio)


@given(frames=st.integers(1, 60), tail=st.integers(0, 20), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_masked_frames_change_nothing(frames: int, tail: int, seed: int) -> None:
    features = torch.randn(1, 3, 128, frames + tail, generator=torch.Generator().manual_seed(seed)) * 4 - 6
    mask = (torch.arange(frames + tail) < frames).float().reshape(1, 1, -1)
    alone = network().body(features[..., :frames])
    assert (network().body(features, mask)[:, :frames] - alone).abs().max() < TOLERANCE


@torch.inference_mode()
def test_a_frame_sees_as_many_frames_as_are_stated_and_no_more() -> None:
    features = network().features(audio_of(CLIPS[0]))[..., 100:150]
    before = network().body(features)
    reach = network().context
    changed = features.clone()
    changed[..., 25] += 3.0
    moved = (network().body(changed) - before).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(25 - reach, 26 + reach))


def gliding(start: float, octaves_a_second: float, seconds: float = 3.0) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Harmonics (N,) below half the rate and their pitch in Hz at a time in seconds."""

    def pitch(time: np.ndarray) -> np.ndarray:
        return start * 2.0 ** (octaves_a_second * time)

    hertz = pitch(np.arange(int(seconds * RATE)) / RATE)
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return (0.1 * sum(np.sin(k * phase) / k * (k * hertz.max() < RATE / 2) for k in range(1, 15))).astype(np.float32), pitch


def test_frames_lie_where_the_pitch_is() -> None:
    """A late contour is low on the way up and high on the way down; what is off in both alike is no matter of time."""
    speed = 2 / 3  # octaves a second: 8 cents in 10 ms
    off = {}
    for way, start in ((1, 100.0), (-1, 400.0)):
        audio, pitch = gliding(start, way * speed)
        found = network().pitch(torch.from_numpy(audio)[None]).numpy()
        middle = np.arange(30, len(found) - 30)
        assert (found[middle] > 0).all()
        off[way] = 1200 * np.log2(found[middle] / pitch(middle * 0.01))
        assert np.abs(off[way]).max() < 12
    lag = (np.median(off[-1]) - np.median(off[1])) / (2 * 1200 * speed)
    assert abs(lag) < 0.001
    assert abs(np.median(off[1]) + np.median(off[-1])) / 2 < 4


def test_ten_ms_frames_are_interpolated_where_both_neighbours_are_voiced() -> None:
    found = at_ten_ms(np.array([100.0, 110.0, 0.0, 200.0, 90.0]), 9)  # at 0, 16, 32, 48, 64 ms
    np.testing.assert_allclose(found[:2], [100, 100 * 1.1**0.625])
    np.testing.assert_array_equal(found[2:], [110, 0, 0, 200, 90, 90, 90])  # 20, 30, 40 ms are nearest to 16, 32 and 48 or 32
    np.testing.assert_array_equal(at_ten_ms(np.array([0.0]), 3), 0)


@torch.inference_mode()
def test_frames_in_which_nothing_is_heard_are_unvoiced() -> None:
    audio, _pitch = gliding(150.0, 0.0, 2.0)
    audio[RATE:] *= 0.5 * SILENCE_PEAK / np.abs(audio).max()
    found = network().pitch(torch.from_numpy(audio)[None]).numpy()
    assert (found[10:95] > 0).all()
    assert not found[104:].any()
    assert not network().pitch(torch.zeros(1, RATE)).any()


def test_pitch_outside_the_searched_range_is_unvoiced() -> None:
    """Every class as the strongest in turn, beside neighbours as strong as each other: its own pitch, or none."""
    hertz = class_hertz().numpy()
    salience = torch.zeros(1, CLASSES, CLASSES + 1)
    for shift, weight in ((-1, 0.2), (0, 0.6), (1, 0.2)):
        salience[0, :, :CLASSES] += weight * torch.diag(torch.ones(CLASSES - abs(shift)), shift)
    salience[..., -1] = 0.5
    found = network().decode(salience).numpy()
    np.testing.assert_array_equal(found > 0, (hertz >= F0_MIN) & (hertz <= F0_MAX))
    first, *inner, last = np.flatnonzero(found)
    np.testing.assert_allclose(found[inner], hertz[inner], rtol=1e-6)
    np.testing.assert_allclose(found[[first, last]], [hertz[first] * BIN**0.25, hertz[last] * BIN**-0.25], rtol=1e-6)
    salience[..., -1] = 0.4999
    assert not network().decode(salience).any()


def test_a_librarys_safetensors_is_the_same_network(tmp_path: Path) -> None:
    checkpoint = load_pitch(embedded_path(PITCH), "swiftf0")
    save_file(checkpoint.source_state, tmp_path / "w.safetensors", checkpoint.file_metadata())
    again = load_pitch(tmp_path / "w.safetensors", "swiftf0").network
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in network().state_dict().items()
    }


def _model() -> onnx.ModelProto:
    return onnx.load(str(embedded_path(PITCH)))


def _other_hop(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "hop_size").value = "160"


def _other_dilation(model: onnx.ModelProto) -> None:
    conv = [node for node in model.graph.node if node.op_type == "Conv"][4]
    next(attribute for attribute in conv.attribute if attribute.name == "dilations").ints[0] = 16


def _fewer_convolutions(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "ConvInteger"


def _short_weight(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [16, 5, 3])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((16, 5, 1), np.float32), weight.name))


def _nan(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [16, 5, 3])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((16, 5, 3), np.nan, np.float32), weight.name))


def _other_window(model: onnx.ModelProto) -> None:
    window = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [512])
    window.CopyFrom(onnx.numpy_helper.from_array(np.hamming(512).astype(np.float32), window.name))


def _bands_outside(model: onnx.ModelProto) -> None:
    places = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT32)
    values = np.array(onnx.numpy_helper.to_array(places))
    values[-1] = 1 << 30
    places.CopyFrom(onnx.numpy_helper.from_array(values, places.name))


def _other_inputs(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_other_hop, WrongCheckpointKind, "frames of 160 samples"),
        (_other_dilation, WrongCheckpointKind, "in the place of blocks.1.conv2"),
        (_fewer_convolutions, WrongCheckpointKind, "17 convolutions"),
        (_short_weight, IncompleteCheckpoint, r"voicing.frames.weight is \(16, 5, 1\)"),
        (_nan, IncompleteCheckpoint, "NaN"),
        (_other_window, WrongCheckpointKind, "window of 512 samples"),
        (_bands_outside, IncompleteCheckpoint, "1024 samples are damaged"),
        (_other_inputs, WrongCheckpointKind, "no pitch model known here"),
    ],
)
def test_another_or_damaged_file_is_refused(
    change: Callable[[onnx.ModelProto], None], error: type[CheckpointError], said: str, tmp_path: Path
) -> None:
    model = _model()
    change(model)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(error, match=said) as raised:
        load_pitch(tmp_path / "model.onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    content = embedded_path(PITCH).read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UnreadableCheckpoint, match=r"model\.onnx is damaged|truncated"):
        load_pitch(tmp_path / "model.onnx")
