"""Reading weight files without running anything in them.

`reading` opens the containers (torch zip, torch legacy, safetensors) and returns plain tensors and values; `state`
checks entries against a network and folds weight norm; `voice`, `hubert` and `pitch` know the kinds of file.
"""

from .hubert import HubertCheckpoint, load_hubert, read_hubert
from .pitch import PitchCheckpoint, load_pitch
from .voice import Voice, load_voice

__all__ = ["HubertCheckpoint", "PitchCheckpoint", "Voice", "load_hubert", "load_pitch", "load_voice", "read_hubert"]
