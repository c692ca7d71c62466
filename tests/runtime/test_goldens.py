"""The cases of every stage: what they cover, that they fit any window, and that they are recorded with care."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import AudioError, LibraryError, UsageError
from rvc_coreml.golden_outputs.golden import PIPELINE, GoldenSet, read_manifest
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.models.stages import VOICE_STAGES, content_encoder_stage, pitch_stage, voice_stage
from rvc_coreml.runtime import goldens, recording
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.goldens import CASES, FEATURES, GATE, gate_golden, golden_folder, make_cases, pipeline_goldens, stage_goldens
from rvc_coreml.runtime.library import Library
from support.rmvpe_checkpoints import NARROW
from support.small_networks import hubert, voice
from support.torch_libraries import narrow_library

REAL = Path(__file__).resolve().parents[3] / "shared" / "real_features" / "contentvec_layer12.npy"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = narrow_library(tmp_path_factory.mktemp("goldens"))
    for component in library.components():
        recording.record(library, component)
    return library


@pytest.fixture
def library(made: Library, tmp_path: Path) -> Library:
    return Library.open(shutil.copytree(made.path, tmp_path / "library"))


def rmvpe() -> Any:
    from rvc_coreml.models.rmvpe import Rmvpe
    from support.rmvpe_checkpoints import rmvpe_state

    network = Rmvpe(NARROW)
    state = rmvpe_state(NARROW)
    network.load_state_dict({name: state.get(name, value) for name, value in network.state_dict().items()}, strict=False)
    return network.eval()


# ---------------------------------------------------------------- cases


@pytest.mark.parametrize("title", ["content encoder", "pitch model 'rmvpe'", "voice 'v2'", "voice 'v1'", "voice 'nof0'"])
def test_a_library_has_every_case_of_every_stage_with_its_origin(made: Library, title: str) -> None:
    component = next(component for component in made.components() if component.title == title)
    wanted = [case for case in CASES if case != "unvoiced" or title != "voice 'nof0'"]
    for stage, entry in component.manifest.stages.items():
        found = stage_goldens(component, stage)
        assert list(found) == wanted
        assert found[GATE].valid == entry.window
        assert found["edge"].valid == (4 if stage == "pitch" else 1)  # RMVPE takes whole multiples of four frames here
        assert all(golden.what == stage and golden.facts["origin"] and golden.facts["licence"] for golden in found.values())
        assert all(min(golden.facts["float64_snr_db"].values()) > goldens.FLOAT64_SNR_DB for golden in found.values())
        assert found["speech"].facts["licence"] == "public domain"
        for golden in found.values():
            assert {name: list(array.shape) for name, array in golden.inputs.items()} == entry.inputs
            assert {name: list(array.shape) for name, array in golden.outputs.items()} == entry.outputs
            assert golden.inputs["mask"].sum() == golden.valid


@pytest.mark.parametrize("name", ["content_encoder", "pitch", *VOICE_STAGES])
def test_the_masked_window_gives_what_the_unpadded_clip_gave(made: Library, name: str) -> None:
    """Recorded without mask and padding; run here with both, as a package is."""
    component = {"content_encoder": made.content_encoder, "pitch": lambda: made.pitch_model("rmvpe")}.get(name, lambda: made.voice("v2"))()
    backend = TorchBackend("cpu")
    for case, golden in stage_goldens(component, name).items():
        compared = golden.compare(predict_arrays(backend.load(component, name), golden.inputs), audio=False)
        assert min(comparison.snr_db for comparison in compared.values()) > 95, case


def test_cases_are_as_extreme_as_their_names_say(made: Library) -> None:
    voice_cases = stage_goldens(made.voice("v2"), "text_encoder")
    table = made.voice("v2")
    from rvc_coreml.models.host import VoiceHost

    pitch = VoiceHost.read(table.weights).pitch
    assert pitch is not None

    def coarse(case: str) -> set[int]:
        rows = torch.from_numpy(voice_cases[case].inputs["pitch_embedding"][0, : voice_cases[case].valid])
        return {int(((pitch - row) ** 2).sum(1).argmin()) for row in rows}

    assert coarse("silence") == coarse("unvoiced") == {1}
    assert coarse("loud") == {255}
    assert len(coarse(GATE)) > 20
    assert 1 in coarse(GATE)
    assert len(coarse("speech")) > 3
    phones = {case: golden.inputs["phone"][0, : golden.valid] for case, golden in voice_cases.items()}
    assert np.ptp(phones["silence"], axis=0).max() == 0
    assert voice_cases["silence"].facts["still"] is True
    assert phones["loud"].std() == pytest.approx(3 * 0.36, rel=0.1)
    assert phones[GATE].std() == pytest.approx(0.36, rel=0.1)
    waves = {case: golden.inputs["waveform"] for case, golden in stage_goldens(made.content_encoder(), "content_encoder").items()}
    assert not waves["silence"].any()
    clipped = {case: np.mean(wave[wave != 0] > 0.95 * wave.max()) for case, wave in waves.items() if wave.any()}
    assert clipped["loud"] > 0.1
    assert clipped[GATE] < 0.01


def test_each_stage_sees_what_its_predecessor_gives(made: Library) -> None:
    component = made.voice("v2")
    text, flow, decoder = (stage_goldens(component, stage)["short"] for stage in VOICE_STAGES)
    for name in ("m_p", "logs_p"):
        assert compare(text.outputs[name][:, :, : flow.valid], flow.inputs[name][:, :, : flow.valid]).snr_db > 100
    assert compare(flow.outputs["z"][:, :, : decoder.valid], decoder.inputs["z"][:, :, : decoder.valid]).snr_db > 100


def test_speech_reaches_a_voice_through_the_librarys_content_encoder(made: Library) -> None:
    phone = stage_goldens(made.voice("v2"), "text_encoder")["speech"]
    assert phone.facts["origin"].startswith("content encoder on LibriVox")
    content = stage_goldens(made.content_encoder(), "content_encoder")["speech"]
    rows = phone.inputs["phone"][0, : phone.valid]
    np.testing.assert_array_equal(rows[0::2], rows[1::2])
    assert compare(content.outputs["features_v2"][0, :8], rows[:16:2], time_axis=0).level == pytest.approx(1, abs=0.2)


@given(window=st.integers(1, 40), kind=st.sampled_from(["content_encoder", "pitch", *VOICE_STAGES]))
@settings(max_examples=8, deadline=None)
def test_any_window_gives_cases_that_fit_it(window: int, kind: str) -> None:
    if kind == "content_encoder":
        network, stage = hubert(), content_encoder_stage(hubert(), window)
    elif kind == "pitch":
        network = rmvpe()
        stage = pitch_stage(network, 4 * window)
    else:
        network = voice("v2", 40000, True)
        stage = voice_stage(kind, network, window)
    found = make_cases(network, {stage.name: stage})
    assert [golden.case for golden in found] == list(CASES)
    shapes = [{spec.name: list(spec.shape) for spec in specs} for specs in (stage.inputs, stage.outputs)]
    for golden in found:
        assert 1 <= golden.valid <= stage.window
        fitted = goldens.padded(golden, *shapes)
        with torch.inference_mode():
            outputs = stage(*(torch.from_numpy(fitted.inputs[spec.name]) for spec in stage.inputs))
        actual = {spec.name: value.numpy() for spec, value in zip(stage.outputs, outputs, strict=True)}
        assert min(item.snr_db for item in fitted.compare(actual, audio=False).values()) > 80, golden.case


def test_recording_twice_gives_the_same_numbers() -> None:
    network = voice("v2", 40000, True)
    stages = {name: voice_stage(name, network, 30) for name in VOICE_STAGES}
    for one, other in zip(make_cases(network, stages), make_cases(network, stages), strict=True):
        assert all(np.array_equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
        assert all(np.array_equal(one.outputs[name], other.outputs[name]) for name in one.outputs)


@pytest.mark.parametrize("damage", ["cancelling", "nan"])
def test_a_network_that_float32_cannot_hold_is_not_recorded(damage: str) -> None:
    """The flow's last step adds what the decoder is given: 3e6 beside it leaves float32 no digits."""
    import copy

    network = copy.deepcopy(voice("v2", 40000, True))
    stage = voice_stage("flow", network, 30)
    with torch.no_grad():
        for layer in (0, 2, 4, 6):
            network.flow.flows[layer].post.bias += 3e6 * (1 if layer in (0, 4) else -1) if damage == "cancelling" else np.nan
    with pytest.raises(LibraryError, match=r"flow gives z with .* dB between float32 and float64"):
        make_cases(network, {"flow": stage})


# ---------------------------------------------------------------- reading


def test_the_gate_is_the_full_window_alone(made: Library) -> None:
    golden = gate_golden(made.voice("v2"), "flow")
    assert (golden.case, golden.valid) == (GATE, made.voice("v2").manifest.stages["flow"].window)


def test_a_recording_of_another_window_or_without_a_gate_is_refused(library: Library) -> None:
    component = library.voice("v2")
    folder = golden_folder(component)
    found = GoldenSet.load(folder)
    entry = component.manifest.stages["flow"]
    entry.inputs["noise"][2] = 40
    with pytest.raises(LibraryError, match=r"voice 'v2', flow, do not fit its package .*golden record"):
        stage_goldens(component, "flow")
    del found.sets["decoder"][GATE]
    shutil.rmtree(folder)
    found.save(folder)
    with pytest.raises(LibraryError, match="decoder, lack the case 'full'"):
        gate_golden(component, "decoder")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(LibraryError, match="holds no golden outputs"):
        gate_golden(component, "flow")


# ---------------------------------------------------------------- pipeline


@pytest.mark.parametrize("name", ["v2", "v1", "nof0"])
def test_the_pipeline_can_be_replayed_from_its_recording(made: Library, name: str) -> None:
    from rvc_coreml.runtime.converter import VoiceConverter

    component = made.voice(name)
    (golden,) = pipeline_goldens(component, made.content_encoder()).values()
    assert golden.what == PIPELINE
    f0 = {"f0", "noise_1"} if name != "nof0" else set()
    assert set(golden.inputs) == {"audio", "noise_0", *f0}
    assert golden.inputs["audio"].shape == (8000,)
    assert np.abs(golden.outputs["audio"]).max() > 0.001
    for array in (golden.inputs[key] for key in golden.inputs if key.startswith("noise")):
        assert array.std() == pytest.approx(1, abs=0.05)
    actual = recording.replay(golden, VoiceConverter(made, name, "torch", device="cpu"))
    assert golden.compare(actual)["audio"].snr_db > 100
    golden.inputs["noise_0"][:] = 0
    other = recording.replay(golden, VoiceConverter(made, name, "torch", device="cpu"))
    assert golden.compare(other)["audio"].snr_db < 60


def test_a_pipeline_of_another_content_encoder_is_refused(made: Library) -> None:
    content = made.content_encoder()
    other = replace(content, manifest=replace(content.manifest, source={"file": "x", "sha256": "1" * 64}))
    with pytest.raises(LibraryError, match="voice 'v2' was recorded with another content encoder"):
        pipeline_goldens(made.voice("v2"), other)


def test_a_pipeline_that_was_recorded_and_is_gone_is_damage(library: Library) -> None:
    (golden_folder(library.voice("v2")) / f"{PIPELINE}.safetensors").unlink()
    with pytest.raises(LibraryError, match=r"the golden outputs of pipeline in .* are damaged"):
        pipeline_goldens(library.voice("v2"))


def test_without_a_content_encoder_there_is_no_pipeline_and_speech_is_seeded(library: Library) -> None:
    shutil.rmtree(library.path / "content_encoder")
    component = recording.record(library, library.voice("v2"))
    assert pipeline_goldens(component) == {}
    assert stage_goldens(component, "text_encoder")["speech"].facts["origin"].startswith("seeded features with the pitch of")


# ---------------------------------------------------------------- recording


def test_real_features_are_a_case_of_the_voices_that_read_them(library: Library) -> None:
    if not REAL.is_file():
        pytest.skip("the real features are not beside the project")
    given = recording.read_features(REAL)
    found = stage_goldens(recording.record(library, library.voice("v2"), features=given), "text_encoder")
    assert list(found) == [*CASES, FEATURES]
    rows = found[FEATURES].inputs["phone"][0, : found[FEATURES].valid]
    real = np.load(REAL)
    start = next(index for index in range(len(real)) if np.array_equal(real[index], rows[0]))
    np.testing.assert_array_equal(rows[::2], real[start : start + len(rows) // 2])
    assert "contentvec_layer12.npy, SHA-256 " in found[FEATURES].facts["origin"]
    assert list(stage_goldens(recording.record(library, library.voice("v1"), features=given), "flow")) == list(CASES)


def test_a_library_in_use_keeps_its_recording_and_older_ones_go(library: Library) -> None:
    opened = library.pitch_model("rmvpe")
    before = gate_golden(opened, "pitch")
    component = recording.record(library, opened)
    assert golden_folder(component) != golden_folder(opened)
    np.testing.assert_array_equal(gate_golden(opened, "pitch").outputs["hidden"], before.outputs["hidden"])
    latest = recording.record(library, component)
    assert {item.name for item in component.build.glob("golden*")} == {golden_folder(component).name, golden_folder(latest).name}
    assert golden_folder(library.pitch_model("rmvpe")) == golden_folder(latest)


@pytest.mark.parametrize("step", ["make_cases", "pipeline_golden", "save", "write_json"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_recording_that_fails_changes_nothing(library: Library, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    from rvc_coreml.errors import OutputError
    from rvc_coreml.runtime import library as library_module

    component = library.pitch_model("rmvpe")
    before = {path: path.read_bytes() for path in component.folder.rglob("*") if path.is_file()}

    def fail(*_given: Any, **_options: Any) -> None:
        raise error

    place = {"save": GoldenSet, "write_json": library_module}.get(step, recording)
    monkeypatch.setattr(place, step, fail)
    with pytest.raises((OutputError, OSError, KeyboardInterrupt)):
        recording.record(library, component)
    assert {path: path.read_bytes() for path in component.folder.rglob("*") if path.is_file()} == before


def test_a_component_that_was_converted_meanwhile_is_left_alone(library: Library) -> None:
    component = library.pitch_model("rmvpe")
    manifest = component.folder / "manifest.json"
    text = manifest.read_text().replace(component.manifest.build, "build-new")
    shutil.copytree(component.build, component.folder / "build-new")
    manifest.write_text(text)
    with pytest.raises(LibraryError, match="was converted again meanwhile"):
        recording.record(library, component)
    assert manifest.read_text() == text
    assert len(list((component.folder / "build-new").glob("golden*"))) == 2  # the two that were there


def test_reasons_are_kept_and_nothing_is_added_without_need(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    component = library.pitch_model("rmvpe")
    monkeypatch.setattr(recording, "loosened", lambda recorded, lines: [] if lines else [("flow/fp16/snr_db/good", 50.0, 45.0)])
    monkeypatch.setattr(recording, "widened", lambda recorded, lines: ["the limit flow/fp16/snr_db/good is 45"])
    for reason in (None, " "):
        with pytest.raises(UsageError, match=r"^the limit flow/fp16/snr_db/good is 45 .*--reason TEXT"):
            recording.record(library, component, reason=reason)
    for reason in ("because of a test", None, "not needed"):
        component = recording.record(library, component, reason=reason)
        (line,) = read_manifest(golden_folder(component))["threshold_changes"]
        assert (line["threshold"], line["from"], line["to"], line["why"]) == ("flow/fp16/snr_db/good", 50.0, 45.0, "because of a test")


def test_speech_of_a_file_is_its_loudest_part(tmp_path: Path, speech: np.ndarray) -> None:
    quiet = np.zeros(32000, np.float32)
    soundfile.write(tmp_path / "clip.wav", np.concatenate([quiet, speech[16000:35200], quiet]), 16000)
    found = recording.read_speech(tmp_path / "clip.wav")
    assert found.samples.shape == (19200,)
    assert np.abs(found.samples[:1600]).max() > 0.01
    assert found.origin.startswith("clip.wav, SHA-256 ")
    soundfile.write(tmp_path / "short.wav", quiet[:10000], 16000)
    with pytest.raises(AudioError, match=r"short\.wav is too short: 1\.2 s"):
        recording.read_speech(tmp_path / "short.wav")
    soundfile.write(tmp_path / "silent.wav", quiet, 16000)
    with pytest.raises(AudioError, match=r"silent\.wav is silent"):
        recording.read_speech(tmp_path / "silent.wav")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 768), np.int32),
        np.full((3, 768), np.nan, np.float32),
        np.full((3, 768), 1e300),
        np.zeros(768, np.float32),
        np.zeros((0, 768), np.float32),
        b"something",
        b"PK\x03\x04 and no zip",
    ],
    ids=["integers", "NaN", "beyond float32", "one axis", "empty", "no array", "no archive"],
)
def test_features_that_cannot_be_used(tmp_path: Path, array: np.ndarray | bytes) -> None:
    path = tmp_path / "f.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    with pytest.raises(UsageError, match=r"f\.npy cannot be used: give finite features"):
        recording.read_features(path)
