"""Full-size checkpoints in their real file formats, filled with seeded weights.

They stand in for trained ones where none can be had: formats, shapes, sizes and speed are real, the sound is not a
trained voice's. The HuBERT file is laid out as fairseq writes it, objects of fairseq's own included.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rvc_coreml.golden_outputs
import torch
from rvc_coreml.golden_outputs.seeded_weights import seeded_tensor
from rvc_coreml.models import Hubert, HubertConfig, Synthesizer, VoiceConfig
from rvc_coreml.models.config import PHONE_CHANNELS
from torch import Tensor

# (version, rate in Hz) -> upsampling rates and kernels, as RVC's own configurations have them.
UPSAMPLING = {
    ("v1", 32000): ([10, 4, 2, 2, 2], [16, 16, 4, 4, 4]),
    ("v1", 40000): ([10, 10, 2, 2], [16, 16, 4, 4]),
    ("v1", 48000): ([10, 6, 2, 2, 2], [16, 16, 4, 4, 4]),
    ("v2", 24000): ([10, 6, 2, 2], [20, 12, 4, 4]),
    ("v2", 32000): ([10, 8, 2, 2], [20, 16, 4, 4]),
    ("v2", 40000): ([10, 10, 2, 2], [16, 16, 4, 4]),
    ("v2", 48000): ([12, 10, 2, 2], [24, 20, 4, 4]),
}
SPEAKERS = 109
# Modules whose weight the checkpoints store as weight_g and weight_v.
_NORMED = ("dec.ups.", "dec.resblocks.", ".enc.in_layers.", ".enc.res_skip_layers.", ".enc.cond_layer.")


def voice_config(version: str, kilohertz: int) -> list[Any]:
    """The 18-entry config of a voice."""
    rates, kernels = UPSAMPLING[version, kilohertz * 1000]
    spectrogram = 513 if kilohertz == 32 else 1025
    blocks = [[3, 7, 11], [[1, 3, 5], [1, 3, 5], [1, 3, 5]]]
    return [spectrogram, 32, 192, 192, 768, 2, 6, 3, 0, "1", *blocks, rates, 512, kernels, SPEAKERS, 256, kilohertz * 1000]


def write_voice(
    path: Path,
    version: str = "v2",
    kilohertz: int = 40,
    f0: bool = True,
    seed: int = 0,
    half: bool = True,
    config: list[Any] | None = None,
) -> Path:
    """A voice as RVC-WebUI saves it: half precision (float32 without `half`), weight norm unfolded; `config` in place of RVC's own."""
    config = voice_config(version, kilohertz) if config is None else config
    with torch.device("meta"):
        network = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS[version], f0)
    weights = {}
    for name, tensor in network.state_dict().items():
        for entry, shape in _entries(name, tuple(tensor.shape)):
            tensor = seeded_tensor(entry, shape, seed)
            weights[entry] = tensor.half() if half else tensor
    info = "seeded weights, not a trained voice"
    torch.save({"weight": weights, "config": config, "info": info, "sr": f"{kilohertz}k", "f0": int(f0), "version": version}, path)
    return path


def write_hubert(path: Path, seed: int = 0, half: bool = True) -> Path:
    """A content encoder as fairseq saves `hubert_base.pt`: half precision (or float32), with fairseq's own objects around it."""
    with torch.device("meta"):
        network = Hubert(HubertConfig())
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name == "encoder.pos_conv.0.weight":  # its norm leaves the kernel axis
            shapes = {"weight_g": (1, 1, tensor.shape[2]), "weight_v": tuple(tensor.shape)}
            state |= {
                f"encoder.pos_conv.0.{part}": seeded_tensor(f"encoder.pos_conv.0.{part}", shape, seed) for part, shape in shapes.items()
            }
        else:
            state[name] = seeded_tensor(name, tuple(tensor.shape), seed)
    state["mask_emb"] = seeded_tensor("mask_emb", (network.config.hidden,), seed)
    state["label_embs_concat"] = seeded_tensor("label_embs_concat", (504, 256), seed)
    with fairseq_dictionary() as dictionary:
        content = {
            "args": argparse.Namespace(arch="hubert_base"),
            "cfg": {"task": {"_name": "hubert_pretraining", "normalize": False}, "model": {"_name": "hubert"}},
            "model": {name: tensor.half() if half else tensor for name, tensor in state.items()},
            "criterion": None,
            "optimizer_history": [{"num_updates": 0}],
            "task_state": {"dictionaries": [dictionary(["<s>", "<pad>"])]},
            "extra_state": {"epoch": 0},
            "last_optimizer_state": None,
        }
        torch.save(content, path)
    return path


def write_rmvpe(path: Path, seed: int = 0) -> Path:
    """RMVPE as RVC-WebUI's `rmvpe.pt` holds it: a flat state dict in float32."""
    shapes = json.loads((Path(rvc_coreml.golden_outputs.__file__).parent / "upstream" / "checkpoint_shapes.json").read_text())["rmvpe"]
    torch.save({name: seeded_tensor(name, shape, seed) for name, shape in shapes.items()}, path)
    return path


def _entries(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """A parameter as the checkpoint stores it: itself, or the two halves of its weight norm."""
    if name.endswith(".weight") and any(part in name for part in _NORMED):
        base = name.removesuffix(".weight")
        return [(f"{base}.weight_g", (shape[0], *[1] * (len(shape) - 1))), (f"{base}.weight_v", shape)]
    return [(name, shape)]


@contextmanager
def fairseq_dictionary() -> Iterator[type]:
    """fairseq.data.dictionary.Dictionary, importable only while the block lasts, so that a file can refer to it."""
    names = ("fairseq", "fairseq.data", "fairseq.data.dictionary")

    class Dictionary:
        def __init__(self, symbols: list[str]) -> None:
            self.symbols = symbols
            self.count = [1] * len(symbols)
            self.indices = {symbol: index for index, symbol in enumerate(symbols)}

    Dictionary.__module__, Dictionary.__qualname__ = names[-1], "Dictionary"
    sys.modules.update({name: types.ModuleType(name) for name in names})
    vars(sys.modules[names[-1]])["Dictionary"] = Dictionary
    try:
        yield Dictionary
    finally:
        for name in names:
            del sys.modules[name]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(write_hubert(folder / "hubert_base.pt"), write_voice(folder / "seeded_v2_40k.pth"))
