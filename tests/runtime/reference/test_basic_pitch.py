"""Somebody else's package, unmodified: Spotify's basic-pitch, converted from TensorFlow, against its own ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime.reference import ReferenceModel

CLIPS = sorted((Path(__file__).parents[3] / "golden_outputs" / "audio").glob("*.wav"))
SAMPLES = 43844
# The order of the ONNX file's outputs is not the package's; both kept the names of their TensorFlow signature.
PAIRS = {"Identity": "StatefulPartitionedCall:0", "Identity_1": "StatefulPartitionedCall:1", "Identity_2": "StatefulPartitionedCall:2"}


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("basic_pitch")
    assert found is not None, "basic-pitch==0.4.0 is missing: install it with 'pip install --no-deps basic-pitch==0.4.0'"
    return Path(str(found.origin)).parent / "saved_models" / "icassp_2022"


@pytest.mark.parametrize("policy", ["declared", "float64"])
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_its_notes_agree_with_onnxruntime(folder: Path, clip: Path, policy: str) -> None:
    audio = soundfile.read(clip, dtype="float32")[0][:SAMPLES].reshape(1, SAMPLES, 1)
    session = onnxruntime.InferenceSession(str(folder / "nmp.onnx"))
    wanted = dict(zip([item.name for item in session.get_outputs()], session.run(None, {session.get_inputs()[0].name: audio}), strict=True))
    model = ReferenceModel(folder / "nmp.mlpackage", numerics=policy)
    got = model.predict(dict.fromkeys(model.inputs, audio))
    for ours, theirs in PAIRS.items():
        assert snr_db(np.ravel(wanted[theirs]), np.ravel(got[ours])) >= 80
