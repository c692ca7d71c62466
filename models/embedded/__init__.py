"""The voice that comes with rvc-coreml: a small content encoder, a v1 voice, its index and a pitch model, trained by us.

The files are what users bring: a Hugging Face HuBERT directory, an RVC `.pth`, a faiss index, an ONNX file. They lie beside this
module with `manifest.json`, which has their hashes and licences, and MODEL_CARD.md; `tools/train_embedded` makes all of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...errors import UnreadableCheckpoint
from ..checkpoint.reading import read_json

FOLDER = Path(__file__).parent
MANIFEST = "manifest.json"
CONTENT_ENCODER, VOICE, INDEX, PITCH, CARD = "content_encoder", "voice.pth", "voice.index", "swift_f0.onnx", "MODEL_CARD.md"
PITCH_LICENCE = "LICENSE-swift_f0.txt"  # which asks to go where the model goes
CONTENT_ENCODER_FILES = (f"{CONTENT_ENCODER}/config.json", f"{CONTENT_ENCODER}/model.safetensors")
REMEDY = "install rvc-coreml again"


@dataclass(frozen=True)
class EmbeddedFile:
    """A file as it was made: size in bytes, SHA-256, under which licence, made by what."""

    path: Path
    bytes: int
    sha256: str
    licence: str
    made_by: str

    def check(self) -> None:
        """Raises UnreadableCheckpoint where the file is missing or is another one."""
        if not self.path.is_file():
            raise UnreadableCheckpoint(f"the embedded voice's {self.path} is missing: {REMEDY}")
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UnreadableCheckpoint(f"the embedded voice's {self.path} cannot be read ({error.strerror}): {REMEDY}") from error
        if len(content) != self.bytes or hashlib.sha256(content).hexdigest() != self.sha256:
            raise UnreadableCheckpoint(f"{self.path} is not what rvc-coreml came with, its SHA-256 differs: {REMEDY}")


@dataclass(frozen=True)
class Embedded:
    """The manifest. `median_pitch` is the target's own speech's, in Hz, `index_rate` the recommended share of retrieved features, 0 to 1;
    `seeded` says that the weights are random stand-ins.
    """

    name: str
    seeded: bool
    median_pitch: float
    index_rate: float
    files: dict[str, EmbeddedFile]

    def path(self, what: str) -> Path:
        """A file, or the content encoder's folder, checked against the manifest. Raises UnreadableCheckpoint."""
        names = [name for name in self.files if name == what or name.startswith(f"{what}/")]
        if not names:
            raise UnreadableCheckpoint(f"the embedded voice has no {what}: {REMEDY}")
        for name in names:
            self.files[name].check()
        first = self.files[names[0]].path
        return first if names == [what] else first.parent


def read_embedded(folder: Path = FOLDER) -> Embedded:
    """The manifest of a folder with an embedded voice. Raises UnreadableCheckpoint where it is missing or damaged."""
    path = folder / MANIFEST
    values = read_json(path)
    try:
        files = {
            str(name): EmbeddedFile(folder / name, int(one["bytes"]), str(one["sha256"]), str(one["licence"]), str(one["made_by"]))
            for name, one in values["files"].items()
        }
        pitch, rate = float(values["median_pitch_hz"]), float(values["index_rate"])
        return Embedded(str(values["name"]), bool(values["seeded"]), pitch, rate, files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableCheckpoint(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error


def embedded_path(what: str) -> Path:
    """Where a part of the installed embedded voice lies (`CONTENT_ENCODER`, `VOICE`, `INDEX`, `PITCH`, `PITCH_LICENCE`, `CARD`), checked.

    Raises UnreadableCheckpoint for a file that is missing or has changed.
    """
    return read_embedded().path(what)
