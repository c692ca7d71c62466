"""The map from operation names to modules, which packages themselves do not keep."""

from __future__ import annotations

import pytest
import torch
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.stages import VOICE_STAGES, content_encoder_stage, voice_stage
from support.checkpoints import write_small_hubert, write_voice


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    synthesizer = load_voice(write_voice(folder / "voice.pth")).synthesizer
    hubert = load_hubert(write_small_hubert(folder / "hubert"))
    return {"content_encoder": content_encoder_stage(hubert, 40), **{name: voice_stage(name, synthesizer, 40) for name in VOICE_STAGES}}


@pytest.mark.parametrize("name", ["content_encoder", *VOICE_STAGES])
def test_every_weighted_module_is_named_once_and_every_path_exists(stages, name):
    stage = stages[name]
    operations = convert_stage(stage, "fp16").operations
    paths = set(operations.values())
    modules = dict(stage.named_modules())
    assert paths <= set(modules)
    weighted = {
        path
        for path, module in modules.items()
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.Linear, torch.nn.LayerNorm))
    }
    assert weighted <= paths | {"enc_p.emb_pitch", "dec.m_source.l_linear"}
    assert all(list(operations.values()).count(path) >= 1 for path in weighted & paths)


def test_twins_that_differ_only_by_their_container_are_told_apart(stages):
    paths = set(convert_stage(stages["decoder"], "fp16").operations.values())
    assert {"dec.resblocks.0.convs1.0", "dec.resblocks.0.convs2.0", "dec.ups.0", "dec.noise_convs.0"} <= paths
    paths = set(convert_stage(stages["text_encoder"], "fp16").operations.values())
    assert {"enc_p.encoder.norm_layers_1.1", "enc_p.encoder.norm_layers_2.1", "enc_p.encoder.attn_layers.1"} <= paths


def test_operations_without_weights_are_named_by_their_module(stages):
    result = convert_stage(stages["text_encoder"], "fp32")
    softmax = [path for name, path in result.operations.items() if name.startswith("softmax")]
    assert softmax == ["enc_p.encoder.attn_layers.0", "enc_p.encoder.attn_layers.1"]
