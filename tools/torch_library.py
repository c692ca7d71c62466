"""A model library for the torch backend alone: weights and manifests as `convert` writes them, packages empty.

Benchmarks and tests on full-size networks need no packages, and converting takes longer than what they measure. Golden
tensors are real where asked for: without them every device but the CPU fails its check and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rvc_coreml.golden_outputs.golden import GoldenSet
from rvc_coreml.models.checkpoint import load_pitch, load_voice, read_hubert
from rvc_coreml.models.stages import VOICE_STAGES, Stage, content_encoder_stage, pitch_stage, voice_stage
from rvc_coreml.runtime.files import sha256, write_json
from rvc_coreml.runtime.goldens import GATE, make_cases
from rvc_coreml.runtime.library import CONTENT_ENCODER, INDEX, PITCH, WEIGHTS, Library
from rvc_coreml.runtime.manifest import Manifest, StageEntry
from rvc_coreml.runtime.recording import GOLDEN, tool_versions
from rvc_coreml.runtime.retrieval import FeatureIndex
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = tuple[Mapping[str, Tensor], dict[str, str]]


def write_torch_library(
    path: Path,
    hubert: Path,
    voices: Mapping[str, Path],
    pitch: Sequence[Path] = (),
    index: FeatureIndex | None = None,
    goldens: bool = False,
    windows: Mapping[str, int] | None = None,
) -> Library:
    """From checkpoint files; `index` goes to every voice, `windows` are frames by stage where not the usual ones."""
    window = (windows or {}).get
    library = Library(path)
    encoder = read_hubert(hubert)
    details: dict[str, Any] = {"versions": list(encoder.network.versions), "hubert": asdict(encoder.network.config)}
    content = content_encoder_stage(encoder.network, window(CONTENT_ENCODER))
    stages: dict[str, Stage] = {CONTENT_ENCODER: content}
    network = encoder.network if goldens else None
    _commit(library, CONTENT_ENCODER, CONTENT_ENCODER, stages, (encoder.source_state, encoder.file_metadata()), details, network)
    for name, file in voices.items():
        voice = load_voice(file)
        details = {"version": voice.version, "sample_rate": voice.sample_rate, "f0": voice.has_f0, "speakers": voice.speakers}
        stages = {stage: voice_stage(stage, voice.synthesizer, window(stage)) for stage in VOICE_STAGES}
        network = voice.synthesizer if goldens else None
        _commit(library, "voice", name, stages, (voice.source_state, voice.file_metadata()), details, network, index)
    for file in pitch:
        model = load_pitch(file)
        settings = {"settings": model.network.settings()}
        body = pitch_stage(model.network, window(PITCH))
        network = model.network if goldens else None
        _commit(library, PITCH, model.kind, {PITCH: body}, (model.source_state, model.file_metadata()), settings, network)
    return library


def _commit(
    library: Library,
    kind: str,
    name: str,
    stages: Mapping[str, Stage],
    weights: Weights,
    details: dict[str, Any],
    network: nn.Module | None,
    index: FeatureIndex | None = None,
) -> None:
    state, metadata = weights
    with library.write(kind, name) as folder:
        save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / WEIGHTS, metadata)
        entries = {stage: _entry(folder, module) for stage, module in stages.items()}
        if network is None:
            (folder / GOLDEN).mkdir()
            for entry in entries.values():
                (folder / entry.golden).touch()
        else:
            gates = make_cases(network, stages, cases=(GATE,))
            GoldenSet.of({golden.what: [golden] for golden in gates}, tool_versions()).save(folder / GOLDEN)
        stored = None
        if index is not None:
            index.save(folder / INDEX)
            facts = {"vectors": index.count, "cells": index.cells, "nprobe": index.nprobe, "width": index.width}
            stored = {"file": "seeded.index", "sha256": sha256(folder / INDEX), "stored": INDEX, **facts}
        source = {"file": "seeded", "sha256": "0" * 64}
        library.commit(folder, Manifest(kind, name, "build-without-packages", source, {}, entries, details, stored))


def _entry(folder: Path, stage: Stage) -> StageEntry:
    package, golden, operations = f"{stage.name}.mlpackage", f"{GOLDEN}/{stage.name}.safetensors", f"{stage.name}.json"
    (folder / package).mkdir()
    write_json(folder / operations, {})
    given, made = ({spec.name: list(spec.shape) for spec in specs} for specs in (stage.inputs, stage.outputs))
    return StageEntry(package, golden, operations, stage.window, stage.context, "fp32", "ALL", "iOS17", given, made, {}, 0, None)
