from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from rvc_coreml.errors import LibraryError, UsageError
from rvc_coreml.runtime.pitch import ESTIMATORS, Estimator, choose_method, estimate_pitch, estimator, resolve_method

RATE = 16000


class Models:
    """The pitch models of a library, by name only."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = list(kinds)
        self.said: list[str] = []

    def available(self) -> list[str]:
        return self.kinds

    def stage(self, kind: str) -> None:
        raise AssertionError(kind)

    def network(self, kind: str) -> None:
        raise AssertionError(kind)

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def registry() -> Iterator[dict[str, Estimator]]:
    """The registry, put back afterwards."""
    before = dict(ESTIMATORS)
    yield ESTIMATORS
    ESTIMATORS.clear()
    ESTIMATORS.update(before)


def test_methods_are_shown_best_first_and_say_what_they_need() -> None:
    assert list(ESTIMATORS) == ["rmvpe", "fcpe", "crepe", "crepe-tiny", "swiftf0", "harvest", "dio", "pm"]
    needing = [name for name, found in ESTIMATORS.items() if found.needs == "pitch model"]
    assert needing == ["rmvpe", "fcpe", "crepe", "crepe-tiny", "swiftf0"]
    assert ESTIMATORS["pm"].needs == "parselmouth"
    assert [name for name, found in ESTIMATORS.items() if found.median] == ["harvest"]
    assert all(len(found.summary) > 20 for found in ESTIMATORS.values())


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ((), "swiftf0"),
        (("crepe-tiny",), "crepe-tiny"),
        (("crepe-tiny", "swiftf0"), "swiftf0"),
        (("swiftf0", "crepe"), "crepe"),
        (("crepe-tiny", "crepe"), "crepe"),
        (("crepe", "fcpe"), "fcpe"),
        (("fcpe", "rmvpe", "crepe"), "rmvpe"),
        (("something-else",), "swiftf0"),
    ],
)
def test_auto_is_the_best_that_the_library_has(present: tuple[str, ...], chosen: str) -> None:
    assert choose_method(Models(*present)) == chosen
    assert resolve_method("auto", Models(*present)).name == chosen


@pytest.mark.parametrize("models", [None, Models(), Models("fcpe")])
def test_the_embedded_model_runs_where_the_library_has_none_and_says_so(models: Models | None) -> None:
    tone = sum(np.sin(2 * np.pi * 200 * k * np.arange(RATE) / RATE) / k for k in range(1, 9)) * 0.1
    found = estimate_pitch(tone, "swiftf0", models=models)
    assert np.abs(1200 * np.log2(found[5:-5] / 200)).max() < 10
    if models is None:
        assert choose_method(None) == "swiftf0"
        np.testing.assert_array_equal(estimate_pitch(tone), found)
    else:
        said, models.said = models.said, []
        assert said == ["the library holds no model for pitch method 'swiftf0': the one that comes with rvc-coreml runs in PyTorch (cpu)"]
        assert "\n" not in said[0]


@pytest.mark.parametrize("models", [None, Models(), Models("fcpe")])
def test_a_model_that_the_library_lacks_is_one_sentence(models: Models | None) -> None:
    with pytest.raises(
        LibraryError, match=r"'rmvpe' needs a model that the library lacks: add it with 'rvc-coreml convert pitch FILE -o LIB'"
    ):
        estimate_pitch(np.zeros(RATE), "rmvpe", models=models)


@pytest.mark.parametrize("method", ["", "Harvest", "rmvpe2"])
def test_an_unknown_method_is_refused_with_those_known(method: str) -> None:
    with pytest.raises(UsageError, match=f"'{method}' is unknown; choose one of auto, rmvpe, .*harvest.*dio"):
        estimate_pitch(np.zeros(RATE), method)


@pytest.mark.parametrize("name", ["dio", "auto"])
def test_an_estimator_cannot_be_registered_twice(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is registered twice"):
        estimator(name, summary="")(lambda audio, _models, _progress: audio)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_estimators_bad_values_become_unvoiced(registry: dict[str, Estimator], bad: float) -> None:
    estimator("broken", summary="")(lambda audio, _models, _progress: np.full(len(audio) // 160 + 1, bad))
    assert not estimate_pitch(np.zeros(RATE), "broken").any()
    assert "broken" in registry


@pytest.mark.parametrize("length", [0, 50, 101, 300])
def test_frames_beside_the_clips_are_dropped_and_missing_ones_unvoiced(registry: dict[str, Estimator], length: int) -> None:
    estimator("other", summary="")(lambda _audio, _models, _progress: np.full(length, 100.0))
    kept = min(length, 101)
    np.testing.assert_array_equal(estimate_pitch(np.zeros(RATE), "other"), [100.0] * kept + [0.0] * (101 - kept))
    assert "other" in registry


def test_an_estimator_gets_the_models_and_the_progress(registry: dict[str, Estimator]) -> None:
    given: list[object] = []

    def run(audio: np.ndarray, models: object, progress: object) -> np.ndarray:
        given.extend([len(audio), models, progress])
        return np.zeros(1)

    estimator("probe", summary="", needs="pitch model")(run)
    models, shares = Models("probe"), []
    estimate_pitch(np.zeros(320), "probe", models=models, progress=shares.append)
    assert given[:2] == [320, models]
    assert given[2] is not None
    assert shares == [1.0]
    assert registry["probe"].needs == "pitch model"
