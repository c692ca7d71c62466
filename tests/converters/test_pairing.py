"""Which index goes to which voice, by the names that training tools and people give them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.converters.collection import Index, Item
from rvc_coreml.converters.pairing import Pairing, fold, index_names, voice_names

BUILT = "added_IVF512_Flat_nprobe_1_{}_v2"
NAMES = {
    BUILT.format("singer"): ("singer", "singer v2"),
    "added_IVF12_Flat_nprobe_1_My_Singer_v1": ("my singer", "my singer v1"),
    "added_IVF12_Flat_nprobe_1_singer": ("singer",),
    BUILT.format("singer_v2"): ("singer v2", "singer v2 v2"),
    "singer_IVF12_Flat_nprobe_1_singer_v2": ("singer", "singer v2"),
    "added_IVF12_Flat_nprobe_1_v2": (),
    "added_IVF12_Flat_nprobe_1": (),
    "Singer": ("singer",),
    "singer_v2": ("singer v2", "singer"),
    "added_singer": ("singer",),
    "added": (),
    "model": (),
    "added_v2": (),
    "singer (1)": ("singer",),
}


@pytest.mark.parametrize("stem", NAMES)
def test_an_indexs_name_gives_the_voices(stem: str) -> None:
    assert index_names(stem) == NAMES[stem]


@pytest.mark.parametrize(
    "stem", ["singer", "Singer_e200_s5000", "singer_200e_5000s", "SINGER_200e_5000s_best_epoch", "singer_e10", "singer (2)"]
)
def test_a_voices_name_is_known_without_its_epoch(stem: str) -> None:
    assert "singer" in voice_names(stem)


@given(st.text("aZ1éÉß歌_ ().-", min_size=1, max_size=12), st.sampled_from(["_", " ", "  "]), st.sampled_from(["_", " "]))
def test_case_spaces_and_underscores_do_not_count(name: str, one: str, other: str) -> None:
    assert fold(f"a{one}{name}") == fold(f"A{other}{name}")
    assert fold(fold(name)) == fold(name) or "(" in name


def voices(*labels: str) -> list[Item]:
    return [Item(Path(label)) for label in labels]


def index(label: str, width: int = 768) -> Index:
    return Index(Item(Path(label)), width)


def chosen(pairing: Pairing, voice: Item, version: str = "v2") -> str | None:
    choice = pairing.choose(voice, version)
    return None if choice.index is None else choice.index.item.label


def test_width_decides_between_versions_of_one_name() -> None:
    one, two = index("a/added_IVF9_Flat_nprobe_1_singer_v1.index", 256), index(f"a/{BUILT.format('singer')}.index")
    own = voices("a/singer.pth")
    assert chosen(Pairing(own, [one, two]), own[0], "v1") == one.item.label
    assert chosen(Pairing(own, [one, two]), own[0], "v2") == two.item.label


def test_an_index_of_the_wrong_width_is_not_taken_and_both_sides_hear_of_it() -> None:
    own = voices("a/singer.pth")
    pairing = Pairing(own, [index("a/singer.index", 256)])
    choice = pairing.choose(own[0], "v2")
    assert choice.index is None
    assert "width 768" in str(choice.remark)
    [(left, reason)] = pairing.left_over()
    assert left.width == 256
    assert "width" in reason


def test_one_training_runs_index_serves_all_its_epochs() -> None:
    own = voices("w/singer.pth", "w/singer_e50_s100.pth", "w/other.pth")
    found = index(f"logs/{BUILT.format('singer')}.index")
    pairing = Pairing(own, [found])
    assert [chosen(pairing, voice) for voice in own] == [found.item.label, found.item.label, None]
    assert list(pairing.left_over()) == []


def test_the_name_that_the_tool_wrote_wins_over_one_with_the_version_in_it() -> None:
    own = voices("a/singer.pth", "a/singer_v2.pth")
    pairing = Pairing(own, [index(f"a/{BUILT.format('singer')}.index")])
    assert chosen(pairing, own[0]) is not None
    assert chosen(pairing, own[1]) is None


def test_voices_of_one_name_take_the_index_beside_them() -> None:
    own = voices("a/singer.pth", "b/singer.pth", "c/singer.pth")
    beside = [index("a/singer.index"), index("b/singer.index")]
    pairing = Pairing(own, beside)
    assert [chosen(pairing, voice) for voice in own] == ["a/singer.index", "b/singer.index", None]


def test_a_zip_archive_is_a_place_too() -> None:
    own = [Item(Path("one.zip"), "x/singer.pth"), Item(Path("two.zip"), "singer.pth")]
    inside = Index(Item(Path("two.zip"), "deep/added_IVF3_Flat_nprobe_1_singer_v2.index"), 768)
    pairing = Pairing(own, [inside])
    assert chosen(pairing, own[0]) is None
    assert chosen(pairing, own[1]) == inside.item.label


@pytest.mark.parametrize("same", [False, True])
def test_several_that_fit_are_none_unless_they_are_copies(same: bool) -> None:
    own = voices("a/singer.pth")
    both = [index("a/singer.index"), index(f"a/{BUILT.format('singer')}.index")]
    pairing = Pairing(own, both, lambda _one, _other: same)
    choice = pairing.choose(own[0], "v2")
    assert (choice.index is None) == (not same)
    if not same:
        assert "--index" in str(choice.remark)
        assert len(list(pairing.left_over())) == 2


def test_a_nameless_index_goes_to_the_only_voice_beside_it() -> None:
    alone, crowded = voices("a/singer.pth"), voices("a/singer.pth", "a/other.pth")
    found = index("a/added_IVF12_Flat_nprobe_1_v2.index")
    assert chosen(Pairing(alone, [found]), alone[0]) == found.item.label
    assert chosen(Pairing(crowded, [found]), crowded[0]) is None
    assert chosen(Pairing(alone, [found, index("a/added.index")]), alone[0]) is None


def test_another_voices_index_is_left_over_with_its_name() -> None:
    own = voices("a/singer.pth")
    pairing = Pairing(own, [index(f"a/{BUILT.format('somebody')}.index")])
    assert chosen(pairing, own[0]) is None
    assert "'somebody'" in next(iter(pairing.left_over()))[1]


@pytest.mark.parametrize("added", [False, True])
def test_a_trained_index_is_never_taken(added: bool) -> None:
    own = voices("a/singer.pth")
    trained = index("a/trained_IVF5_Flat_nprobe_1_singer_v2.index")
    indexes = [trained] + ([index("a/added_IVF5_Flat_nprobe_1_singer_v2.index")] if added else [])
    pairing = Pairing(own, indexes)
    assert (chosen(pairing, own[0]) is not None) == added
    [(left, reason)] = pairing.left_over()
    assert left == trained
    assert ("missing" in reason) == (not added)
