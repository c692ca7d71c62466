"""A folder of everything into one library: what becomes of each file, with conversions counted instead of made."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.converters.collection import JUNK, collect
from rvc_coreml.converters.forms import Form
from rvc_coreml.converters.many import Options, Outcome, convert_collection, index_beside, is_one_voice
from rvc_coreml.converters.preflight import Finding, Preflight
from rvc_coreml.errors import ConversionError, FallbackError, IncompleteCheckpoint, UsageError
from rvc_coreml.models.stages import VOICE_STAGES
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.library import Component
from rvc_coreml.runtime.manifest import Manifest, StageEntry
from support.checkpoints import write_small_hubert, write_voice
from support.cli import tree
from support.mixed import BUILT, write_index, write_mixed_folder, write_zip

FP16 = Options(["fp16"])


class Conversions:
    """Stands for `convert_voice`: takes note of what it is given and writes nothing."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.fails: dict[str, BaseException] = {}

    def __call__(
        self, source: Any, library: Any, *, name: Any = None, index: Any = None, precision: Any = "fp16", **rest: Any
    ) -> Component:
        if name in self.fails:
            raise self.fails[name]
        stored = None if index is None else {"file": Path(index).name, "sha256": sha256(Path(index))}
        self.made[name] = {"source": Path(source).name, "sha256": sha256(Path(source)), "index": stored}
        entry = StageEntry("p", "g", "o", 10, 1, precision[0], "ALL", "iOS17", {}, {}, {}, 0, None)
        origin = {"file": Path(source).name, "sha256": sha256(Path(source))}
        form = Form.parse(VOICE_STAGES, precision, **{key: rest[key] for key in ("layout", "windows", "weights", "target", "target_snr")})
        details = {"version": "v2", **form.details()}
        manifest = Manifest("voice", name, "build", origin, {}, dict.fromkeys(VOICE_STAGES, entry), details, stored)
        return Component(Path(library) / "voices" / name, manifest)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def convert(*paths: Path, library: Path, options: Options = FP16, conversions: Conversions | None = None) -> tuple[Outcome, Conversions]:
    conversions = conversions or Conversions()
    outcome = convert_collection(paths, library, options, progress=lambda _step, _share: None, convert=conversions)
    return outcome, conversions


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_folder(tmp_path_factory.mktemp("mixed") / "voices")


def test_what_strict_refuses_is_counted_and_not_listed_in_the_table(tmp_path: Path) -> None:
    archive = tmp_path / "pack.zip"
    write_zip(archive, ("zipped.pth", write_voice(tmp_path / "zipped.pth")))
    finding = Finding("tanh", "aten.tanh.default", "dec", "", (), (), "unwanted", "", "", (), 1)
    conversions = Conversions()
    conversions.fails["zipped"] = FallbackError("a list of both", [Preflight("decoder", 9, 9, (finding, finding))])
    outcome, _ = convert(archive, library=tmp_path / "library", conversions=conversions)
    said = "2 operations would stay in PyTorch, and --strict allows none: --check lists them"
    assert [(remark.source, remark.reason) for remark in outcome.failed] == [(f"{archive}: zipped.pth", said)]


def test_everything_in_a_mixed_folder_is_converted_or_explained(mixed: Path, tmp_path: Path, temporary: Path) -> None:
    before = tree(mixed)
    outcome, conversions = convert(mixed, library=tmp_path / "library")
    assert set(conversions.made) == {"singer", "Old Singer_e20_s300", "nof0", "zipped", "down_Singer"}
    indexes = {name: made["index"] and made["index"]["file"] for name, made in conversions.made.items()}
    assert indexes == {
        "singer": BUILT.format("singer", "v2"),
        "Old Singer_e20_s300": BUILT.format("old_singer", "v1"),
        "nof0": None,
        "zipped": BUILT.format("zipped", "v2"),
        "down_Singer": None,
    }
    assert [(one.name, Path(one.source).name) for one in outcome.skipped] == [("singer", "z copy.pth")]
    failed = {Path(remark.source).name: remark.reason for remark in outcome.failed}
    reasons = {
        "truncated.pth": "damaged or truncated",
        "empty.pth": "empty",
        "page.pth": "neither a torch checkpoint",
        "harmful.pth": "system",
        "incomplete.pth": "emb_g.weight",
        "nof0.index": "truncated",
        "hostile.zip": "leads out",
        "bomb.zip": "claims to unpack",
        "broken.zip": "not a zip archive",
    }
    assert set(failed) == set(reasons)
    for name, reason in reasons.items():
        assert reason in failed[name], failed[name]
    ignored = {remark.source.removeprefix(f"{mixed}/"): remark.reason for remark in outcome.ignored}
    words = {
        "hubert_base.pt": "convert hubert",
        "G_2333.pth": "training file",
        "D_2333.pth": "discriminator",
        BUILT.format("stranger", "v2"): "'stranger'",
        BUILT.format("singer", "v2").replace("added", "trained"): "holds no vectors",
        "other.index": "not a feature index",
        "nested.zip: pack.zip": "inside another",
    }
    for name, reason in words.items():
        assert reason in ignored.pop(name)
    assert set(ignored.values()) == {JUNK}
    assert {"song.wav", ".DS_Store", "._singer.pth", "voices.7z", "book.docx", "pack.zip: 2 other files"} <= set(ignored)
    said = {one.component.manifest.name: one.remark for one in outcome.converted}
    assert "singer.pth" in str(said["down_Singer"])
    assert "nof0.index" in str(said["nof0"])
    assert said["singer"] is None
    assert tree(mixed) == before
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "library").exists()


def test_no_file_is_forgotten(mixed: Path, tmp_path: Path) -> None:
    outcome, _ = convert(mixed, library=tmp_path / "library")
    spoken = {one.source for one in outcome.converted} | {one.source for one in outcome.skipped}
    spoken |= {one.index for one in outcome.converted if one.index}
    spoken |= {remark.source for remark in [*outcome.failed, *outcome.ignored]}
    mentioned = {source.partition(": ")[0] for source in spoken}
    files = {str(path) for path in mixed.rglob("*") if path.is_file()}
    assert files == mentioned
    assert len(files) >= 30


def test_one_voices_failure_costs_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_voice(tmp_path / f"{name}.pth", seed=ord(name))
    conversions = Conversions()
    conversions.fails = {"a": ConversionError("it does not compute"), "b": ZeroDivisionError("division"), "c": MemoryError()}
    outcome, _ = convert(tmp_path, library=tmp_path / "library", conversions=conversions)
    assert list(conversions.made) == ["d"]
    reasons = {Path(remark.source).name: remark.reason for remark in outcome.failed}
    assert reasons["a.pth"] == "it does not compute"
    assert "fault in rvc-coreml itself (ZeroDivisionError: division)" in reasons["b.pth"]
    assert "memory" in reasons["c.pth"]


def test_an_interrupt_is_not_swallowed_and_leaves_nothing_unpacked(tmp_path: Path, temporary: Path) -> None:
    write_zip(tmp_path / "pack.zip", ("a.pth", write_voice(tmp_path / "x.pth")))
    conversions = Conversions()
    conversions.fails = {"a": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "pack.zip", library=tmp_path / "library", conversions=conversions)
    assert list(temporary.iterdir()) == []


def test_a_member_is_spoken_of_by_its_own_name(tmp_path: Path, temporary: Path) -> None:
    damaged = write_voice(tmp_path / "x.pth", drop=("emb_g.weight",))
    write_zip(tmp_path / "pack.zip", ("in/a.pth", damaged), ("in/readme.md", b""))
    outcome, _ = convert(tmp_path / "pack.zip", library=tmp_path / "library")
    [remark] = outcome.failed
    assert remark.source == f"{tmp_path / 'pack.zip'}: in/a.pth"
    assert "emb_g.weight" in remark.reason
    assert str(temporary) not in remark.reason


def test_the_same_paths_given_twice_count_once(tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    voice = write_voice(tmp_path / "voices" / "a.pth")
    (tmp_path / "link.pth").symlink_to(voice)
    outcome, conversions = convert(voice, voice.parent, tmp_path / "link.pth", voice, library=tmp_path / "library")
    assert list(conversions.made) == ["a"]
    assert outcome.skipped == outcome.failed == outcome.ignored == []


def test_names_that_are_taken_get_the_folder_or_the_archive_in_front(tmp_path: Path) -> None:
    made = {}
    for number, place in enumerate(("one", "two", "three/one")):
        (tmp_path / place).mkdir(parents=True)
        made[place] = write_voice(tmp_path / place / "model.pth", seed=number)
    write_zip(tmp_path / "four.zip", ("model.pth", write_voice(tmp_path / "x.pth", seed=9)))
    (tmp_path / "x.pth").unlink()
    _, conversions = convert(tmp_path / "one", tmp_path / "two", tmp_path / "three", tmp_path / "four.zip", library=tmp_path / "library")
    assert list(conversions.made) == ["model", "two_model", "one_model", "four_model"]


def test_a_library_inside_a_folder_is_not_converted_again(small_library: Path, tmp_path: Path) -> None:
    shutil.copytree(small_library, tmp_path / "library")
    shutil.copytree(small_library, tmp_path / "another")
    write_voice(tmp_path / "a.pth", seed=5)
    outcome, conversions = convert(tmp_path, library=tmp_path / "library")
    assert list(conversions.made) == ["a"]
    reasons = {Path(remark.source).name: remark.reason for remark in outcome.ignored}
    assert "written to" in reasons["library"]
    assert reasons["another"] == "a model library"
    assert outcome.failed == []


def test_what_the_library_has_is_skipped_with_the_same_index_and_options(small_library: Path, tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    voice = Path(shutil.copy(small_library.parent / "v2.pth", tmp_path / "voices" / "another name.pth"))
    outcome, conversions = convert(voice.parent, library=small_library)
    assert [one.name for one in outcome.skipped] == ["v2"]
    assert conversions.made == {}
    assert "converted before" in outcome.skipped[0].reason
    for options in (
        replace(FP16, precision=["fp32"]),
        replace(FP16, precision=["fp16", "flow=fp32"]),
        replace(FP16, layout=["plain"]),
        replace(FP16, windows=["flow=300"]),
        replace(FP16, weights=["decoder=int8"]),
        replace(FP16, target="ios18"),
        replace(FP16, licence="CC0"),
        replace(FP16, name="third"),
    ):
        outcome, conversions = convert(voice.parent, library=small_library, options=options)
        assert outcome.skipped == []
        assert list(conversions.made) == [options.name or "v2"]
    write_index(tmp_path / "voices" / "another_name.index")
    outcome, conversions = convert(voice.parent, library=small_library)
    assert conversions.made["v2"]["index"]["file"] == "another_name.index"


def test_name_and_index_are_for_exactly_one_voice(tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    write_voice(tmp_path / "voices" / "a.pth")
    (tmp_path / "voices" / "b.pth").write_text("junk")
    index = write_index(tmp_path / "mine.index")
    options = replace(FP16, name="given", index=index)
    outcome, conversions = convert(tmp_path / "voices", library=tmp_path / "library", options=options)
    assert conversions.made["given"]["index"]["file"] == "mine.index"
    assert len(outcome.failed) == 1
    write_voice(tmp_path / "voices" / "c.pth", seed=3)
    with pytest.raises(UsageError, match="2 was found"):
        convert(tmp_path / "voices", library=tmp_path / "library", options=options)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.txt").write_text("x")
    with pytest.raises(UsageError, match="none was found"):
        convert(tmp_path / "none", library=tmp_path / "library", options=options)


def test_wrong_options_stop_it_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        convert(tmp_path, library=tmp_path / "library", options=replace(FP16, precision=["int8"]))


def test_nothing_at_all_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(UsageError, match="no voice"):
        convert(tmp_path / "empty", library=tmp_path / "library")


def test_missing_paths_and_devices_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "a.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    outcome, conversions = convert(tmp_path / "gone", tmp_path / "pipe.pth", voice, library=tmp_path / "library")
    assert list(conversions.made) == ["a"]
    assert [remark.reason for remark in outcome.failed] == ["does not exist", "is no file"]


def test_content_decides_whatever_the_ending(tmp_path: Path) -> None:
    write_voice(tmp_path / "a.pth").rename(tmp_path / "a.zip")
    write_voice(tmp_path / "b.pth", seed=2).rename(tmp_path / "b.model")
    write_voice(tmp_path / "c.safetensors", seed=3).rename(tmp_path / "c.bin")
    write_index(tmp_path / "x.index").rename(tmp_path / "b.faiss")
    write_small_hubert(tmp_path / "contentvec")
    (tmp_path / "settings.cache").write_bytes(pickle.dumps({"of": object}))
    outcome, conversions = convert(tmp_path, library=tmp_path / "library")
    assert set(conversions.made) == {"a", "b", "c"}
    assert conversions.made["b"]["index"]["file"] == "b.faiss"
    assert outcome.failed == []
    assert any(remark.source.endswith("settings.cache") for remark in outcome.ignored)
    assert any("HuBERT" in remark.reason for remark in outcome.ignored)
    assert is_one_voice([tmp_path / "a.zip"])
    assert not is_one_voice([tmp_path])
    assert not is_one_voice([write_zip(tmp_path / "d.zip", ("d.pth", b""))])


def test_a_single_voice_finds_the_index_beside_it(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "singer_e10.pth")
    assert index_beside(voice) == (None, None)
    write_index(tmp_path / BUILT.format("other", "v2"))
    assert index_beside(voice) == (None, None)
    index = write_index(tmp_path / BUILT.format("singer", "v2"))
    assert index_beside(voice) == (index, None)
    os.truncate(index, 3000)
    found, remark = index_beside(voice)
    assert found is None
    assert str(index) in str(remark)
    (tmp_path / "bad.pth").write_text("x")
    write_index(tmp_path / "bad.index")
    with pytest.raises(UsageError):
        index_beside(tmp_path / "bad.pth")
    assert index_beside(tmp_path / "gone.pth") == (None, None)


def test_the_outcome_as_json_is_plain(mixed: Path, tmp_path: Path) -> None:
    import json

    outcome, _ = convert(mixed, library=tmp_path / "library")
    told = json.loads(json.dumps(outcome.as_dict()))
    assert {kind: len(entries) for kind, entries in told.items()} == {
        kind: len(getattr(outcome, kind)) for kind in ("converted", "skipped", "failed", "ignored")
    }
    assert set(told["failed"][0]) == {"source", "reason"}
    assert told["failed"] == [asdict(remark) for remark in outcome.failed]


def test_collecting_reads_no_weights(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setattr("rvc_coreml.converters.many.load_voice", None)
    found = collect([mixed], tmp_path / "library")
    assert len(found.candidates) >= 10
    assert {index.width for index in found.indexes} == {256, 768}
    assert list(temporary.iterdir()) == []


def test_errors_keep_their_kind_when_they_name_a_member(tmp_path: Path) -> None:
    from rvc_coreml.converters.collection import Item

    write_zip(tmp_path / "pack.zip", ("a.pth", b"x"))
    with (
        pytest.raises(IncompleteCheckpoint, match=r"pack\.zip: a\.pth lacks"),
        Item(tmp_path / "pack.zip", "a.pth").opened() as path,
    ):
        raise IncompleteCheckpoint(f"{path} lacks something")
