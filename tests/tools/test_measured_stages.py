"""What the measuring tools put through stages with --embedded: the voice that comes along, on recorded speech."""

from __future__ import annotations

import numpy as np
import pytest
from measured_stages import RECORDINGS, TRAINED, asked_networks, real_case, recorded_speech, stages_of
from rvc_coreml.models.embedded import read_embedded
from rvc_coreml.models.hubert import Hubert
from rvc_coreml.models.synthesizer import Synthesizer
from rvc_coreml.runtime.pitch import FRAME_RATE, SAMPLE_RATE


def test_stages_of_the_embedded_voice_get_recorded_speech() -> None:
    content, voice = asked_networks([], True)
    assert [content[0], voice[0]] == [TRAINED, TRAINED]
    assert isinstance(content[1], Hubert)
    assert isinstance(voice[1], Synthesizer)
    clip = voice[2]
    seconds = len(clip.samples) / SAMPLE_RATE
    assert len(list(RECORDINGS.glob("*.wav"))) == 3
    assert len(clip.samples) == len(recorded_speech()) > 15 * SAMPLE_RATE
    assert clip.features.shape == (content[1].config.frames(len(clip.samples)), voice[1].phone_channels)
    assert len(clip.pitch) == pytest.approx(seconds * FRAME_RATE, abs=2)
    voiced = clip.pitch[clip.pitch > 0]
    assert 0.2 < len(voiced) / len(clip.pitch) < 0.9
    assert 80 < float(np.median(voiced)) < 300  # a reader's

    stages = [stage for stage in stages_of(voice[1], "plain") if stage.name in ("text_encoder", "decoder")]
    cases = {stage.name: (stage, real_case(voice[1], stage, clip)) for stage in stages}
    stage, golden = cases["text_encoder"]
    expected = np.repeat(clip.features, 2, axis=0)[400 : 400 + stage.window]
    assert np.array_equal(golden.inputs["phone"][0], expected)
    audio = cases["decoder"][1].outputs["audio"]
    assert np.isfinite(audio).all()
    if not read_embedded().seeded:
        assert 0.05 < np.abs(audio).max() < 1  # speech, not silence
