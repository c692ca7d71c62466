"""Exported graphs run by ONNX Runtime against the network they were made of, with the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from rvc_coreml.converters.onnx_export import W_OKADA, WEBUI, OnnxOptions, Origin, export_onnx, onnx_model, open_voice
from rvc_coreml.errors import LibraryError, UsageError
from rvc_coreml.models import Synthesizer
from support import small_networks
from support.checkpoints import small_config, write_voice
from support.onnx_voices import PRIOR_SCALE, Upstream, as_voice, session, with_noise_given
from support.small_networks import normal

ORIGIN = Origin("singer.pth", "0" * 64, "CC0")
# Every upsampling of RVC's once, both layouts, both kinds of residual block, three operation sets, one fixed length.
CASES = [
    ("v1", 32000, True, "1", OnnxOptions(WEBUI)),
    ("v1", 40000, True, "1", OnnxOptions(W_OKADA)),
    ("v1", 48000, False, "1", OnnxOptions(W_OKADA, 13)),
    ("v2", 24000, True, "1", OnnxOptions(W_OKADA)),
    ("v2", 32000, True, "2", OnnxOptions(WEBUI, 21)),
    ("v2", 40000, False, "1", OnnxOptions(W_OKADA)),
    ("v2", 48000, True, "1", OnnxOptions(WEBUI, 13)),
    ("v2", 40000, True, "1", OnnxOptions(WEBUI, frames=30)),
]


def inputs(
    network: Synthesizer, options: OnnxOptions, frames: int, drawn: list[str], length: int | None = None
) -> tuple[dict[str, Any], tuple]:
    """What the graph takes, its draws included, and the arguments of `Synthesizer.infer` that mean the same."""
    webui, f0 = options.layout == WEBUI, network.has_f0
    phone = normal(1, 1, frames, network.phone_channels)
    prior, source = normal(2, 1, network.config.inter_channels, frames), normal(3, 1, frames * network.config.samples_per_frame, 1)
    pitch = torch.randint(1, 256, (1, frames), generator=torch.Generator().manual_seed(4))
    pitchf = 60 + 900 * torch.rand(1, frames, generator=torch.Generator().manual_seed(5))
    pitchf[:, frames // 3 : frames // 2] = 0
    given: dict[str, Any] = {
        "phone" if webui else "feats": phone.numpy().astype(np.float16 if options.half else np.float32),
        "phone_lengths" if webui else "p_len": np.array([frames if length is None else length]),
        "ds" if webui else "sid": np.array([2]),
    }
    if f0:
        given |= {"pitch": pitch.numpy(), "pitchf": pitchf.numpy()}
    draws = [] if webui else [prior.numpy()]
    if webui:
        given["rnd"] = np.float32(PRIOR_SCALE) * prior.numpy()
    if f0:
        draws.append(source.reshape(1, frames, -1).numpy())
    given |= dict(zip(drawn, draws, strict=True))
    return given, (phone, pitch if f0 else None, pitchf if f0 else None, 2, prior, source if f0 else None)


@pytest.mark.parametrize(("version", "rate", "f0", "resblock", "options"), CASES)
def test_the_graphs_audio_is_the_networks(version: str, rate: int, f0: bool, resblock: str, options: OnnxOptions) -> None:
    network = small_networks.voice(version, rate, f0, resblock)
    model = onnx_model(as_voice(network, version), options, ORIGIN)
    onnx.checker.check_model(model, full_check=True)
    given_noise, drawn = with_noise_given(model)
    runner = session(given_noise)
    for frames in (1, 30, 77) if options.frames is None else (options.frames,):
        given, arguments = inputs(network, options, frames, drawn)
        wanted = network.infer(*arguments).numpy()
        made = runner.run(None, given)[0]
        assert made.shape == ((1, 1, wanted.size) if options.layout == WEBUI else (wanted.size,))
        assert np.abs(made.reshape(wanted.shape) - wanted).max() < 1e-5
        assert np.abs(wanted).max() > 0.01


def test_frames_beyond_the_length_are_masked_as_upstream_does() -> None:
    network = small_networks.voice("v2", 40000, False)
    options = OnnxOptions(W_OKADA)
    model, drawn = with_noise_given(onnx_model(as_voice(network, "v2"), options, ORIGIN))
    given, (phone, *_, prior, _source) = inputs(network, options, 30, drawn, length=19)
    upstream = Upstream(network, "webui-nono", static=False)
    upstream.layout = "webui"
    with torch.no_grad():
        wanted = upstream(phone, torch.tensor([19]), torch.tensor([2]), PRIOR_SCALE * prior).numpy()
    made = session(model).run(None, given)[0]
    assert np.abs(made - wanted.reshape(-1)).max() < 1e-5
    whole = session(model).run(None, given | {"p_len": np.array([30])})[0]
    assert np.abs(made - whole).max() > 1e-3


def test_noise_is_drawn_inside_and_only_where_the_layout_says() -> None:
    network = small_networks.voice("v2", 40000, True)
    for layout, count in ((WEBUI, 1), (W_OKADA, 2)):
        model = onnx_model(as_voice(network, "v2"), OnnxOptions(layout), ORIGIN)
        drawn = [node.output[0] for node in model.graph.node if node.op_type.startswith("Random")]
        assert len(drawn) == count
    given, _ = inputs(network, OnnxOptions(W_OKADA), 12, with_noise_given(model)[1])
    runner = session(model)
    asked = {value.name: given[value.name] for value in runner.get_inputs()}
    first, second = (runner.run(None, asked)[0] for _ in range(2))
    assert np.abs(first - second).max() > 1e-4


def test_half_precision_takes_half_features_and_is_half_the_size(tmp_path: Path) -> None:
    network = small_networks.voice("v1", 40000, True)
    options = OnnxOptions(W_OKADA, half=True)
    model = export_onnx(as_voice(network, "v1"), tmp_path / "half.onnx", options, ORIGIN)
    whole = export_onnx(as_voice(network, "v1"), tmp_path / "whole.onnx", OnnxOptions(W_OKADA), ORIGIN)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    weights, halves = ([tensor for tensor in given.graph.initializer if "." in tensor.name] for given in (whole, model))
    assert 2 * sum(len(tensor.raw_data) for tensor in halves) == sum(len(tensor.raw_data) for tensor in weights)
    given_noise, drawn = with_noise_given(model)
    given, arguments = inputs(network, options, 30, drawn)
    wanted = network.infer(*arguments).numpy().reshape(-1)
    assert np.abs(session(given_noise).run(None, given)[0] - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_fixed_length_takes_no_other() -> None:
    network = small_networks.voice("v2", 40000, False)
    options = OnnxOptions(W_OKADA, frames=20)
    model, drawn = with_noise_given(onnx_model(as_voice(network, "v2"), options, ORIGIN))
    assert "Shape" not in {node.op_type for node in model.graph.node}
    given, _ = inputs(network, options, 21, drawn)
    with pytest.raises(Exception, match=r"[Gg]ot: 21 [Ee]xpected: 20"):
        session(model).run(None, given)


def test_weights_keep_their_names_and_the_metadata_is_what_clients_read() -> None:
    network = small_networks.voice("v1", 48000, True)
    model = onnx_model(as_voice(network, "v1"), OnnxOptions(W_OKADA), ORIGIN)
    named = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if not tensor.name.startswith("constant_")}
    assert named == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stated = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stated["metadata"]) == {
        "application": "VC_CLIENT",
        "version": "2.1",
        "modelType": "pyTorchRVC",
        "samplingRate": 48000,
        "f0": True,
        "embChannels": 256,
        "embedder": "hubert_base",
        "embOutputLayer": 9,
        "useFinalProj": True,
    }
    assert stated["rvc_coreml.source_file"] == "singer.pth"
    assert stated["rvc_coreml.licence"] == "CC0"
    webui = onnx_model(as_voice(network, "v1"), OnnxOptions(WEBUI), ORIGIN)
    assert "metadata" not in {entry.key for entry in webui.metadata_props}
    assert [value.name for value in webui.graph.input] == ["phone", "phone_lengths", "pitch", "pitchf", "ds", "rnd"]


@pytest.mark.parametrize(
    ("f0", "options", "said"),
    [
        (False, OnnxOptions(WEBUI), "choose --layout w-okada"),
        (True, OnnxOptions(WEBUI, half=True), "leave --half out"),
        (True, OnnxOptions("moevs"), "choose webui or w-okada"),
        (True, OnnxOptions(WEBUI, 12), "choose 13 to 21"),
        (True, OnnxOptions(WEBUI, frames=0), "1 to 100000 frames"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(tmp_path: Path, f0: bool, options: OnnxOptions, said: str) -> None:
    voice = as_voice(small_networks.voice("v2", 40000, f0), "v2")
    with pytest.raises(UsageError, match=said):
        export_onnx(voice, tmp_path / "out.onnx", options, ORIGIN)
    assert not list(tmp_path.iterdir())


def test_a_library_or_a_file_is_the_source(small_library: Path, tmp_path: Path) -> None:
    voice, origin = open_voice(small_library, "v1", None)
    assert (voice.version, origin.file) == ("v1", "v1.pth")
    assert "not stated" in origin.licence
    file = write_voice(tmp_path / "a.pth", config=small_config())
    again, origin = open_voice(file, None, "mine")
    assert (again.version, origin.file, origin.licence) == ("v2", "a.pth", "mine")
    with pytest.raises(UsageError, match="choose one with --voice"):
        open_voice(small_library, None, None)
    with pytest.raises(LibraryError):
        open_voice(small_library, "nobody", None)
    with pytest.raises(UsageError, match="not a folder"):
        open_voice(file, "a", None)
