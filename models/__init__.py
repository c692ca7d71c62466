"""The networks in plain PyTorch, with upstream's part names, and safe reading of their checkpoints."""

from .checkpoint import HubertCheckpoint, Voice, load_hubert, load_voice, read_hubert
from .config import VoiceConfig
from .host import ContentHost, VoiceHost, WaveformNorm
from .hubert import Hubert, HubertConfig
from .source import frame_phases, harmonic_source
from .synthesizer import Synthesizer, sample_prior

__all__ = [
    "ContentHost",
    "Hubert",
    "HubertCheckpoint",
    "HubertConfig",
    "Synthesizer",
    "Voice",
    "VoiceConfig",
    "VoiceHost",
    "WaveformNorm",
    "frame_phases",
    "harmonic_source",
    "load_hubert",
    "load_voice",
    "read_hubert",
    "sample_prior",
]
