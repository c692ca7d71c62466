"""The synthesizer as upstream traces it: what stays in PyTorch, how much is in packages, and the audio with the same noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from convert_whole_synthesizer import LEAST_DB, LEAST_SHARE, Converted, convert_whole
from rvc_coreml.models import Synthesizer, VoiceConfig, load_voice
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.config import PHONE_CHANNELS
from seeded_checkpoints import write_voice
from support.checkpoints import small_config, voice_state
from support.small_networks import voice

SOURCE, PRIOR = "m_source.l_sin_gen", "prior"
NATURE = {"randomness", "phase"}
PHASE = {"aten.cumsum.default", "aten.remainder.Scalar", "aten.upsample_linear1d.vec", "aten.sin.default", "aten.cat.default"}


def check(converted: Converted) -> None:
    """Acceptance of the whole synthesizer, the rule and the place of every operation in PyTorch included."""
    assert converted.share_in_packages >= LEAST_SHARE
    assert converted.snr_db >= LEAST_DB
    assert 0.98 < converted.level < 1.02
    found = converted.findings
    assert len(found) == converted.model.plan.totals["operations_in_pytorch"]
    for item in found:
        assert item["rule"] in NATURE or item["rule"].startswith("denied:") or item["rule"] == "island", item
        # An island is what is not worth its crossings: it may only lie between the others.
        assert item["module"] in (SOURCE, PRIOR) or (item["rule"] == "island" and item["flops"] == 0), item
    drawn = sorted((item["module"], item["operation"]) for item in found if item["rule"] == "randomness")
    assert drawn == [(SOURCE, "aten.rand.default"), (SOURCE, "aten.randn_like.default"), (PRIOR, "aten.randn_like.default")]
    assert {item["operation"] for item in found if item["module"] == SOURCE} >= PHASE
    for part in converted.model.plan.packages:
        assert part.precision == "fp16"


def test_narrow_voice_keeps_noise_and_phase_in_pytorch_and_all_else_in_packages() -> None:
    """Of a few layers, so that conversion takes seconds; the full size is below."""
    shallow = {"n_layers": 1, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]], "upsample_initial_channel": 64}
    config = small_config("v2", 40000, upsample_rates=[20, 20], upsample_kernel_sizes=[40, 40], **shallow)
    synthesizer = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS["v2"], f0=True)
    synthesizer.load_state_dict(fold_weight_norm(Path("seeded"), voice_state(config, "v2", True)))
    check(convert_whole("narrow", synthesizer.eval(), 20))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v2", "v1"])
def test_full_size(version: str, tmp_path: Path) -> None:
    check(convert_whole(version, load_voice(write_voice(tmp_path / "voice.pth", version)).synthesizer, 60))


@pytest.mark.slow
def test_without_f0_only_the_prior_is_drawn() -> None:
    converted = convert_whole("narrow without f0", voice("v2", 40000, False), 20)
    assert {item["operation"] for item in converted.findings if item["rule"] != "island"} == {"aten.randn_like.default"}
    assert converted.snr_db >= LEAST_DB
