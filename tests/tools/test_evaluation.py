"""The evaluation's figures of conversions whose answer is known, its tables, and (where the packages are installed) its measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from documents import BEGIN, END
from rvc_coreml.errors import UsageError
from train_embedded import evaluate, evaluation_page, measuring
from train_embedded.card import Facts, blocks
from train_embedded.evaluate import Measures, Target, measured, primary_recogniser, problems_of, speakers_shifts
from train_embedded.evaluation_page import tables, write_page
from train_embedded.held_out import LIBRIVOX, librivox, packaged_recordings
from train_embedded.held_out_speech import sentences
from train_embedded.known_answers import known_answers, noise_like
from train_embedded.measuring import RATE, Samples, missing_packages
from train_embedded.settings import WRITER

CLIPS = [replace(clip, samples=clip.samples[: 2 * RATE]) for clip in librivox()]  # harvest is slow
MISSING = missing_packages()
with_packages = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


class Ears:
    """Stand-ins for the packages: a recogniser that knows the clips, and whose voice a clip is by its level."""

    def __init__(self) -> None:
        self.heard = {clip.samples.tobytes(): clip.text for clip in CLIPS}

    def embedding(self, samples: Samples) -> np.ndarray:
        known = samples.tobytes() in self.heard
        return np.array([1.0, 0.0] if known else [0.6, 0.8], np.float32)

    def measures(self) -> Any:
        def good(samples: Samples) -> str:
            return self.heard.get(samples.tobytes()) or ""

        def bad(samples: Samples) -> str:
            return " ".join(good(samples).split()[::2])

        scores = dict.fromkeys(("OVRL", "SIG", "BAK", "P808"), 3.0)
        return Measures({"bad": bad, "good": good}, self, lambda _samples: scores)  # pyright: ignore[reportArgumentType]


def converter(change: Callable[[Samples], Samples]) -> Any:
    def convert(samples: Samples, rate: int, pitch: float = 0.0, **options: Any) -> tuple[Samples, int]:
        del pitch, options
        return change(samples), rate

    return SimpleNamespace(convert=convert, sample_rate=RATE, pitch_models=None)


def result_of(change: Callable[[Samples], Samples]) -> tuple[dict[str, Any], Any]:
    measures = Ears().measures()
    target = Target(CLIPS, [np.array([0.6, 0.8], np.float32)] * 3, evaluate_pitch())
    return evaluate.evaluate(converter(change), CLIPS, target, measures, {"f0_method": "auto", "index_rate": 0.5})


def evaluate_pitch() -> float:
    """The clips' own median, so that nothing is transposed."""
    voiced = evaluate.contour(CLIPS)
    return float(np.median(voiced[voiced > 0]))


@pytest.fixture(autouse=True)
def one_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    """harvest alone, which the project has."""
    if MISSING:
        monkeypatch.setattr(evaluate, "ESTIMATORS", {"harvest": measuring.harvest})


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "ESTIMATORS", {"harvest": measuring.harvest})
        return result_of(lambda samples: samples)[0]


def test_what_was_not_changed_keeps_its_words_its_speaker_and_its_melody(unchanged: dict[str, Any]) -> None:
    for clip in unchanged["clips"]:
        assert clip["words"]["good"]["survival"] == 1
        assert clip["similarity"]["to_source"] == pytest.approx(1)
        assert clip["semitones"] == 0
        assert clip["pitch"]["harvest"]["median"] == 0
        assert clip["pitch"]["harvest"]["voicing"] == 1
        assert [problem for problem in clip["problems"] if "nearer to the target" in problem]
        assert len(clip["problems"]) == 1


def test_noise_keeps_nothing_and_every_problem_is_told() -> None:
    clip = CLIPS[0]
    row = measured(clip, noise_like(clip.samples), 0, np.array([1.0, 0.0], np.float32), Ears().measures())
    assert row["words"]["good"]["survival"] == 0
    problems = problems_of(row, "good")
    assert any("0% of its words" in problem for problem in problems)
    assert any("semitones" in problem for problem in problems)


def test_of_conversions_with_several_seeds_the_median_one_counts() -> None:
    """The words that are left change from conversion to conversion, as they do with the noise."""
    ears, clip = Ears(), CLIPS[0]
    left, made = [5, 1, 4, 2, 3], []

    def change(samples: Samples) -> Samples:
        made.append(samples * np.float32(0.99 - 0.01 * len(made)))
        ears.heard[made[-1].tobytes()] = " ".join((clip.text or "").split()[: left[min(len(made), len(left)) - 1]])
        return made[-1]

    target = Target([clip], [np.array([0.6, 0.8], np.float32)] * 2, evaluate_pitch())
    result, sounds = evaluate.evaluate(converter(change), [clip], target, ears.measures(), {"f0_method": "auto", "index_rate": 0.5})
    words = result["clips"][0]["words"]["good"]
    assert words["kept_by_seed"] == left
    assert (words["kept"]["kept"], words["survival"]) == (3, 3 / 22)
    assert np.array_equal(sounds[clip.name], made[0])
    assert any("14% of its words" in problem for problem in result["clips"][0]["problems"])
    assert "3 of 22, 14% (1 to 5)" in tables(result)


def test_the_recogniser_that_reads_the_originals_best_decides(unchanged: dict[str, Any]) -> None:
    assert unchanged["primary_recogniser"] == primary_recogniser(unchanged["clips"]) == "good"


def test_a_speakers_clips_are_moved_alike_by_whole_semitones() -> None:
    pitch = evaluate_pitch()
    assert speakers_shifts(CLIPS, pitch * 2 ** (-5.3 / 12)) == {"librivox": -5}


def test_every_figure_is_json_and_stands_in_the_table(unchanged: dict[str, Any]) -> None:
    assert json.loads(json.dumps(unchanged)) == unchanged
    text = tables(unchanged)
    assert f"| {LIBRIVOX} | 3 | 22 of 22, 100% | 50% → 50% | 44 of 44, 100% | 0% → 0% | 0.60 | 1.00 | 0.60 |" in text
    widths = {}
    for line in text.splitlines():
        if line.startswith("| speech"):
            widths["speech"] = line.count("|")
        if line.startswith("| librivox_austen_0870 | 1"):
            widths["clip"] = line.count("|")
    assert widths["speech"] == widths["clip"]


def test_the_page_keeps_what_is_around_the_figures(unchanged: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "embedded_voice.md"
    page.write_text(f"before\n{BEGIN.format('figures', WRITER)}\nwas here before\n{END.format('figures')}\nafter\n", encoding="utf-8")
    write_page(page, unchanged)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "was here before" not in text
    assert "librivox_austen_0890" in text
    write_page(page, unchanged)
    assert page.read_text(encoding="utf-8") == text


def test_what_is_weak_names_every_figure_that_was_missed(unchanged: dict[str, Any]) -> None:
    """Nothing was converted, so that no clip is nearer to the target."""
    text = blocks(Facts(False, 100.0, {}, unchanged))["weak"]
    assert f"- {LIBRIVOX}: **3 of 3 miss it**: " in text
    assert all(problem in text for clip in unchanged["clips"] for problem in clip["problems"])
    kept = {**unchanged, "clips": [{**clip, "problems": []} for clip in unchanged["clips"]]}
    assert f"- {LIBRIVOX}: all 3 have it." in blocks(Facts(False, 100.0, {}, kept))["weak"]


def test_examples_are_16_bit_mono(unchanged: dict[str, Any], tmp_path: Path) -> None:
    import soundfile

    del unchanged
    sounds = {clip.name: clip.samples for clip in CLIPS}
    evaluate.write_examples(tmp_path, CLIPS, sounds, Target(CLIPS, [], 100.0), RATE)
    names = sorted(path.name for path in tmp_path.glob("*.wav"))
    assert names == sorted([*(f"{kind}_{clip.name}.wav" for kind in ("source", "converted") for clip in CLIPS), "target_0870.wav"])
    for name in names:
        facts = soundfile.info(tmp_path / name)
        assert (facts.subtype, facts.channels, facts.samplerate) == ("PCM_16", 1, RATE)
    assert (tmp_path / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


def test_missing_packages_are_named_with_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.importlib.util, "find_spec", lambda name: None if name in ("resemblyzer", "speechmos") else object())
    with pytest.raises(UsageError, match=r"speechmos, resemblyzer.*pip install .*speechmos==0\.0\.1\.1.*--no-deps resemblyzer==0\.1\.4"):
        measuring.require_packages()


def test_sentences_are_of_the_valid_split_and_mean_something() -> None:
    def text(words: str, split: str = "valid", letters: int = 80) -> dict[str, str]:
        return {"text": words, "split": split, "phonemes": "x" * letters}

    spoken = "He went to the hill and was glad of it."
    given = [text(spoken), text(spoken, "train"), text(spoken, letters=20), text("Quarry lantern obtuse marble of grain."), text(spoken)]
    assert sentences(given) == [0, 4]


@with_packages
@pytest.mark.slow
def test_the_measures_say_what_is_known() -> None:
    rows = known_answers(Measures.load(list(measuring.RECOGNISERS)), librivox()[0], packaged_recordings()[0])
    assert len(rows) >= 12
    assert [row["measure"] for row in rows if not row["holds"]] == []


def test_the_default_seed_is_said_beside_the_medians() -> None:
    def clip(kept: list[int], words: int) -> dict[str, Any]:
        return {"words": {"ears": {"kept_by_seed": kept, "kept": {"words": words}}}}

    clips = [clip([6, 5, 5], 8), clip([10, 12, 14], 14)]
    assert evaluation_page._default_seed(clips, "ears") == "; with the default seed alone 75%, 71%"
    assert evaluation_page._default_seed([*clips, clip([3], 4)], "ears") == ""
