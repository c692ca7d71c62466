"""Voices read back from ONNX: our own files, torch's exporter's, optimised and nameless ones, and everything else refused."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rvc_coreml.converters.collection import collect
from rvc_coreml.converters.onnx_export import W_OKADA, WEBUI, OnnxOptions, Origin, onnx_model
from rvc_coreml.converters.opening import source_hash
from rvc_coreml.errors import CheckpointError, IncompleteCheckpoint, UnreadableCheckpoint, UnsafeCheckpoint, WrongCheckpointKind
from rvc_coreml.models import Synthesizer, load_voice
from rvc_coreml.models.checkpoint import onnx_proof
from rvc_coreml.models.checkpoint.onnx_file import OnnxFile
from rvc_coreml.models.checkpoint.reading import is_onnx
from support import small_networks
from support.checkpoints import UPSAMPLING, write_small_hubert, write_voice
from support.onnx_voices import anonymous, as_voice, edited, halved, optimised, save, traced, with_weight_norm
from support.small_networks import normal

ORIGIN = Origin("singer.pth", "0" * 64, "CC0")
# Every upsampling once with f0 and each layout in turn, both versions without f0, the other residual block; the rest is slow.
_ALL = [(*shape, f0, layout) for shape in UPSAMPLING for f0, layout in ((True, WEBUI), (True, W_OKADA), (False, W_OKADA))]
_FIRST = {(*shape, True, (WEBUI, W_OKADA)[index % 2]) for index, shape in enumerate(UPSAMPLING)} | {
    ("v1", 40000, False, W_OKADA),
    ("v2", 32000, False, W_OKADA),
}
OWN = [pytest.param(*case, "1", marks=() if case in _FIRST else pytest.mark.slow) for case in _ALL] + [("v2", 40000, True, W_OKADA, "2")]


def assert_same(path: Path, network: Synthesizer, version: str, weights: float = 1e-6) -> Any:
    """The voice in a file is this network: config, weights and audio."""
    voice = load_voice(path)
    assert (voice.version, voice.has_f0) == (version, network.has_f0)
    ours, theirs = voice.config.to_list(), network.config.to_list()
    assert ours[2:] == theirs[2:]
    state, wanted = voice.synthesizer.state_dict(), network.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(state[name], tensor, atol=weights, rtol=weights), name
    f0, frames = network.has_f0, 20
    pitch = torch.arange(1, frames + 1)[None] if f0 else None
    pitchf = torch.linspace(80, 500, frames)[None] if f0 else None
    source = normal(3, 1, frames * network.config.samples_per_frame, 1) if f0 else None
    given = (normal(1, 1, frames, network.phone_channels), pitch, pitchf, 1, normal(2, 1, network.config.inter_channels, frames), source)
    difference = (voice.synthesizer.infer(*given) - network.infer(*given)).abs().max()
    assert float(difference) < (1e-5 if weights <= 1e-6 else 20 * weights)
    return voice


def own(version: str = "v2", rate: int = 40000, f0: bool = True, layout: str = W_OKADA, **options: Any) -> onnx.ModelProto:
    return onnx_model(as_voice(small_networks.voice(version, rate, f0), version), OnnxOptions(layout, **options), ORIGIN)


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without running the graph, which is not what the test is about and takes half its time."""
    monkeypatch.setattr("rvc_coreml.models.checkpoint.onnx_voice.prove", lambda *_: None)


@pytest.mark.parametrize(("version", "rate", "f0", "layout", "resblock"), OWN)
def test_our_own_files_come_back(tmp_path: Path, unproved: None, version: str, rate: int, f0: bool, layout: str, resblock: str) -> None:
    network = small_networks.voice(version, rate, f0, resblock)
    model = onnx_model(as_voice(network, version), OnnxOptions(layout, 13 if rate == 48000 else 17), ORIGIN)
    voice = assert_same(save(model, tmp_path / "a.onnx"), network, version)
    assert voice.metadata["onnx_layout"] == layout
    assert "notes" not in voice.metadata


@pytest.fixture(scope="module")
def webui_traced() -> onnx.ModelProto:
    """g and v as weights, any length, nothing folded: what the WebUI hands to its simplifier."""
    return traced(with_weight_norm(small_networks.voice("v2", 40000, True)), "webui", fold=False)


@pytest.fixture(scope="module")
def okada_traced() -> onnx.ModelProto:
    """One length, written into the graph by int(), and an operation set from before layer norms."""
    return traced(small_networks.voice("v1", 32000, True), "w-okada", static=True, opset=13)


def test_torchs_exporter_with_weight_norm(tmp_path: Path, webui_traced: onnx.ModelProto) -> None:
    network = small_networks.voice("v2", 40000, True)
    stored = {tensor.name for tensor in webui_traced.graph.initializer}
    assert "inner.dec.ups.0.weight_g" in stored
    assert_same(save(webui_traced, tmp_path / "a.onnx"), network, "v2")
    assert_same(save(anonymous(webui_traced), tmp_path / "b.onnx"), network, "v2")


def test_onnx_runtimes_optimiser(tmp_path: Path, webui_traced: onnx.ModelProto) -> None:
    model = optimised(webui_traced, tmp_path)
    assert not any(tensor.name.endswith("weight_g") for tensor in model.graph.initializer)
    assert_same(save(anonymous(model), tmp_path / "a.onnx"), small_networks.voice("v2", 40000, True), "v2")


def test_one_length_with_whole_tables_of_relative_positions(tmp_path: Path, okada_traced: onnx.ModelProto) -> None:
    network = small_networks.voice("v1", 32000, True)
    assert_same(save(okada_traced, tmp_path / "a.onnx"), network, "v1")
    model = optimised(okada_traced, tmp_path)
    tables = [tuple(tensor.dims) for tensor in model.graph.initializer if 2 * 24 - 1 in tensor.dims]
    assert tables, "the optimiser is expected to pad the tables"
    assert_same(save(anonymous(model), tmp_path / "b.onnx"), network, "v1")


def test_a_length_written_into_a_graph_that_claims_to_take_any(
    tmp_path: Path, okada_traced: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            for size in value.type.tensor_type.shape.dim:
                if size.dim_value == 24:
                    size.dim_param = "frames"

    monkeypatch.setattr(onnx_proof, "FRAMES", 26)
    assert_same(save(edited(okada_traced, opened), tmp_path / "a.onnx"), small_networks.voice("v1", 32000, True), "v1")


@pytest.mark.parametrize("tool", ["onnxsim", pytest.param("onnxslim", marks=pytest.mark.slow)])
def test_simplifiers(tmp_path: Path, webui_traced: onnx.ModelProto, okada_traced: onnx.ModelProto, tool: str) -> None:
    simplifier = pytest.importorskip(tool)

    def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
        return simplifier.simplify(model)[0] if tool == "onnxsim" else simplifier.slim(model)

    assert_same(save(anonymous(simplified(webui_traced)), tmp_path / "a.onnx"), small_networks.voice("v2", 40000, True), "v2")
    assert_same(save(simplified(okada_traced), tmp_path / "b.onnx"), small_networks.voice("v1", 32000, True), "v1")


def _merge_scale(model: onnx.ModelProto) -> None:
    """What onnxslim does to a voice without f0: the features' scale becomes part of their layer."""
    scale = math.sqrt(small_networks.voice("v2", 40000, False).config.hidden_channels)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "Mul" and constants.get(node.input[1], np.zeros(2)).size == 1)
    assert math.isclose(float(constants[node.input[1]]), scale, rel_tol=1e-6)
    for consumer in model.graph.node:
        for position, name in enumerate(consumer.input):
            if name == node.output[0]:
                consumer.input[position] = node.input[0]
    for tensor in model.graph.initializer:
        if tensor.name.startswith("enc_p.emb_phone."):
            tensor.CopyFrom(numpy_helper.from_array((constants[tensor.name] * scale).astype(np.float32), tensor.name))
    model.graph.node.remove(node)


def test_a_scale_merged_into_the_features_layer(tmp_path: Path) -> None:
    assert_same(save(edited(own(f0=False), _merge_scale), tmp_path / "a.onnx"), small_networks.voice("v2", 40000, False), "v2")


def test_half_precision_is_widened_and_noted(tmp_path: Path, okada_traced: onnx.ModelProto) -> None:
    voice = assert_same(save(halved(okada_traced), tmp_path / "a.onnx"), small_networks.voice("v1", 32000, True), "v1", weights=1e-3)
    assert "half precision" in voice.metadata["notes"]
    assert all(tensor.dtype == torch.float32 for tensor in voice.source_state.values())
    assert_same(save(own(half=True), tmp_path / "b.onnx"), small_networks.voice("v2", 40000, True), "v2", weights=1e-3)


def test_weights_in_a_file_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save_model(own(), str(path), save_as_external_data=True, location="a.data", size_threshold=64)
    assert_same(path, small_networks.voice("v2", 40000, True), "v2")
    data = tmp_path / "a.data"
    before = source_hash(path)
    data.write_bytes(data.read_bytes()[:-4] + bytes(4))
    assert source_hash(path) != before  # another voice, though the ONNX file is the same
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(IncompleteCheckpoint, match="too short"):
        load_voice(path)
    data.unlink()
    with pytest.raises(IncompleteCheckpoint, match="does not lie beside it"):
        load_voice(path)


@pytest.mark.parametrize("location", ["../a.data", "/etc/passwd", "sub/../../a.data", "link.data"])
def test_weights_elsewhere_are_not_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "a.data").write_bytes(bytes(1 << 16))
    (folder / "link.data").symlink_to(tmp_path / "a.data")

    def pointed(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "emb_g.weight")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    with pytest.raises(UnsafeCheckpoint, match="outside its own folder"):
        load_voice(save(edited(own(), pointed), folder / "a.onnx"))


def test_conflicts_with_the_metadata_are_noted_and_the_graph_counts(tmp_path: Path, unproved: None) -> None:
    def lied(model: onnx.ModelProto) -> None:
        stated = {"samplingRate": 48000, "f0": True, "embChannels": 256, "embedder": "hubert-base-japanese"}
        helper.set_model_props(model, {"metadata": json.dumps(stated)})

    voice = load_voice(save(edited(own(), lied), tmp_path / "a.onnx"))
    assert (voice.sample_rate, voice.version) == (40000, "v2")
    assert "samplingRate 48000" in voice.metadata["notes"]
    assert "embChannels 256" in voice.metadata["notes"]
    assert voice.metadata["embedder_model"] == "hubert-base-japanese"
    for metadata in ("{", "[]"):
        model = edited(own(), lambda model, text=metadata: helper.set_model_props(model, {"metadata": text}))
        assert "notes" not in load_voice(save(model, tmp_path / "b.onnx")).metadata


def _slope(model: onnx.ModelProto) -> None:
    next(node for node in reversed(model.graph.node) if node.op_type == "LeakyRelu").attribute[0].f = 0.1


def _unskewed(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Sigmoid"


def _dilated(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name.startswith("dec.conv_pre"))
    next(entry for entry in node.attribute if entry.name == "pads").ints[:] = [2, 4]


@pytest.mark.parametrize("change", [_slope, _unskewed, _dilated])
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, change: Any) -> None:
    with pytest.raises(WrongCheckpointKind, match=r"does not compute|cannot be run"):
        load_voice(save(edited(own(f0=False), change), tmp_path / "a.onnx"))


def _swapped(model: onnx.ModelProto) -> None:
    """The names of two equal weights change places, their values do not."""
    one, other = "enc_p.encoder.attn_layers.0.conv_q.weight", "enc_p.encoder.attn_layers.0.conv_k.weight"
    trade = {one: other, other: one}
    for tensor in model.graph.initializer:
        tensor.name = trade.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = trade.get(name, name)


def test_names_that_contradict_the_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteCheckpoint, match="contradicts itself"):
        load_voice(save(edited(own(), _swapped), tmp_path / "a.onnx"))


def model_of(inputs: list[tuple[str, int, list[int | str]]]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    node = helper.make_node("Identity", [inputs[0][0]], ["out"])
    graph = helper.make_graph([node], "other", values, [helper.make_tensor_value_info("out", 1, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


OTHERS = {
    "a content encoder": [("source", 1, [1, 1, "n"])],
    "a pitch model": [("input", 1, [1, 128, "n"])],
    "a pitch model (RMVPE or the like)": [("waveform", 1, [1, "n"]), ("threshold", 1, [1])],
    "a later fork of w-okada's": [("feats", 1, [1, "n", 768]), ("p_len", 7, [1]), ("sid", 7, [1]), ("skip_head", 7, [])],
    "not an RVC voice: it takes image float": [("image", 1, [1, 3, 224, 224])],
    "mixes speakers": [("phone", 1, [1, "n", 768]), ("phone_lengths", 7, [1]), ("ds", 1, ["n", 4])],
    "not an RVC voice: it takes phone": [("phone", 1, [1, "n", 768]), ("phone_lengths", 7, [1]), ("pitch", 7, [1, "n"])],
    "has 2 axes where a voice's has 3": [("feats", 1, ["n", 768]), ("p_len", 7, [1]), ("sid", 7, [1])],
    "of another type": [("feats", 7, [1, "n", 768]), ("p_len", 7, [1]), ("sid", 7, [1])],
    "4 clips at once": [("feats", 1, [4, "n", 768]), ("p_len", 7, [1]), ("sid", 7, [1])],
    "nothing in the place of enc_p.emb_phone": [("feats", 1, [1, "n", 768]), ("p_len", 7, [1]), ("sid", 7, [1])],
}


@pytest.mark.parametrize("said", OTHERS)
def test_other_onnx_files_are_told_apart(tmp_path: Path, said: str) -> None:
    path = save(model_of(OTHERS[said]), tmp_path / "other.onnx")
    with pytest.raises(WrongCheckpointKind) as caught:
        load_voice(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))


def _fused(model: onnx.ModelProto) -> None:
    model.graph.node[5].domain = "com.microsoft"


def _branched(model: onnx.ModelProto) -> None:
    model.graph.node[5].attribute.append(helper.make_attribute("then_branch", helper.make_graph([], "g", [], [])))


def _deeper(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Tanh" and node.output[0] == "decoded")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "more"))
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at, helper.make_node("Conv", [node.input[0], "more"], ["after"]))
    model.graph.node[at + 1].input[0] = "after"


def _widened(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "dec.noise_convs.0.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), tensor.name))


def _infinite(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "emb_g.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.inf, np.float32), tensor.name))


def _cut(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "emb_g.weight")
    tensor.raw_data = tensor.raw_data[:-4]


def _claiming(model: onnx.ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "emb_g.weight").dims[0] = 1 << 40


def _lost(model: onnx.ModelProto) -> None:
    del model.graph.node[7]


DAMAGE = {
    "before it was optimised for that runtime": _fused,
    "branches or loops": _branched,
    "is not laid out as RVC's synthesizer": _deeper,
    "another shape: dec.noise_convs.0.bias is (3,)": _widened,
    "NaN or infinity in 1 entry: emb_g.weight": _infinite,
    "does not hold what its shape": _cut,
    "far more than a voice holds": _claiming,
    "is used before anything makes it": _lost,
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damaged_and_foreign_graphs_are_one_sentence(tmp_path: Path, unproved: None, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_voice(save(edited(own(), DAMAGE[said]), tmp_path / "a.onnx"))
    assert said in str(caught.value)


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path, unproved: None) -> None:
    whole = own().SerializeToString()
    path = tmp_path / "a.onnx"
    for share in (0.001, 0.02, 0.3, 0.7, 0.99, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            load_voice(path)
    path.write_bytes(b"\x80\x02not onnx")
    with pytest.raises(UnreadableCheckpoint, match="no ONNX file"):
        load_voice(path)


def test_flipped_bytes_give_a_voice_or_a_sentence(tmp_path: Path, unproved: None) -> None:
    whole, path = own(f0=False).SerializeToString(), tmp_path / "a.onnx"
    generator, outcomes = np.random.default_rng(11), set()
    for _ in range(40):
        changed = bytearray(whole)
        for position in generator.integers(0, len(whole) // 6, 3):  # nodes come first
            changed[position] = generator.integers(0, 256)
        path.write_bytes(changed)
        outcome = "a voice"
        with suppress(CheckpointError):
            outcome = "a sentence"
            load_voice(path)
            outcome = "a voice"
        outcomes.add(outcome)
    assert outcomes == {"a voice", "a sentence"}


GREEDY = {
    "ConstantOfShape": ([[1, 1 << 20, 1 << 20]], {}),
    "Expand": (["audio", [1 << 20, 1 << 20, 1]], {}),
    "Tile": (["audio", [1 << 40]], {}),
    "Range": ([0, 1 << 50, 1], {}),
    "Pad": (["audio", [0, 1 << 40]], {}),
    "Resize": (["decoded", [], [1.0, 1.0, 1e12]], {}),
}


@pytest.mark.parametrize("operation", GREEDY)
def test_a_graph_that_asks_for_all_memory_is_not_run(tmp_path: Path, operation: str) -> None:
    given, attributes = GREEDY[operation]

    def greedy(model: onnx.ModelProto) -> None:
        names = []
        for position, value in enumerate(given):
            if isinstance(value, str):
                names.append(value)
                continue
            floats = operation == "Resize"
            names.append(f"greed_{position}")
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32 if floats else np.int64), names[-1]))
        model.graph.node.append(helper.make_node(operation, names, ["huge"], **attributes))
        kind = TensorProto.FLOAT
        model.graph.node.append(helper.make_node("Cast", ["huge"], ["cast"], to=kind))
        model.graph.node.append(helper.make_node("ReduceSum", ["cast"], ["sum"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["audio", "sum"], ["louder"]))
        model.graph.output[0].name = "louder"

    with pytest.raises(UnsafeCheckpoint, match="far more than a short clip needs"):
        load_voice(save(edited(own(f0=False), greedy), tmp_path / "a.onnx"))


def test_constants_that_double_and_long_chains_are_followed_in_steps(tmp_path: Path) -> None:
    """Each way through the graph would be 2^80 ways, and each link a call within a call."""
    weight = numpy_helper.from_array(np.ones(3, np.float32), "c0")
    doubled = [helper.make_node("Add", [f"c{index}"] * 2, [f"c{index + 1}"]) for index in range(80)]
    passed = [helper.make_node("Identity", [f"i{index}"], [f"i{index + 1}"]) for index in range(3000)]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in ("i0", "y")]
    nodes = [*doubled, *passed, helper.make_node("Add", ["i3000", "c80"], ["y"])]
    graph = helper.make_graph(nodes, "chains", given[:1], given[1:], [weight])
    file = OnnxFile(save(helper.make_model(graph), tmp_path / "chains.onnx"))
    assert file.leaves("c80") == {"c0"}
    assert [node.output[0] for node in file.following("i0")] == ["y"]


def test_onnx_is_known_by_its_content_and_found_in_folders(tmp_path: Path) -> None:
    voice = save(own(), tmp_path / "singer.onnx")
    plain = save(own(), tmp_path / "renamed.bin")
    assert is_onnx(voice)
    assert is_onnx(plain)
    for suffix in ("pth", "safetensors"):
        assert not is_onnx(write_voice(tmp_path / f"a.{suffix}"))
    assert not is_onnx(write_small_hubert(tmp_path / "hubert.pt", "fairseq"))
    assert tmp_path / "singer.onnx" in {item.path for item in collect([tmp_path], tmp_path / "library").candidates}
