"""Held-out sentences by held-out speakers and by the target, spoken anew for the evaluation: none of them was ever in a shard."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from rvc_coreml.runtime.files import atomic_folder

from .generate import make_clip
from .held_out import TEXTS
from .pack import KOKORO, REST
from .shards import HELD_OUT_SPEAKERS, SPEECH, TARGET, Clip, write_shard
from .sources import TrainingError
from .synthesisers import Synthesiser, joe, kokoro
from .texts import read_texts

TARGETS, EACH = 12, 4  # sentences of the target's, and of each speaker
# Two of these have to be in a sentence: others are words without meaning, which recognisers read badly whoever says them.
COMMON = frozenset(("a", "and", "for", "he", "his", "in", "is", "it", "of", "that", "the", "they", "to", "was", "with", "you"))
LETTERS = (50, 130)  # misaki letters of a sentence: about 3 to 10 s
SEED = 8


def sentences(texts: list[dict[str, str]]) -> list[int]:
    """Places of the sentences of the valid split that mean something and are neither short nor long."""
    return [
        place
        for place, text in enumerate(texts)
        if text["split"] == "valid"
        and LETTERS[0] <= len(text["phonemes"]) <= LETTERS[1]
        and sum(word in COMMON for word in text["text"].lower().split()) >= 2
    ]


def held_out_speech(work: Path, bundles: Path) -> Path:
    """W/evaluation/held_out with one shard of the speakers' and one of the target's; made where it is not there yet.

    Raises TrainingError where the bundles of `prepare` or enough sentences are missing.
    """
    folder = work / "evaluation" / "held_out"
    if folder.is_dir():
        return folder
    for path in (work / TEXTS, bundles / KOKORO, bundles / REST):
        if not path.exists():
            raise TrainingError(f"{path} is not there: run the step prepare, or name the bundles' folder with --bundles")
    texts = read_texts(work / TEXTS)
    places = sentences(texts)
    if len(places) < TARGETS + 2 * EACH * len(HELD_OUT_SPEAKERS):
        raise TrainingError(f"{work / TEXTS} holds too few sentences for validation ({len(places)}): prepare more")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as building:
        own = joe.load(bundles, work)
        write_shard(building, f"{TARGET}_held_out", [spoken(own, texts, place) for place in places[:TARGETS]])
        write_shard(building, f"{SPEECH}_held_out", by_speakers(kokoro.load(bundles, work, 1.0), texts, places[TARGETS:]))
        shutil.copyfile(work / TEXTS, building / TEXTS)
    return folder


def by_speakers(synthesiser: Synthesiser, texts: list[dict[str, str]], places: list[int]) -> list[Clip]:
    """EACH sentences by every held-out speaker; the synthesiser draws the speaker, so that some sentences are spoken in vain."""
    clips: list[Clip] = []
    for place in places:
        clip = spoken(synthesiser, texts, place)
        if clip.speaker in HELD_OUT_SPEAKERS and Counter(one.speaker for one in clips)[clip.speaker] < EACH:
            clips.append(clip)
        if len(clips) == EACH * len(HELD_OUT_SPEAKERS):
            return sorted(clips, key=lambda one: one.speaker)
    raise TrainingError(
        f"the held-out speakers have {len(clips)} of the {EACH * len(HELD_OUT_SPEAKERS)} sentences that are measured: prepare more"
    )


def spoken(synthesiser: Synthesiser, texts: list[dict[str, str]], place: int) -> Clip:
    """One sentence, the same whenever it is spoken."""
    return make_clip(synthesiser.speak(texts[place]["phonemes"], np.random.default_rng([SEED, place])), place, synthesiser.wide)
