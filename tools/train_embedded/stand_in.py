"""Random weights of exactly the embedded networks' shapes, where no trained ones are at hand: for building and testing.

What comes out says of itself that it is seeded, and sounds like noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from rvc_coreml.golden_outputs.seeded_weights import seeded_state
from rvc_coreml.models import Hubert
from rvc_coreml.runtime.pitch import estimate_pitch
from seeded_checkpoints import write_voice

from .content_network import CONFIG
from .hugging_face import write_hugging_face
from .networks import VOICE_CONFIG
from .settings import MEDIAN_METHOD, median_pitch

CLIPS = Path(__file__).resolve().parents[2] / "golden_outputs" / "audio"


def write_stand_in(work: Path, seed: int = 0) -> float:
    """What training leaves in a work folder; returns the median pitch in Hz of the clip that stands for the target's speech."""
    encoder = Hubert(CONFIG).eval()
    encoder.load_state_dict(seeded_state(((name, tensor.shape) for name, tensor in encoder.state_dict().items()), seed))
    write_hugging_face(encoder, work / "encoder" / "hf")
    (work / "voice").mkdir(parents=True, exist_ok=True)
    write_voice(work / "voice" / "voice.pth", "v1", seed=seed, config=VOICE_CONFIG)
    clips = [np.asarray(soundfile.read(path, dtype="float32")[0], np.float32) for path in sorted(CLIPS.glob("*.wav"))]
    features = [encoder.features(torch.from_numpy(clip)[None], "v1")[0].numpy() for clip in clips]
    np.save(work / "voice" / "features.npy", np.concatenate(features))
    return median_pitch(estimate_pitch(clips[0], MEDIAN_METHOD)) or 0.0
