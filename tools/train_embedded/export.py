"""The step `export`: what training has left in a work folder becomes models/embedded, with hashes, model card and documents.

Takes W/encoder/hf, W/voice/voice.pth, W/voice/features.npy, the target's shards (for its median pitch), the logs, and
where they are there W/evaluation.json and W/run.md, in which a person tells on which machine and in how many pieces it was run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from documents import fill
from numpy.typing import NDArray
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.embedded import CARD, CONTENT_ENCODER, CONTENT_ENCODER_FILES, FOLDER, INDEX, MANIFEST, PITCH, PITCH_LICENCE, VOICE
from rvc_coreml.runtime.files import atomic_folder, atomic_path, sha256, write_json
from rvc_coreml.runtime.pitch import estimate_pitch

from .card import Facts, blocks, model_card, read_log
from .index import build_index
from .settings import INDEX_RATE, MEDIAN_METHOD, WRITER, median_pitch
from .shards import read_shard
from .sources import TrainingError
from .stand_in import write_stand_in

ROOT = Path(__file__).resolve().parents[2]
NAME = "joe"
MAX_BYTES = 20_000_000  # of the encoder and of the voice
PITCH_SECONDS = 60  # of the target's speech, from which its median pitch is taken
RATE = 16000
OWN = "tools/train_embedded of rvc-coreml"
SWIFT_F0 = ("MIT", "swift-f0 0.3.0, Lars Nieradzik")
LICENCES = {PITCH: SWIFT_F0, PITCH_LICENCE: SWIFT_F0}  # file -> licence, made by; all others are ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, default=FOLDER, help="folder to write (default: models/embedded)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of embedded_voice.md")
    parser.add_argument(
        "--stand-in", action="store_true", help="seeded random weights in place of trained ones; reads nothing of the work folder"
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises an RvcCoremlError where something is missing or is not what it has to be."""
    if arguments.stand_in:
        with tempfile.TemporaryDirectory() as folder:
            pitch = write_stand_in(Path(folder))
            export(Path(folder), arguments.target, pitch, seeded=True)
        return
    pitch = own_pitch(target_speech(arguments.work, PITCH_SECONDS))
    write_page(arguments.docs / "embedded_voice.md", export(arguments.work, arguments.target, pitch))


def export(work: Path, target: Path, pitch: float, *, seeded: bool = False) -> Facts:
    """Write the folder of the embedded voice, whole or not at all; its Python files stay.

    `pitch` is the target's median in Hz. SwiftF0's files are the folder's own, since nothing here makes them. Raises
    TrainingError, CheckpointError, OutputError.
    """
    sources = {name: work / "encoder" / "hf" / Path(name).name for name in CONTENT_ENCODER_FILES}
    sources |= {VOICE: work / "voice" / "voice.pth", PITCH: target / PITCH, PITCH_LICENCE: target / PITCH_LICENCE}
    features = work / "voice" / "features.npy"
    for path in (*sources.values(), features):
        if not path.is_file():
            raise TrainingError(f"{path} is not there: run the training steps first; SwiftF0's files are in git")
    with atomic_folder(target, replace=True) as folder:
        for module in target.glob("*.py"):
            shutil.copyfile(module, folder / module.name)
        (folder / CONTENT_ENCODER).mkdir()
        for name, source in sources.items():
            shutil.copyfile(source, folder / name)
        build_index(np.load(features), folder / INDEX)
        check_networks(folder)
        facts = Facts(
            seeded,
            pitch,
            {step: read_log(work / step / "log.jsonl") for step in ("encoder", "vocoder", "voice")},
            evaluation(work),
            course(work),
        )
        (folder / CARD).write_text(model_card(facts), encoding="utf-8")
        files = {name: described(folder / name, name) for name in (*sources, INDEX, CARD)}
        facts_of_use = {"median_pitch_hz": round(pitch, 1), "index_rate": INDEX_RATE}
        write_json(folder / MANIFEST, {"name": NAME, "seeded": seeded, **facts_of_use, "files": files})
    return facts


def described(path: Path, name: str) -> dict[str, str | int]:
    """A file as the manifest has it."""
    licence, made_by = LICENCES.get(name, ("MIT", OWN))
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "licence": licence, "made_by": made_by}


def check_networks(folder: Path) -> None:
    """Raises TrainingError where encoder and voice are no pair, or too large to ship; a CheckpointError where one is damaged."""
    encoder, voice = load_hubert(folder / CONTENT_ENCODER), load_voice(folder / VOICE)
    if encoder.config.projection != 256 or voice.version != "v1" or not voice.has_f0:
        raise TrainingError("the content encoder has to project to 256 channels, and the voice to be a v1 voice with f0")
    for name in (CONTENT_ENCODER_FILES[1], VOICE):
        size = (folder / name).stat().st_size
        if size > MAX_BYTES:
            raise TrainingError(f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} that may be shipped: train a smaller one")


def target_speech(work: Path, seconds: float) -> NDArray[np.float32]:
    """The target's own speech from its shards, (N,) at 16 kHz, up to so many seconds. Raises TrainingError where there is none."""
    found = [clip.audio for path in target_shards(work)[:1] for clip in read_shard(path)]
    joined = np.concatenate(found)[: round(seconds * RATE)]
    return (joined / 32768).astype(np.float32)


def target_shards(work: Path) -> list[Path]:
    """Raises TrainingError where there is none."""
    shards = sorted((work / "shards").glob("target_*.npz"))
    if not shards:
        raise TrainingError(f"{work / 'shards'} holds no target_*.npz, the target's speech: run the step generate first")
    return shards


def own_pitch(audio: NDArray[np.float32]) -> float:
    """The median in Hz of the target's speech, 16 kHz (N,). Raises TrainingError where nothing is voiced."""
    pitch = median_pitch(estimate_pitch(audio, MEDIAN_METHOD))
    if pitch is None:
        raise TrainingError("the target's speech has no voiced frame: look at its shards")
    return pitch


def evaluation(work: Path) -> dict[str, object] | None:
    """What evaluate.py has measured, or None where it has not run. Raises TrainingError for a damaged file."""
    path = work / "evaluation.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path} is not readable JSON: run the evaluation again") from error


def course(work: Path) -> str:
    """What a person has written into W/run.md of how the run went; nothing where there is none."""
    path = work / "run.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write_page(page: Path, facts: Facts) -> None:
    """The figures of docs/embedded_voice.md."""
    text = page.read_text(encoding="utf-8")
    for block, content in blocks(facts).items():
        text = fill(text, block, content, WRITER)
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
