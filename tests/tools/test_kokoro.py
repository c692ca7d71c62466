"""Kokoro's speakers and registers with a network of a few lines, and its weights' way from the int8 graph to PyTorch's names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from train_embedded import generate
from train_embedded.generate import SHARED_SHARE, TARGET_SENTENCES
from train_embedded.kokoro_weights import expanded, module_name, torch_arrays
from train_embedded.shards import HELD_OUT_SPEAKERS
from train_embedded.synthesisers.kokoro import SENTENCES, UNVOICED, Kokoro, Register
from train_embedded.synthesisers.speech import Speech

FRAMES = 80  # of a contour, a second
STYLES = {name: np.full((3, 256), number, np.float32) for number, name in enumerate(["af_heart", "bm_george", "am_adam", "bf_emma"])}


class Hum(nn.Module):
    """Ten units for every symbol; keeps what it was given, and speaks the contour."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.given: list[dict[str, Any]] = []

    def forward(self, tokens: Tensor, timbre: Tensor, manner: Tensor, speed: float, pitch: Any) -> tuple[Tensor, Tensor]:
        units = torch.full((tokens.shape[1],), 10)
        contour = torch.full((1, 20 * tokens.shape[1]), 200.0)
        contour[:, :20] = 0.0
        self.given.append({"timbre": timbre, "manner": manner, "contour": pitch(contour)[0], "tokens": tokens})
        return torch.zeros(int(units.sum()) * 600), units


def kokoro(**options: Any) -> tuple[Kokoro, Hum]:
    network = Hum()
    return Kokoro(network, STYLES, {"a": 7, "b": 8}, **options), network  # type: ignore[arg-type]


def test_a_speaker_says_some_sentences_before_the_next() -> None:
    voice, network = kokoro()
    rng = np.random.default_rng(0)
    names = [voice.speak("a b", rng).speaker for _ in range(4 * SENTENCES)]
    for start in range(0, len(names), SENTENCES):
        assert len(set(names[start : start + SENTENCES])) == 1
    assert len(set(names)) > 2
    assert network.given[0]["tokens"].tolist() == [[0, 7, 8, 0]]


def test_speakers_are_plain_moved_and_mixed_and_seldom_held_out() -> None:
    voice, _network = kokoro()
    rng = np.random.default_rng(1)
    drawn = [voice.draw(rng) for _ in range(600)]
    mixed = [one for one in drawn if one.name.startswith("mix:")]
    held_out = [one for one in drawn if f"kokoro:{one.name}" in HELD_OUT_SPEAKERS]
    assert 0.2 < len(mixed) / 600 < 0.5
    assert 0 < len(held_out) / 600 < 0.06
    assert all(one.register is None for one in held_out)  # they are measured with, so they stay who they are
    assert all(one.name == "bf_emma" for one in drawn if "bf_emma" in one.name)
    assert 0.2 < sum(one.register is None for one in drawn) / 600 < 0.45
    assert {one.timbre.shape for one in drawn} == {(3, 128)}
    alone, _network = kokoro(held_out_share=1.0)
    assert {alone.draw(rng).name for _ in range(20)} == {"bf_emma"}


def contour() -> NDArray[np.float32]:
    """Two seconds with a melody of an octave, unvoiced in the middle."""
    hertz = (150 * 2 ** np.linspace(-0.5, 0.5, 2 * FRAMES)).astype(np.float32)
    hertz[70:90] = 3.0
    return hertz


def test_a_register_moves_the_median_and_the_range() -> None:
    hertz, rng = contour(), np.random.default_rng(2)
    voiced = hertz > UNVOICED
    low, high = (Register(median, 1.0, 0.0, False).moved(hertz, rng) for median in (0.0, 1.0))
    assert np.median(low[voiced]) == pytest.approx(0.55 * 150, rel=0.02)
    assert np.median(high[voiced]) == pytest.approx(1.7 * 150, rel=0.02)
    np.testing.assert_array_equal(low[~voiced], hertz[~voiced])
    flat = Register(0.5, 0.5, 0.0, False).moved(hertz, rng)[voiced]
    assert np.log2(flat.max() / flat.min()) == pytest.approx(0.5 * np.log2(hertz[voiced].max() / hertz[voiced].min()), rel=0.02)
    silent = np.zeros(50, np.float32)
    np.testing.assert_array_equal(Register(0.5, 1.0, 0.04, True).moved(silent, rng), silent)


def test_voices_never_fall_below_what_people_have() -> None:
    deep = np.where(contour() > UNVOICED, contour() * 0.5, 0).astype(np.float32)
    lowest = Register(0.0, 1.0, 0.0, False).moved(deep, np.random.default_rng(3))
    assert np.median(lowest[deep > UNVOICED]) == pytest.approx(68, rel=0.02)


def test_fry_is_low_rough_and_at_the_ends() -> None:
    hertz = np.concatenate([np.full(60, 100.0), np.zeros(20), np.full(60, 100.0), np.zeros(20)] * 20).astype(np.float32)
    moved = Register(0.5, 1.0, 0.0, True).moved(hertz, np.random.default_rng(4)).reshape(-1, 80)
    usual = np.median(moved[:, :20])
    fried = moved[:, 50:60].mean(axis=1) < 0.8 * usual
    assert 0.25 < fried.mean() < 0.75
    assert (np.abs(moved[:, :10] - usual) < 1e-3 * usual).all()
    assert moved[fried, 55:60].std(axis=1).min() > 0
    assert (moved[:, 60:] == 0).all()


def test_others_say_some_of_the_targets_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        def __init__(self, wide: bool) -> None:
            self.wide = wide

        def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
            return Speech(np.zeros(240, np.float32), 24000, [phonemes], np.array([0.01]), "kokoro:x")

    monkeypatch.setattr(generate, "make_clip", lambda speech, sentence, wide: sentence)
    texts = [{"phonemes": "a"}] * (20 * TARGET_SENTENCES)
    for wide, expected in ((True, 1.0), (False, SHARED_SHARE + (1 - SHARED_SHARE) / 20)):
        stream = generate.clips(Mute(wide), texts, np.random.default_rng(5))
        said = [int(next(stream)) for _ in range(800)]  # type: ignore[call-overload]
        assert np.mean([sentence < TARGET_SENTENCES for sentence in said]) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("scope", "module"),
    [
        ("/encoder/text_encoder/cnn.0/cnn.0.0", "text_encoder.cnn.0.0"),
        ("/encoder/F0.1/conv1x1", "predictor.F0.1.conv1x1"),
        ("/encoder/N_proj", "predictor.N_proj"),
        ("/encoder/predictor/text_encoder/lstms.2", "predictor.text_encoder.lstms.2"),
        ("/encoder/shared", "predictor.shared"),
        ("/encoder/bert_encoder", "bert_encoder"),
        (
            "/encoder/bert/encoder/albert_layer_groups.0/albert_layers.0/attention/query_11",
            "bert.encoder.albert_layer_groups.0.albert_layers.0.attention.query",
        ),
        ("/decoder/decoder/asr_res/asr_res.0", "decoder.asr_res.0"),
        ("/decoder/decoder/generator/noise_res.1/convs2.0", "decoder.generator.noise_res.1.convs2.0"),
        ("encoder.predictor.F0.1.pool.bias", "predictor.F0.1.pool.bias"),
    ],
)
def test_modules_have_the_packages_names(scope: str, module: str) -> None:
    assert module_name(scope) == module


def graph(nodes: list[Any], values: dict[str, NDArray[Any]]) -> bytes:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "kokoro", inputs, [], [numpy_helper.from_array(value, name) for name, value in values.items()])
    return helper.make_model(made).SerializeToString()


def test_an_lstm_has_its_gates_in_pytorchs_order() -> None:
    """Against ONNX's own definition of an LSTM, step by step."""
    rng = np.random.default_rng(6)
    inputs, hidden, steps = 3, 2, 5
    values: dict[str, NDArray[Any]] = {
        "w_quantized": rng.integers(-127, 128, (2, inputs, 4 * hidden)).astype(np.int8),
        "r_quantized": rng.integers(-127, 128, (2, hidden, 4 * hidden)).astype(np.int8),
        "b": rng.standard_normal((2, 8 * hidden)).astype(np.float32),
        "ws": np.array([0.01, 0.02], np.float32),
        "rs": np.array([0.015, 0.01], np.float32),
        "z": np.zeros(2, np.int8),
    }
    names = ["x", "w_quantized", "r_quantized", "b", "", "", "", "", "ws", "z", "rs", "z"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["y"], name="/encoder/shared/LSTM_quant")
    numbers = expanded(torch_arrays(graph([node], values)))
    lstm = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=True)
    lstm.load_state_dict({name.removeprefix("predictor.shared."): torch.from_numpy(value.copy()) for name, value in numbers.items()})
    x = rng.standard_normal((1, steps, inputs)).astype(np.float32)
    found = lstm(torch.from_numpy(x))[0][0].detach().numpy()

    def sigmoid(value: NDArray[Any]) -> NDArray[Any]:
        return 1 / (1 + np.exp(-value))

    for direction in (0, 1):
        w = values["w_quantized"][direction].astype(np.float64) * values["ws"][direction]
        r = values["r_quantized"][direction].astype(np.float64) * values["rs"][direction]
        bias = values["b"][direction].reshape(2, -1).sum(axis=0)
        h, c = np.zeros(hidden), np.zeros(hidden)
        for step in range(steps)[:: -1 if direction else 1]:
            i, o, f, new = np.split(x[0, step] @ w + h @ r + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
            h = sigmoid(o) * np.tanh(c)
            np.testing.assert_allclose(found[step, direction * hidden : (direction + 1) * hidden], h, atol=1e-5)


def test_quantised_layers_become_numbers() -> None:
    rng = np.random.default_rng(7)
    values: dict[str, NDArray[Any]] = {
        "m_quantized": rng.integers(-127, 128, (3, 4)).astype(np.int8),
        "m_scale": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "mz": np.zeros(4, np.int8),
        "c_quantized": rng.integers(0, 256, (2, 3, 5)).astype(np.uint8),
        "c_scale": np.array(0.05, np.float32),
        "cz": np.array(60, np.uint8),
        "decoder.decoder.encode.conv1.bias": np.arange(2, dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMulInteger", ["x", "m_quantized", "", "mz"], ["a"], name="/encoder/bert_encoder/MatMul_quant"),
        helper.make_node("ConvInteger", ["x", "c_quantized", "", "cz"], ["b"], name="/decoder/decoder/encode/conv1/Conv_quant"),
    ]
    numbers = expanded(torch_arrays(graph(nodes, values)))
    assert sorted(numbers) == ["bert_encoder.weight", "decoder.encode.conv1.bias", "decoder.encode.conv1.weight"]
    np.testing.assert_allclose(numbers["bert_encoder.weight"], (values["m_quantized"] * values["m_scale"]).T, rtol=1e-6)
    np.testing.assert_allclose(numbers["decoder.encode.conv1.weight"], (values["c_quantized"].astype(np.float32) - 60) * 0.05, rtol=1e-6)
    with pytest.raises(ValueError, match="no scale for c_quantized"):
        torch_arrays(graph(nodes, {name: value for name, value in values.items() if name != "c_scale"}))
