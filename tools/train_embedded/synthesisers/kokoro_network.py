"""Kokoro-82M as the `kokoro` package's PyTorch modules compute it, with the pitch in the caller's hands.

The package itself wants a phonemiser and a model hub when it is imported; its three files of networks do not. They lie in the
bundle as they were published, and are imported from there. ALBERT comes from `transformers`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..pack import PACKAGE

SYMBOLS, WIDTH, STYLE = 178, 512, 128
# config.json of Kokoro-82M, as far as its shapes depend on it.
_ALBERT: dict[str, Any] = {
    "vocab_size": SYMBOLS,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 2048,
    "max_position_embeddings": 512,
    "num_hidden_layers": 12,
}
_ISTFTNET: dict[str, Any] = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "upsample_rates": [10, 6],
    "upsample_kernel_sizes": [20, 12],
    "upsample_initial_channel": 512,
    "gen_istft_n_fft": 20,
    "gen_istft_hop_size": 5,
}
_MAX_DURATION, _LAYERS, _KERNEL, _MELS = 50, 3, 5, 80

Pitch = Callable[[Tensor], Tensor]


def published_modules(folder: Path) -> tuple[Any, Any]:
    """The package's modules `modules` and `istftnet`, from its files in `folder`/kokoro, which has no __init__.py."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{PACKAGE}.modules"), importlib.import_module(f"{PACKAGE}.istftnet")
    finally:
        sys.path.remove(str(folder))


class KokoroNetwork(nn.Module):
    """Symbols and a style to speech at 24 kHz and the units of 25 ms that each symbol lasts."""

    def __init__(self, folder: Path, numbers: Mapping[str, NDArray[np.float32]]) -> None:
        """`numbers` as `kokoro_weights.expanded` gives them. Raises ValueError where they are not those of these modules."""
        from transformers import AlbertConfig

        super().__init__()
        modules, istftnet = published_modules(folder)
        self.bert = modules.CustomAlbert(AlbertConfig(**_ALBERT))
        self.bert_encoder = nn.Linear(_ALBERT["hidden_size"], WIDTH)
        self.predictor = modules.ProsodyPredictor(style_dim=STYLE, d_hid=WIDTH, nlayers=_LAYERS, max_dur=_MAX_DURATION)
        self.text_encoder = modules.TextEncoder(channels=WIDTH, kernel_size=_KERNEL, depth=_LAYERS, n_symbols=SYMBOLS)
        self.decoder = istftnet.Decoder(dim_in=WIDTH, style_dim=STYLE, dim_out=_MELS, **_ISTFTNET)
        for module in self.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
        state = {name: torch.from_numpy(value.copy()) for name, value in numbers.items()}
        missing, extra = self.load_state_dict(state, strict=False)
        # Neither is used: the pooled output, and scales of instance norms, which were trained without and stay at 1 and 0.
        missing = [name for name in missing if not re.search(r"^bert\.pooler\.|\.norm\.(weight|bias)$", name)]
        if missing or extra:
            raise ValueError(f"Kokoro's weights do not fit its modules: {', '.join([*missing, *extra])}")
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, timbre: Tensor, manner: Tensor, speed: float, pitch: Pitch | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (1, S) and two halves of a style (1, 128) -> speech (samples,) and units (S,).

        `timbre` is what the decoder hears, `manner` what the prosody is predicted from. `pitch` is given the contour (1, frames) in Hz,
        80 frames a second and not above 10 Hz where unvoiced, and returns the one that is spoken.
        """
        count = torch.tensor([tokens.shape[1]])
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        read = self.bert_encoder(self.bert(tokens, attention_mask=torch.ones_like(tokens))).transpose(1, 2)
        encoded = self.predictor.text_encoder(read, manner, count, nothing)
        states, _ = self.predictor.lstm(encoded)
        lengths = torch.sigmoid(self.predictor.duration_proj(states)).sum(2) / speed
        units = lengths.round().clamp_min(1).long()[0]
        places = torch.repeat_interleave(units)
        contour, energy = self.predictor.F0Ntrain(encoded[:, places].transpose(1, 2), manner)
        contour = contour if pitch is None else pitch(contour)
        spoken = self.text_encoder(tokens, count, nothing)[:, :, places]
        return self.decoder(spoken, contour, energy, timbre).flatten(), units
