"""Reading weight files without running anything in them.

`reading` opens the containers (torch zip, torch legacy, safetensors) and returns plain tensors and values; `state`
checks entries against a network and folds weight norm; `voice` and `hubert` know the two kinds of file.
"""

from .hubert import HubertCheckpoint, load_hubert, read_hubert
from .voice import Voice, load_voice

__all__ = ["HubertCheckpoint", "Voice", "load_hubert", "load_voice", "read_hubert"]
