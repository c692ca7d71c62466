"""A narrow library without packages, for what only PyTorch reads; quicker to make than a conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rvc_coreml.runtime.library import Library
from torch_library import write_torch_library

from .checkpoints import SMALL_HUBERT, small_config, write_small_hubert, write_voice
from .rmvpe_checkpoints import write_rmvpe

WINDOWS = {"content_encoder": 120, "text_encoder": 260, "flow": 100, "decoder": 60, "pitch": 96}  # narrow too
WIDE = replace(SMALL_HUBERT, hidden=768, heads=12, feed_forward=32, layers=1, position_groups=16, projection=256)


def narrow_library(folder: Path, goldens: bool = False) -> Library:
    """A content encoder that feeds v1 and v2, the voices `v2`, `v1` and `nof0`, and an RMVPE."""
    voices = {
        "v2": write_voice(folder / "v2.pth"),
        "v1": write_voice(folder / "v1.pth", version="v1", config=small_config("v1", 48000)),
        "nof0": write_voice(folder / "nof0.pth", f0=False),
    }
    hubert = write_small_hubert(folder / "hubert", config=WIDE)
    pitch = [write_rmvpe(folder / "rmvpe.pt")]
    return write_torch_library(folder / "library", hubert, voices, pitch, goldens=goldens, windows=WINDOWS)
