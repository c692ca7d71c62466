"""Narrow networks with seeded weights, made once."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from rvc_coreml.models import Hubert, Synthesizer, VoiceConfig
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.config import PHONE_CHANNELS
from torch import Tensor

from .checkpoints import SMALL_HUBERT, hubert_state, small_config, voice_state


@cache
@torch.inference_mode(False)  # whoever asks first: inference tensors cannot be traced by the next
def hubert() -> Hubert:
    network = Hubert(SMALL_HUBERT)
    state = fold_weight_norm(Path("seeded"), hubert_state(SMALL_HUBERT))
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.eval()


@cache
@torch.inference_mode(False)
def exact_hubert() -> Hubert:
    return copy.deepcopy(hubert()).double()


@cache
@torch.inference_mode(False)
def voice(version: str, rate: int, f0: bool, resblock: str = "1") -> Synthesizer:
    config = small_config(version, rate, resblock=resblock)
    synthesizer = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS[version], f0)
    synthesizer.load_state_dict(fold_weight_norm(Path("seeded"), voice_state(config, version, f0)))
    return synthesizer.eval()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
