"""What is computed in pieces, or in another order, equals what is computed at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models import text_encoder
from rvc_coreml.models.hubert import SelfAttention
from rvc_coreml.models.stages import content_encoder_stage, voice_stage
from rvc_coreml.models.text_encoder import MultiHeadAttention
from support.small_networks import hubert, normal, voice

KINDS = [("v2", 40000, True, "1"), ("v1", 32000, False, "1"), ("v2", 24000, True, "2")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(frames=st.integers(20, 90), piece=st.integers(1, 30000), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_a_decoder_in_pieces_equals_the_whole(kind: tuple[str, int, bool, str], frames: int, piece: int, seed: int) -> None:
    synthesizer = voice(*kind)
    config = synthesizer.config
    z, g = normal(seed, 1, config.inter_channels, frames), synthesizer.speaker_embedding(0)
    source = normal(seed + 1, 1, 1, frames * config.samples_per_frame) if synthesizer.has_f0 else None
    whole = synthesizer.dec(z, g, source)
    torch.testing.assert_close(synthesizer.dec(z, g, source, piece=piece), whole, rtol=0, atol=2e-6 * float(whole.abs().max()) + 1e-9)


@torch.inference_mode()
def test_pieces_without_their_margin_would_show() -> None:
    synthesizer = voice("v2", 40000, True)
    z, g, source = normal(0, 1, 16, 80), synthesizer.speaker_embedding(0), normal(1, 1, 1, 80 * 400)
    whole = synthesizer.dec(z, g, source)
    cut = torch.cat([synthesizer.dec(z[:, :, :40], g, source[:, :, :16000]), synthesizer.dec(z[:, :, 40:], g, source[:, :, 16000:])], dim=2)
    assert float((cut - whole).abs().max()) > 1e-4 * float(whole.abs().max())


@pytest.mark.parametrize("masked", [False, True])
@given(frames=st.integers(1, 90), rows=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
@torch.inference_mode()
def test_attention_in_rows_equals_the_square(masked: bool, frames: int, rows: int, seed: int) -> None:
    attention = MultiHeadAttention(16, 2)
    torch.manual_seed(seed)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = normal(seed, 1, 16, frames)
    bias = None if not masked else -1e4 * (torch.arange(frames) >= max(1, frames - 7)).float().reshape(1, 1, -1)
    whole = attention(x, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "WHOLE_FRAMES", 0)
        patch.setattr(text_encoder, "QUERY_BLOCK", rows)
        torch.testing.assert_close(attention(x, bias), whole, rtol=1e-5, atol=1e-5)


@given(frames=st.integers(1, 60), piece=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
@torch.inference_mode()
def test_convolutions_of_the_content_encoder_in_pieces_equal_the_whole(frames: int, piece: int) -> None:
    extractor, config = hubert().feature_extractor, hubert().config
    waveform = normal(0, 1, config.samples(frames) + 100)
    scale, shift = normal(1, 1, 16, 1), normal(2, 1, 16, 1)
    torch.testing.assert_close(
        extractor.with_statistics(waveform, scale, shift, piece), extractor.with_statistics(waveform, scale, shift), rtol=1e-5, atol=1e-5
    )


@torch.inference_mode()
def test_fused_attention_equals_the_written_one() -> None:
    attention = SelfAttention(32, 4).eval()
    x = normal(3, 1, 50, 32)
    fused = attention(x)
    attention.fused = False
    torch.testing.assert_close(fused, attention(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wanted", ["features_v1", "features_v2"])
@torch.inference_mode()
def test_one_wanted_output_equals_that_of_all_and_runs_no_layer_beyond_it(wanted: str) -> None:
    stage = content_encoder_stage(hubert(), 40)
    waveform = normal(4, 1, hubert().config.samples(23))
    inputs = {"waveform": waveform, "norm_scale": normal(5, 1, 16, 1), "norm_shift": normal(6, 1, 16, 1)}
    everything = stage.compute(inputs)
    alone = stage.compute(inputs, wanted)
    assert list(alone) == [wanted]
    torch.testing.assert_close(alone[wanted], everything[wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["text_encoder", "flow", "decoder"])
@torch.inference_mode()
def test_a_stage_without_its_mask_equals_one_with_a_full_mask(name: str) -> None:
    stage = voice_stage(name, voice("v2", 40000, True), 12)
    inputs = {spec.name: normal(index, *spec.shape) for index, spec in enumerate(stage.inputs)}
    masked = stage.compute({**inputs, "mask": stage.mask(12)})
    del inputs["mask"]
    for output, values in stage.compute(inputs).items():
        torch.testing.assert_close(values, masked[output], rtol=1e-5, atol=1e-5)
