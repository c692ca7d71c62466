"""The evaluation's figures as Markdown, and their place in docs/embedded_voice.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from documents import fill, markdown_table
from rvc_coreml.runtime.files import atomic_path

from .settings import WRITER
from .words import Alignment, joined

BLOCK = "figures"
SCORES = ("OVRL", "SIG", "BAK", "P808")
Row = Mapping[str, Any]


def clip_summary(result: Row) -> list[dict[str, Any]]:
    """A row for each group of clips, and one for the target's speech through its own voice."""
    groups = {
        name: [clip for clip in result["clips"] if clip["group"] == name]
        for name in dict.fromkeys(clip["group"] for clip in result["clips"])
    }
    groups["the target's own speech, converted"] = result["target"]["self_conversion"]
    return [_summary(name, clips) for name, clips in groups.items() if clips]


def _summary(title: str, clips: Sequence[Row]) -> dict[str, Any]:
    """Words are added up, similarities and scores averaged; of pitch errors the median over the clips is taken."""
    row: dict[str, Any] = {"speech": title, "clips": len(clips), "words": {}, "pitch": {}}
    for name in clips[0]["words"]:
        kept = joined([Alignment(**clip["words"][name]["kept"]) for clip in clips])
        row["words"][name] = {"kept": kept.kept, "of": kept.words, "survival": kept.survival, **_error_rates(clips, name)}
        by_seed = clips[0]["words"][name].get("kept_by_seed", [])
        if len(clips) == 1 and len(by_seed) > 1:
            row["words"][name]["range"] = [min(by_seed), max(by_seed)]
    row["similarity"] = {key: fmean(clip["similarity"][key] for clip in clips) for key in clips[0]["similarity"]}
    for name in clips[0]["pitch"]:
        found = [clip["pitch"][name] for clip in clips]
        medians = [one["median"] for one in found if one["median"] is not None]
        row["pitch"][name] = {"median": median(medians) if medians else None, "voicing": fmean(one["voicing"] for one in found)}
    row["quality"] = {
        side: {key: fmean(clip["quality"][side][key] for clip in clips) for key in SCORES} for side in ("original", "converted")
    }
    return row


def _error_rates(clips: Sequence[Row], recogniser: str) -> dict[str, float | None]:
    """Word error rates against the known text, None where none of the clips has one."""
    known = [clip["words"][recogniser]["against_text"] for clip in clips if "against_text" in clip["words"][recogniser]]
    return {f"errors_{side}": joined([Alignment(**one[side]) for one in known]).error_rate for side in ("original", "converted")}


def tables(result: Row) -> str:
    """All of it: groups, the LibriVox clips one by one with what was read, and the measures' known answers."""
    recognisers = list(result["clips"][0]["words"])
    first, made = result["primary_recogniser"], result["made_with"]
    own = [one["against_text"][first] for one in result["target"]["own_speech"]]
    own_errors = joined([Alignment(**one) for one in own]).error_rate
    parts = [
        in_short(result),
        f"The words that {first} reads decide{', since it reads the originals best' if len(recognisers) > 1 else ''}."
        f" Index rate: {made['options']['index_rate']}. Pitch of the conversions: {made['f0_method']}; transposed by"
        f" {made['transposition']}; the target's is {made['target_pitch_hz']:.0f} Hz. The LibriVox clips are converted with"
        f" {made['seeds']} seeds of the noise: their words are those of the median conversion, in brackets the fewest and the most; all"
        " other figures, and the examples, are seed 0's. Similarities are Resemblyzer's cosines, errors and scores are original →"
        " conversion, pitch errors medians in semitones.",
        markdown_table(_headings(recognisers), [*(_cells(row, recognisers) for row in result["summary"]), _own_cells(result, recognisers)]),
        f"Of the target's own speech {first} misreads {_percent(own_errors)} of the words.",
        "Clip by clip:",
        markdown_table(_headings(recognisers), [_cells(_summary(one["name"], [one]), recognisers) for one in result["clips"]]),
        "What is read in them:",
        markdown_table(
            ["clip", "recogniser", "original", "conversion"],
            [
                [one["name"], name, _text(one["words"][name]["original"]), _text(one["words"][name]["converted"])]
                for one in result["clips"]
                if one["group"] == result["clips"][0]["group"]
                for name in recognisers
            ],
        ),
    ]
    if result.get("known_answers"):
        rows = [
            [one["measure"], one["expected"], _number(one["found"]), "yes" if one["holds"] else "**no**"] for one in result["known_answers"]
        ]
        parts += ["The measures where the answer is known:", markdown_table(["measure", "expected", "found", "holds"], rows)]
    return "\n\n".join(parts)


def in_short(result: Row) -> str:
    """The first group's figures in sentences."""
    row, first = result["summary"][0], result["primary_recogniser"]
    words, alike, scores = row["words"][first], row["similarity"], row["quality"]
    clips = [clip for clip in result["clips"] if clip["group"] == row["speech"]]
    each = ", ".join(f"{clip['name']} {_percent(clip['words'][first]['survival'])}" for clip in clips)
    errors = " and ".join(f"{_number(found['median'])} ({name})" for name, found in row["pitch"].items())
    own = fmean(one["quality"]["OVRL"] for one in result["target"]["own_speech"])
    return (
        f"In short, of the {row['clips']} {row['speech']} clips: {_percent(words['survival'])} of the words that {first} reads in the"
        f" originals are kept ({each}{_default_seed(clips, first)}); the conversions' similarity is"
        f" {_number(alike['to_target'])} to the target and {_number(alike['to_source'])} to the source;"
        f" the pitch is off by {errors} semitones; DNSMOS OVRL is"
        f" {_number(scores['converted']['OVRL'])}, the originals' {_number(scores['original']['OVRL'])}, the target's own speech's"
        f" {_number(own)}."
    )


def _default_seed(clips: Sequence[Row], recogniser: str) -> str:
    """What seed 0 alone, which conversions have by default, keeps of each clip; nothing where there was no other."""
    found = [clip["words"][recogniser] for clip in clips]
    if not all(len(one.get("kept_by_seed", [])) > 1 for one in found):
        return ""
    shares = [_percent(one["kept_by_seed"][0] / one["kept"]["words"] if one["kept"]["words"] else None) for one in found]
    return f"; with the default seed alone {', '.join(shares)}"


def _headings(recognisers: Sequence[str]) -> list[str]:
    words = [heading for name in recognisers for heading in (f"words kept, {name}", f"word errors, {name}")]
    return ["speech", "clips", *words, "to target", "to source", "source to target", "pitch error, harvest / SwiftF0", "voicing", *SCORES]


def _cells(row: Row, recognisers: Sequence[str]) -> list[str]:
    words = []
    for name in recognisers:
        one = row["words"][name]
        words += [
            f"{one['kept']} of {one['of']}, {_percent(one['survival'])}{_range(one)}",
            _pair(one["errors_original"], one["errors_converted"], _percent),
        ]
    alike, pitch, scores = row["similarity"], row["pitch"], row["quality"]
    return [
        *(row["speech"], str(row["clips"]), *words),
        *(_number(alike[key]) for key in ("to_target", "to_source", "source_to_target")),
        " / ".join(_number(one["median"]) for one in pitch.values()),
        " / ".join(_percent(one["voicing"]) for one in pitch.values()),
        *(_pair(scores["original"][key], scores["converted"][key], _number) for key in SCORES),
    ]


def _own_cells(result: Row, recognisers: Sequence[str]) -> list[str]:
    """The target's speech as it is, each clip compared with the mean of the others."""
    clips = result["target"]["own_speech"]
    errors = {name: joined([Alignment(**one["against_text"][name]) for one in clips]).error_rate for name in recognisers}
    words = [cell for name in recognisers for cell in ("", _percent(errors[name]))]
    scores = [_number(fmean(one["quality"][key] for one in clips)) for key in SCORES]
    return ["the target's own speech", str(len(clips)), *words, _number(fmean(one["similarity"] for one in clips)), "", "", "", "", *scores]


def _range(words: Row) -> str:
    return f" ({words['range'][0]} to {words['range'][1]})" if "range" in words else ""


def _pair(one: float | None, other: float | None, shown: Any) -> str:
    return "" if one is None and other is None else f"{shown(one)} → {shown(other)}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _text(reading: str) -> str:
    return " ".join(reading.split()).replace("|", "/") or "(nothing)"


def write_page(page: Path, result: Row) -> None:
    """Fill the page's block of figures. Raises TrainingError where it has none, OutputError where the page cannot be written."""
    text = fill(page.read_text(encoding="utf-8"), BLOCK, tables(result), WRITER)
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
