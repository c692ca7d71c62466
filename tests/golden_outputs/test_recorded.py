"""The project's own recordings against today's networks, and upstream's files against what their manifest says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import record_goldens
from record_goldens import RECORDED, UPSTREAM, differences
from rvc_coreml.errors import LibraryError, UsageError
from rvc_coreml.golden_outputs.golden import MANIFEST, read_manifest
from rvc_coreml.models import flow, stages
from rvc_coreml.runtime.files import write_json

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
MOST_BYTES = 1_500_000


def test_todays_networks_give_the_recorded_numbers() -> None:
    assert differences() == []


def test_every_kind_of_network_and_stage_is_recorded_and_the_files_are_small() -> None:
    manifest = read_manifest(RECORDED)
    stages_of = {case["what"] for entry in manifest["sets"].values() for case in entry["cases"].values()}
    assert stages_of == {"content_encoder", "text_encoder", "flow", "decoder", "pitch"}
    assert len(manifest["sets"]) == 2 + 3 * len(record_goldens.VOICES)
    files = list(RECORDED.iterdir())
    assert {file.name for file in files} == {MANIFEST, *(entry["file"] for entry in manifest["sets"].values())}
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    for entry in manifest["sets"].values():
        for case in entry["cases"].values():
            assert min(case["facts"]["float64_snr_db"].values()) > record_goldens.LEAST_SNR_DB
            assert case["facts"]["origin"]
            assert case["facts"]["licence"]


def test_noise_of_another_strength_is_found_in_the_flow_of_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_prior = stages.sample_prior
    monkeypatch.setattr(stages, "sample_prior", lambda m_p, logs_p, noise: sample_prior(m_p, logs_p, noise / 0.66666))
    problems = differences(only=["v1_32k"])
    assert problems
    assert all(problem.startswith("v1_32k_flow, ") and "the output z has" in problem for problem in problems)


def test_a_sound_source_that_changed_is_found_in_the_decoders_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from rvc_coreml.models import host

    harmonic_source = host.harmonic_source
    monkeypatch.setattr(host, "harmonic_source", lambda *given: 1.001 * harmonic_source(*given))
    problems = differences(only=["v2_40k"])
    assert any("v2_40k_decoder, full: the input source has 60.0 dB" in problem for problem in problems), problems


def test_a_channel_flip_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.torch, "flip", lambda x, _dims: x, raising=True)
    assert any(problem.startswith("v1_32k_flow") for problem in differences(only=["v1_32k"]))


def test_a_damaged_recording_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RECORDED, tmp_path / "recorded"))
    path = folder / "v1_32k_flow.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LibraryError, match="SHA-256"):
        differences(folder)


def test_recording_over_loosened_limits_needs_a_reason_which_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(RECORDED, tmp_path / "recorded"))
    manifest = read_manifest(folder)
    border = manifest["thresholds"]["flow"]["fp16"]["snr_db"]
    was, border["good"] = border["good"], 200.0
    write_json(folder / MANIFEST, manifest)
    monkeypatch.setattr(record_goldens, "recorded_today", dict)
    with pytest.raises(UsageError, match=r"flow/fp16/snr_db/good is .*looser than the recorded 200"):
        record_goldens.record(folder=folder)
    assert read_manifest(folder) == manifest
    for reason in ("a test", None):  # the second recording keeps the line of the first
        record_goldens.record(reason, folder)
        *earlier, line = read_manifest(folder)["threshold_changes"]
        assert earlier == manifest["threshold_changes"]
        assert (line["threshold"], line["from"], line["to"], line["why"]) == ("flow/fp16/snr_db/good", 200.0, was, "a test")
    assert [item.name for item in tmp_path.iterdir()] == ["recorded"]


def test_upstreams_files_are_the_ones_that_the_manifest_describes() -> None:
    import json

    stored = json.loads((UPSTREAM / MANIFEST).read_text(encoding="utf-8"))
    assert stored == record_goldens.upstream_manifest()
    assert stored["producer"] == "upstream"
    assert stored["files"]["synth_v2_40k.npz"]["tensors"]["z"]["shape"][0] == 192


@pytest.mark.skipif(not ORACLE.is_dir(), reason="upstream's own copy is not beside the project")
@pytest.mark.parametrize("name", ["hubert", "rmvpe", "synth_v2_40k", "synth_v1_32k_nof0", "pipeline_v2_40k"])
def test_upstreams_numbers_are_unchanged_bit_for_bit(name: str) -> None:
    with np.load(ORACLE / f"{name}.npz") as theirs, np.load(UPSTREAM / f"{name}.npz") as ours:
        assert set(ours.files) == set(theirs.files)
        for key in theirs.files:
            assert theirs[key].dtype == ours[key].dtype
            assert theirs[key].tobytes() == ours[key].tobytes()
