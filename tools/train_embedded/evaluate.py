"""The step `evaluate`: what the trained voice does to speech that it was not trained on.

Clips are converted by the project's own pipeline through PyTorch, moved by whole semitones towards the target's median pitch; the
LibriVox clips with several seeds of the noise, since the words that a short clip keeps vary with it: the median counts. Then
recognisers read original and conversion, a speaker encoder says whom they sound like, two pitch estimators whether the melody
followed, and DNSMOS how good they sound. What the measures say where the answer is known stands beside the figures. Writes
W/evaluation.json; with --docs also the document's figures, examples to listen to, and a picture.

    python -m train_embedded evaluate --work W --quick       between training runs: the LibriVox clips, below two minutes
    python -m train_embedded evaluate --work W --docs ../docs
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image
from rvc_coreml.models.embedded import CONTENT_ENCODER, INDEX, PITCH, VOICE, embedded_path
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.files import atomic_path, write_json
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.pitch import choose_method, estimate_pitch

from .evaluated_library import Checkpoints, evaluated_library
from .evaluation_page import clip_summary, tables, write_page
from .held_out import LIBRIVOX, HeldOut, librivox, packaged_recordings, synthetic, target_speech
from .held_out_speech import TARGETS, held_out_speech
from .known_answers import known_answers
from .measuring import ESTIMATORS, RATE, RECOGNISERS, Recogniser, Samples, Speakers, mean_embedding, quality, require_packages, versions
from .pitch_error import pitch_error
from .settings import (
    INDEX_RATE,
    LEAST_MARGIN,
    LEAST_SHIFT,
    LEAST_SURVIVAL,
    MEDIAN_METHOD,
    MOST_SEMITONES,
    median_pitch,
    transposition,
)
from .sources import TrainingError
from .words import Alignment, align, joined, words_of

ROOT = Path(__file__).resolve().parents[2]
QUICK_TARGETS = 4  # clips of the target's own speech
SELF_CONVERSIONS = 4  # of the target's clips
COLOURS = 128  # of the picture: a third of the bytes, and no difference to see
EXAMPLE_SECONDS = 6.0  # the longest clip of the target's that is kept as an example
SEEDS = 5  # of the noise, with which the LibriVox clips are converted


@dataclass
class Measures:
    """All that listens, loaded once."""

    recognisers: dict[str, Recogniser]
    speakers: Speakers
    quality: Callable[[Samples], dict[str, float]] = quality

    @classmethod
    def load(cls, names: Sequence[str]) -> Measures:
        return cls({name: RECOGNISERS[name]() for name in names}, Speakers())


@dataclass(frozen=True)
class Target:
    """The target's own speech, of which nothing was trained on."""

    clips: list[HeldOut]
    embeddings: list[NDArray[np.float32]]
    pitch: float  # Hz, the median over all clips

    @property
    def embedding(self) -> NDArray[np.float32]:
        return mean_embedding(self.embeddings)

    def without(self, index: int) -> NDArray[np.float32]:
        """The mean embedding of all clips but one, which that one can be compared with."""
        return mean_embedding([*self.embeddings[:index], *self.embeddings[index + 1 :]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="LibriVox clips and one recogniser alone")
    parser.add_argument("--bundles", type=Path, help="where bundle_kokoro and bundle_rest lie (default: W)")
    parser.add_argument("--library", type=Path, help="an existing model library (default: made of the work folder's checkpoints)")
    parser.add_argument("--voice", default="joe", help="voice of that library (default: joe)")
    parser.add_argument("--embedded", action="store_true", help="the voice that comes with rvc-coreml, not the work folder's checkpoints")
    parser.add_argument("--f0-method", default="auto", help="pitch estimator of the conversion (default: the best that the library has)")
    parser.add_argument("--index-rate", type=float, default=INDEX_RATE, help=f"share of the retrieved features (default: {INDEX_RATE})")
    parser.add_argument(
        "--docs", type=Path, help="folder of embedded_voice.md: write its figures, and embedded/ with examples and a picture"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a LibriVox clip misses what has to hold")


def run(arguments: argparse.Namespace) -> None:
    """Raises RvcCoremlError with one sentence where something is missing, and under --check where a figure is not reached."""
    require_packages()
    start = time.perf_counter()
    work = Path(arguments.work)
    measures = Measures.load(["moonshine"] if arguments.quick else list(RECOGNISERS))
    speech = held_out_speech(work, arguments.bundles or work)
    target = own_speech(target_speech(speech, QUICK_TARGETS if arguments.quick else TARGETS), measures)
    known = [] if arguments.quick else known_answers(measures, librivox()[0], target.clips[0])
    wrong = [row["measure"] for row in known if not row["holds"]]
    if wrong:
        raise TrainingError(f"the measures do not say what is known, so nothing was measured with them: {'; '.join(wrong)}")
    clips = librivox() if arguments.quick else [*librivox(), *packaged_recordings(), *synthetic(speech)]
    library = Library.open(arguments.library) if arguments.library else evaluated_library(work, _checkpoints(work, arguments.embedded))
    name = arguments.voice if arguments.library else library.voice_names()[0]
    options = {"f0_method": arguments.f0_method, "index_rate": arguments.index_rate, "length": "input"}
    converter = VoiceConverter(library, name, backend="torch", device="cpu")
    result, sounds = evaluate(converter, clips, target, measures, options)
    result["known_answers"] = known
    result["made_with"] |= {"voice": name, "packages": versions(), "seconds": round(time.perf_counter() - start)}
    write_json(work / ("evaluation_quick.json" if arguments.quick else "evaluation.json"), result)
    print(tables(result))
    if arguments.docs is not None:
        write_page(arguments.docs / "embedded_voice.md", result)
        write_examples(arguments.docs / "embedded", clips, sounds, target, converter.sample_rate)
    problems = [problem for clip in result["clips"] if clip["group"] == LIBRIVOX for problem in clip["problems"]]
    if arguments.check and problems:
        raise TrainingError(f"{len(problems)} figures are not reached: {'; '.join(problems)}")


def _checkpoints(work: Path, embedded: bool) -> Checkpoints:
    if embedded:
        return Checkpoints(*(embedded_path(part) for part in (CONTENT_ENCODER, VOICE, PITCH, INDEX)))
    features = work / "voice" / "features.npy"
    return Checkpoints(
        work / "encoder" / "hf", work / "voice" / "voice.pth", embedded_path(PITCH), None, features if features.is_file() else None
    )


def own_speech(clips: list[HeldOut], measures: Measures) -> Target:
    pitch = median_pitch(contour(clips))
    if pitch is None:
        raise TrainingError("the target's speech has no voiced frame: look at its shards")
    return Target(clips, [measures.speakers.embedding(clip.samples) for clip in clips], pitch)


def evaluate(
    converter: VoiceConverter, clips: Sequence[HeldOut], target: Target, measures: Measures, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """All figures, and the conversions (N,) at the voice's rate by their clips' names."""
    shifts = speakers_shifts(clips, target.pitch)
    rows, sounds = [], {}
    for clip in clips:
        shift, seeds = shifts[clip.speaker], range(SEEDS if clip.group == LIBRIVOX else 1)
        made = [converter.convert(clip.samples, RATE, pitch=shift, seed=seed, **options)[0] for seed in seeds]
        sounds[clip.name] = made[0]
        first, *others = (_narrow(converted, converter.sample_rate) for converted in made)
        row = measured(clip, first, shift, target.embedding, measures)
        for name, recogniser in measures.recognisers.items():
            row["words"][name] = middle([row["words"][name], *(words_kept(clip, other, recogniser) for other in others)])
        rows.append(row)
    own = own_figures(converter, target, measures, options)
    primary = primary_recogniser(rows)
    for row in rows:
        row["problems"] = problems_of(row, primary)
    method = options["f0_method"]
    result = {
        "primary_recogniser": primary,
        "made_with": {
            "backend": "torch",
            "options": dict(options),
            "f0_method": choose_method(converter.pitch_models) if method == "auto" else method,
            "seeds": SEEDS,
            "transposition": f"whole semitones from the speaker's median pitch to the target's (both by {MEDIAN_METHOD}),"
            f" where that is {LEAST_SHIFT} or more",
            "target_pitch_hz": target.pitch,
            "target_clips": len(target.clips),
        },
        "clips": rows,
        "target": own,
    }
    return {"summary": clip_summary(result), **result}, sounds


def speakers_shifts(clips: Sequence[HeldOut], pitch: float) -> dict[str, int]:
    """Speaker -> whole semitones from the median over all of the speaker's clips to the target's."""
    shifts = {}
    for speaker in dict.fromkeys(clip.speaker for clip in clips):
        shifts[speaker] = transposition(contour([clip for clip in clips if clip.speaker == speaker]), pitch)
    return shifts


def contour(clips: Sequence[HeldOut]) -> NDArray[np.float64]:
    """Hz (T,) of all clips together, by the estimator whose medians count."""
    return np.concatenate([estimate_pitch(clip.samples, MEDIAN_METHOD) for clip in clips])


def middle(readings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reading of one clip's conversions that keeps the median number of words, with the numbers of all in `kept_by_seed`."""
    counts = [reading["kept"]["kept"] for reading in readings]
    chosen = sorted(range(len(counts)), key=counts.__getitem__)[(len(counts) - 1) // 2]
    return {**readings[chosen], "kept_by_seed": counts}


def _narrow(samples: NDArray[np.float32], rate: int) -> Samples:
    """At 16 kHz, which all measures hear."""
    return np.asarray(soxr.resample(samples, rate, RATE), np.float32)


def measured(clip: HeldOut, converted: Samples, shift: float, target: NDArray[np.float32], measures: Measures) -> dict[str, Any]:
    """One clip's figures; both signals at 16 kHz, `target` a speaker's embedding (256,)."""
    source, voice = measures.speakers.embedding(clip.samples), measures.speakers.embedding(converted)
    return {
        "name": clip.name,
        "group": clip.group,
        "speaker_name": clip.speaker,
        "seconds": round(len(clip.samples) / RATE, 2),
        "semitones": shift,
        "words": {name: words_kept(clip, converted, recogniser) for name, recogniser in measures.recognisers.items()},
        "similarity": {"to_target": float(voice @ target), "to_source": float(voice @ source), "source_to_target": float(source @ target)},
        "pitch": {name: asdict(pitch_error(find(clip.samples), find(converted), shift)) for name, find in ESTIMATORS.items()},
        "quality": {"original": measures.quality(clip.samples), "converted": measures.quality(converted)},
    }


def words_kept(clip: HeldOut, converted: Samples, recogniser: Recogniser) -> dict[str, Any]:
    """What is read in both, which of the original's words are kept, and both readings against the text where it is known."""
    original, conversion = recogniser(clip.samples), recogniser(converted)
    kept = align(words_of(original), words_of(conversion))
    figures: dict[str, Any] = {"original": original, "converted": conversion, "kept": asdict(kept), "survival": kept.survival}
    if clip.text is not None:
        figures["text"] = clip.text
        figures["against_text"] = {
            name: asdict(align(words_of(clip.text), words_of(reading)))
            for name, reading in (("original", original), ("converted", conversion))
        }
    return figures


def own_figures(converter: VoiceConverter, target: Target, measures: Measures, options: dict[str, Any]) -> dict[str, Any]:
    """The target's own speech, and what is left of it when it is converted into its own voice: the most that can be had."""
    own, through = [], []
    for index, clip in enumerate(target.clips):
        text = words_of(clip.text or "")
        own.append(
            {
                "name": clip.name,
                "similarity": float(target.embeddings[index] @ target.without(index)),
                "against_text": {name: asdict(align(text, words_of(read(clip.samples)))) for name, read in measures.recognisers.items()},
                "quality": measures.quality(clip.samples),
            }
        )
        if index < SELF_CONVERSIONS:
            converted = converter.convert(clip.samples, RATE, **options)[0]
            through.append(measured(clip, _narrow(converted, converter.sample_rate), 0, target.without(index), measures))
    return {"own_speech": own, "self_conversion": through}


def primary_recogniser(rows: Sequence[dict[str, Any]]) -> str:
    """The one that reads the originals with the fewest errors, of the clips whose text is known."""

    def errors(name: str) -> float:
        known = [Alignment(**row["words"][name]["against_text"]["original"]) for row in rows if "against_text" in row["words"][name]]
        return joined(known).error_rate or 0.0

    return min(rows[0]["words"], key=errors)


def problems_of(row: dict[str, Any], recogniser: str) -> list[str]:
    """What of a clip's figures is not as it has to be, in words."""
    survival, similarity = row["words"][recogniser]["survival"], row["similarity"]
    margin = similarity["to_target"] - similarity["to_source"]
    problems = []
    if survival is None or survival < LEAST_SURVIVAL:
        problems.append(f"{row['name']} keeps {survival or 0:.0%} of its words")
    if margin < LEAST_MARGIN:
        problems.append(f"{row['name']} is {margin:+.2f} nearer to the target than to its source")
    for estimator, found in row["pitch"].items():  # harvest mistakes creaky voices, and SwiftF0 has taught this one: both have to agree
        error = found["median"]
        if error is None or error >= MOST_SEMITONES:
            problems.append(f"{row['name']} has pitch errors of {'no' if error is None else f'{error:.2f}'} semitones ({estimator})")
    return problems


def write_examples(folder: Path, clips: Sequence[HeldOut], sounds: dict[str, NDArray[np.float32]], target: Target, rate: int) -> None:
    """The LibriVox clips, their conversions and a sentence of the target's as 16-bit wav, and spectrograms of one of each."""
    from spectrogram import draw_spectrograms

    folder.mkdir(parents=True, exist_ok=True)
    own = next((clip for clip in target.clips if len(clip.samples) <= EXAMPLE_SECONDS * RATE), target.clips[0])
    speech, speech_rate = (own.samples, RATE) if own.wide is None else (own.wide, 2 * RATE)
    files = {f"target_{own.name.rpartition('_')[2]}": (speech, speech_rate)}
    examples = [clip for clip in clips if clip.group == LIBRIVOX]
    for clip in examples:
        files[f"source_{clip.name}"] = clip.samples, RATE
        files[f"converted_{clip.name}"] = sounds[clip.name], rate
    for name, (samples, its_rate) in files.items():
        with atomic_path(folder / f"{name}.wav") as temporary:
            soundfile.write(temporary, samples, its_rate, subtype="PCM_16")
    shown = examples[-1]
    pictured = [
        (f"source: {shown.name}", shown.samples, RATE),
        ("conversion", sounds[shown.name], rate),
        ("the target's own speech, another sentence", speech, speech_rate),
    ]
    with atomic_path(folder / "spectrograms.png") as temporary:
        draw_spectrograms(temporary, pictured)
        with Image.open(temporary) as picture:
            few = picture.convert("RGB").quantize(COLOURS)
        few.save(temporary, format="PNG", optimize=True)
