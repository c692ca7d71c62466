"""Model card and document of the embedded voice, their figures taken from the logs and from the evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from documents import markdown_table

from .evaluation_page import tables
from .settings import INDEX_RATE, LEAST_MARGIN, LEAST_SHIFT, LEAST_SURVIVAL, MOST_SEMITONES
from .sources import SOURCES

NOT_MEASURED = "Not measured yet."
BOUNDS = (
    f"at least {LEAST_SURVIVAL:.0%} of the words kept, a similarity to the target at least {LEAST_MARGIN} above that to the source, and a"
    f" median pitch error below {MOST_SEMITONES} semitones by harvest and by SwiftF0"
)
ALWAYS_WEAK = """\
Words suffer where speech is unlike the synthetic speech that the encoder knows: real rooms, and low, creaky voices. librivox_austen_0880,
eight words at about 80 Hz, stays below what was asked with most seeds. The words that a short clip keeps change with the seed of the
noise (`--seed`), so that a single conversion says little: judge by the medians. pocketsphinx, which misreads many words of the originals
too, keeps fewer of them than moonshine in every group. ContentVec, which other voices need, has ten times this encoder's parameters."""
SEEDED = "**Seeded random weights, not a trained voice: they stand in for the trained ones, and what they say is noise.**"
# Step -> the values of its last report that a reader wants, with their names and how they are shown.
AT_ITS_END: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "encoder": (
        ("valid_clean", "phoneme right in {} of the speech frames of held-out sentences", ".0%"),
        ("unseen_clean", "{} of held-out speakers'", ".0%"),
    ),
    "vocoder": (("held_out_mel", "mel distance {} on held-out sentences", ".2f"), ("held_out_stft", "STFT distance {}", ".2f")),
    "voice": (
        ("held_out_mel", "mel distance {} on held-out sentences", ".2f"),
        ("held_out_stft", "STFT distance {}", ".2f"),
        ("kl", "KL {}", ".2f"),
    ),
}
COMMAND = "cd tools && python -m train_embedded all --work WORK"
_CARD = """\
# The embedded voice

{warning}A content encoder and an RVC voice named `joe`, small enough to come with rvc-coreml, so that a first conversion needs no download.
The files are of the kinds that RVC users know, and nothing but their size is special about them.

| file | what it is |
| --- | --- |
| `content_encoder/` | HuBERT, 9 layers of 256 channels, Hugging Face format, half precision: 16 kHz in, 256 channels at 50 Hz out |
| `voice.pth` | RVC v1, 32 kHz, with f0, half precision, `upsample_initial_channel` 256 |
| `voice.index` | faiss IVF Flat over the target's content features |
| `swift_f0.onnx` | SwiftF0's pitch model, as its author publishes it, with its licence |

## How it was made

The content encoder learns which phoneme is spoken in every 20 ms and to give the same features for the same speech through other
microphones, rooms and formants; the phonemes' times are known because the speech is synthetic. The voice is trained
adversarially on the target's speech, as RVC voices are, with that encoder's features. One command does all of it, on one GPU:

```sh
{command}
```

{training}

## Settings

`--index-rate {index_rate:g}`: the voice does not need its index; with it fewer words are kept, and the speaker is no more like the target.
`--f0-method swiftf0`, with which the voice was trained. `--pitch`: the whole semitones from the speaker's median to the voice's, or none
where they are less than {least_shift}: a reader within a tone of the voice needs none, and every needless shift moves the melody. Medians
by SwiftF0: harvest takes much of this low, creaky voice for an octave more.

## Data and licences

All speech that was trained on is synthetic; no recording was. Recordings (LibriVox) serve for testing only.

{sources}

The target is Piper's voice `joe`. Its card gives the licence of its recordings as CC0, and says that the voice was finetuned from
Piper's `lessac` voice, whose recordings are another speaker's under terms of their own. Neither recordings nor weights of either are
in these files; they learned from what `joe` said.

The weights made here (`content_encoder/`, `voice.pth`, `voice.index`) are under rvc-coreml's MIT licence, `swift_f0.onnx`
under its author's.

## For what, and for what not

For trying rvc-coreml, for its tests, and as trained weights in figures that would otherwise rest on random ones. The encoder knows English
only. It belongs to this voice: voices trained with ContentVec need ContentVec. The voice is a synthesiser's, and cannot be better than it.

## What is weak

{weak}

## Figures

Of sentences and speakers that were not trained on.

{figures}
"""


@dataclass(frozen=True)
class Facts:
    """What card and document are made of; `pitch` is the target's median in Hz, `logs` the last line of each step's log,
    `course` what a person has written down of the run: machine, interruptions."""

    seeded: bool
    pitch: float
    logs: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    course: str = ""


def read_log(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log.jsonl; None where there is none."""
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(value, dict):
            return value
    return None


def model_card(facts: Facts) -> str:
    parts = blocks(facts)
    warning = f"{SEEDED}\n\n" if facts.seeded else ""
    return _CARD.format(warning=warning, command=COMMAND, index_rate=INDEX_RATE, least_shift=LEAST_SHIFT, **parts)


def blocks(facts: Facts) -> dict[str, str]:
    """The generated parts, as docs/embedded_voice.md marks them; evaluate writes the same figures there."""
    return {"training": _training(facts), "sources": sources_table(), "weak": _weak(facts), "figures": _figures(facts)}


def _training(facts: Facts) -> str:
    if facts.seeded:
        return "Nothing was trained."
    rows = []
    for step, last in facts.logs.items():
        if last is not None:
            said = ", ".join(text.format(format(last[key], shown)) for key, text, shown in AT_ITS_END[step] if key in last)
            rows.append([step, f"{last.get('step', 0):,}", f"{last.get('seconds', 0) / 60:.1f}", said])
    table = markdown_table(["step", "updates", "minutes", "at its end"], rows) if rows else "The logs were not kept."
    pitch = f"Median pitch of the target's own speech: {facts.pitch:.0f} Hz (SwiftF0)."
    return "\n\n".join(part for part in (table, facts.course, pitch) if part)


def sources_table() -> str:
    """What was used to train, under which licence."""
    rows = [[one.name, one.version, one.code_licence, one.data_licence, one.used_for] for one in SOURCES if one.training]
    return markdown_table(["package", "version", "licence", "what it was made from", "used for"], rows)


def _figures(facts: Facts) -> str:
    return NOT_MEASURED if facts.seeded or facts.evaluation is None else tables(facts.evaluation)


def _weak(facts: Facts) -> str:
    """What the evaluation found to miss its bounds, and what holds of any such voice."""
    if facts.seeded or facts.evaluation is None:
        return NOT_MEASURED
    lines = [f"Asked of every LibriVox clip, and measured of all: {BOUNDS}.", ""]
    for group in dict.fromkeys(clip["group"] for clip in facts.evaluation["clips"]):
        clips = [clip for clip in facts.evaluation["clips"] if clip["group"] == group]
        missed = [problem for clip in clips for problem in clip["problems"]]
        below = sum(bool(clip["problems"]) for clip in clips)
        said = f"**{below} of {len(clips)} miss it**: {'; '.join(missed)}." if missed else f"all {len(clips)} have it."
        lines.append(f"- {group}: {said}")
    return "\n".join([*lines, "", ALWAYS_WEAK])
