"""Word alignment: the numbers of hand-made readings, and for any readings what has to hold of an alignment."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_embedded.words import Alignment, align, joined, words_of

READINGS = st.lists(st.sampled_from("abcd"), max_size=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. John Dashwood's ill-disposed!", ["mr", "john", "dashwoods", "ill", "disposed"]),
        ("It\u2019s a caf\u00e9, 7 o'clock", ["its", "a", "cafe", "7", "oclock"]),
        ("  ... ", []),
    ],
)
def test_words_have_neither_case_nor_punctuation(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d", "a b c d", Alignment(4, 4, 0, 0)),
        ("a b c d", "", Alignment(4, 0, 0, 0)),
        ("", "a b", Alignment(0, 0, 0, 2)),
        ("a b c d", "a x c d e", Alignment(4, 3, 1, 1)),
        ("a b c d", "d c b a", Alignment(4, 1, 2, 1)),  # four edits either way; the order counts, and one word is kept
        ("a b", "b", Alignment(2, 1, 0, 0)),
    ],
)
def test_kept_substituted_and_inserted_words_are_counted(first: str, second: str, expected: Alignment) -> None:
    assert align(first.split(), second.split()) == expected


def test_shares_are_of_the_first_reading_and_none_without_words() -> None:
    found = align(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"])
    assert (found.survival, found.error_rate, found.missing) == (0.75, 0.5, 0)
    assert align(["a", "b", "c", "d"], ["a"]).missing == 3
    empty = align([], ["a"])
    assert empty.survival is None
    assert empty.error_rate is None


def test_sums_over_clips_are_of_words_and_not_of_shares() -> None:
    total = joined([align(["a"], ["a"]), align(["a", "b", "c"], ["x"])])
    assert total == Alignment(4, 1, 1, 0)
    assert total.survival == 0.25


def edits(first: list[str], second: list[str]) -> int:
    """Levenshtein's distance by its recursive definition."""
    if not first or not second:
        return len(first) + len(second)
    if first[0] == second[0]:
        return edits(first[1:], second[1:])
    return 1 + min(edits(first[1:], second), edits(first, second[1:]), edits(first[1:], second[1:]))


@settings(max_examples=60, deadline=None)
@given(READINGS, READINGS)
def test_an_alignment_has_the_fewest_edits_and_uses_up_both_readings(first: list[str], second: list[str]) -> None:
    found = align(first, second)
    assert found.substituted + found.missing + found.inserted == edits(first[:6], second[:6]) or len(first) > 6 or len(second) > 6
    assert found.kept + found.substituted + found.inserted == len(second)
    assert found.missing >= 0
    assert found.kept <= sum(min(first.count(word), second.count(word)) for word in set(first))


def test_a_reading_that_only_lost_words_keeps_what_difflib_finds() -> None:
    original = ["unless", "to", "be", "rather", "cold", "hearted", "and", "rather", "selfish", "is", "to", "be", "ill", "disposed"]
    converted = [word for place, word in enumerate(original) if place % 4]
    blocks = SequenceMatcher(None, original, converted, autojunk=False).get_matching_blocks()
    assert align(original, converted).kept == sum(block.size for block in blocks) == len(converted)
