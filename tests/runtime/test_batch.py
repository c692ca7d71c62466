"""Many conversions in one go, with a stand-in for the converter."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import AudioError, OutputError, UsageError
from rvc_coreml.runtime.batch import STATE, Converted, FileResult, State, fingerprint, run, survey
from rvc_coreml.runtime.files import atomic_path, output_errors
from rvc_coreml.runtime.options import ConversionOptions
from rvc_coreml.runtime.planning import AUDIO_ENDINGS, find_inputs, is_many, plan_outputs
from support.cli import tree, unchanged


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


class Stand:
    """Converts by copying; `faults` are raised for the names they are given for."""

    def __init__(self, faults: dict[str, BaseException] | None = None) -> None:
        self.faults = faults or {}
        self.calls: list[str] = []

    def __call__(self, source: Path, target: Path, progress: Callable[[str, float], None] | None) -> Converted:
        self.calls.append(source.name)
        if progress:
            progress("voice", 0.5)
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            if source.name in self.faults:
                raise self.faults[source.name]
            temporary.write_text(f"made of {source.read_text()}")
        return Converted(2.0, 1.0, 40000, 80000)


def convert(
    inputs: list[Path | str], output: Path, stand: Stand, made_with: str = "v1", overwrite: bool = False, **settings: object
) -> list[FileResult]:
    found, _notes = find_inputs([str(item) for item in inputs], output)
    lines: list[str] = settings.setdefault("lines", [])  # type: ignore[assignment]
    state = State.read(output, lines.append)
    jobs, renamed = plan_outputs(found, output, ".wav", state.owner)
    lines += renamed
    surveyed = survey(jobs, state, made_with, overwrite)
    strict, progress = settings.get("strict", False), settings.get("progress")
    return list(run(surveyed, state, made_with, stand, notify=lines.append, progress=progress, strict=strict))  # type: ignore[arg-type]


def statuses(results: list[FileResult]) -> dict[str, str]:
    return {result.job.key: result.status for result in results}


def outputs(folder: Path) -> set[str]:
    return {str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file()} - {STATE}


# ---------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("inputs", "output", "many"),
    [
        (["a.wav"], "out.wav", False),
        (["a.wav"], "nowhere", False),
        (["missing.wav"], "out.wav", False),
        (["a.wav"], "folder", True),
        (["a.wav"], "new/", True),
        (["a.wav"], "folder.wav", False),  # a folder there is a mistake, as it always was
        (["a.wav", "b.wav"], "new", True),
        (["folder"], "new", True),
        (["*.wav"], "new", True),
        (["[x].wav"], "out.wav", False),  # a file of that name
    ],
)
def test_one_file_goes_to_a_file_and_all_else_to_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, many: bool
) -> None:
    monkeypatch.chdir(files(tmp_path, "a.wav", "b.wav", "[x].wav", "folder/c.wav", "folder.wav/d.wav"))
    assert is_many(inputs, output) is many


@pytest.mark.parametrize("output", ["out.wav", "a.wav", "text", "out.mp3"])
@pytest.mark.parametrize("inputs", [["a.wav", "b.wav"], ["folder"], ["*.wav"]], ids=" ".join)
def test_several_inputs_do_not_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str) -> None:
    monkeypatch.chdir(files(tmp_path, "a.wav", "b.wav", "text", "folder/c.wav"))
    with pytest.raises(UsageError, match="give a folder last"):
        is_many(inputs, output)


@pytest.mark.parametrize(("inputs", "output"), [([""], "out"), (["a.wav"], ""), (["a.wav", ""], "out")])
def test_an_empty_name_is_refused(inputs: list[str], output: str) -> None:
    with pytest.raises(UsageError, match="empty name"):
        is_many(inputs, output)


def places(inputs: list[str], folder: str = "out") -> list[str]:
    return [item.place.as_posix() for item in find_inputs(inputs, Path(folder))[0]]


def test_a_folder_is_searched_to_any_depth_for_audio_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["in/b.WAV", "in/a.flac", "in/deep/er/c.m4a", "in/notes.txt", "in/._b.wav", "in/.cache/d.wav", "in/cover.jpg", "in/none"]
    monkeypatch.chdir(files(tmp_path, *names))
    assert places(["in"]) == ["a.flac", "b.WAV", "deep/er/c.m4a"]
    assert places(["in/"]) == places(["in"]) == places([str(tmp_path / "in")])


def test_patterns_keep_the_structure_below_their_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files(tmp_path, "in/a.wav", "in/x/b.wav", "in/x/c.txt", "in/y/d.flac", "in/[e].wav", "f.wav"))
    assert places(["in/*.wav"]) == ["[e].wav", "a.wav"]
    assert places(["in/**/*.wav"]) == ["[e].wav", "a.wav", "x/b.wav"]
    assert places(["in/?"]) == ["x/b.wav", "y/d.flac"]
    assert places(["in/[e].wav", "*.wav"]) == ["[e].wav", "f.wav"]


def test_what_is_named_is_taken_whatever_it_is_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files(tmp_path, "in/a.wav", "in/notes.txt"))
    found, notes = find_inputs(["in/notes.txt", "gone.wav", "in", "in/a.wav", "in/*.wav"], Path("out"))
    assert [(item.place.as_posix(), item.problem) for item in found] == [
        ("notes.txt", None),
        ("gone.wav", "gone.wav does not exist"),
        ("a.wav", None),
    ]
    assert notes == []


@pytest.mark.parametrize("inputs", [["empty"], ["*.wav"], ["empty", "text/*"]], ids=" ".join)
def test_nothing_to_convert_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str]) -> None:
    monkeypatch.chdir(files(tmp_path, "text/a.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match=r"nothing to convert: .*(holds no audio file|no audio file matches)"):
        find_inputs(inputs, Path("out"))


def test_an_empty_folder_among_others_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files(tmp_path, "in/a.wav")
    found, notes = find_inputs([str(tmp_path / "empty"), str(tmp_path / "in")], tmp_path / "out")
    assert len(found) == 1
    assert notes == [f"{tmp_path / 'empty'} holds no audio file"]


@pytest.mark.parametrize("inputs", [["in"], ["in/**"], ["in/*"], ["in/**/*.wav"]], ids=" ".join)
def test_outputs_inside_the_input_folder_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str]) -> None:
    monkeypatch.chdir(files(tmp_path, "in/a.wav", "in/x/b.wav", "in/out/a.wav", "in/out/x/b.wav"))
    expected = ["a.wav", "x/b.wav"]
    assert places(inputs, "in/out") == expected
    assert len(places(inputs, "elsewhere")) == 4


@pytest.mark.parametrize("inputs", [["in"], ["in/*.wav"]])
def test_a_folder_is_not_converted_into_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str]) -> None:
    monkeypatch.chdir(files(tmp_path, "in/a.wav"))
    os.symlink("in", "link")
    for output in ("in", "in/", "link"):
        with pytest.raises(UsageError, match="the folder that the inputs are in"):
            find_inputs(inputs, Path(output))


def test_a_link_to_a_folder_above_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files(tmp_path, "in/a.wav"))
    os.symlink("..", "in/up")
    assert places(["in"]) == ["a.wav"]


def keys(inputs: list[str], owner: Callable[[str], str | None] = lambda _key: None) -> dict[str, str]:
    jobs, _notes = plan_outputs(find_inputs(inputs, Path("out"))[0], Path("out"), ".flac", owner)
    return {job.source.as_posix(): job.key for job in jobs}


def test_inputs_that_would_share_an_output_are_told_apart_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = unicodedata.normalize("NFD", "é.mp3")
    monkeypatch.chdir(files(tmp_path, "x/a.wav", "x/a.mp3", "x/A.ogg", "y/a.wav", "y/take.1.wav", f"y/{decomposed}", "x/é.wav"))
    assert keys(["x", "y"]) == {
        "x/A.ogg": "A.flac",
        "x/a.mp3": "a (2).flac",
        "x/a.wav": "a (3).flac",
        "x/é.wav": "é.flac",
        "y/a.wav": "a (4).flac",
        f"y/{decomposed}": unicodedata.normalize("NFD", "é (2).flac"),
        "y/take.1.wav": "take.1.flac",
    }
    _jobs, notes = plan_outputs(find_inputs(["x/a.wav", "y/a.wav"], Path("out"))[0], Path("out"), ".wav", lambda _key: None)
    assert notes == ["y/a.wav goes to a (2).wav: another input has the output a.wav"]


@given(
    names=st.lists(st.text("aAé.1/", min_size=1, max_size=6).map(lambda name: name.strip("/.")).filter(bool), max_size=12),
    ending=st.sampled_from([".wav", ".MP3", ""]),
)
@settings(deadline=None, max_examples=60)
def test_no_two_inputs_ever_share_an_output(names: list[str], ending: str) -> None:
    found = [SimpleNamespace(source=Path(f"/in/{i}{ending}"), place=Path(f"{name}{ending}"), problem=None) for i, name in enumerate(names)]
    jobs, _notes = plan_outputs(found, Path("/nowhere/out"), ".wav", lambda _key: None)  # type: ignore[arg-type]
    assert len({unicodedata.normalize("NFC", job.key).casefold() for job in jobs}) == len(names)
    assert all(job.key.endswith(".wav") and not job.key.startswith("..") for job in jobs)


def test_an_output_that_is_an_input_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files(tmp_path, "a.wav", "b.mp3"))
    jobs, _notes = plan_outputs(find_inputs(["a.wav", "b.mp3"], Path())[0], Path(), ".wav", lambda _key: None)
    assert [(job.key, job.problem is None) for job in jobs] == [("a.wav", False), ("b.wav", True)]


def test_every_output_format_is_read_from_folders_too() -> None:
    from rvc_coreml.runtime.audio import FORMATS

    assert set(FORMATS) <= AUDIO_ENDINGS


# ---------------------------------------------------------------- running


def test_results_keep_structure_and_a_second_run_skips_everything(tmp_path: Path) -> None:
    source, output = files(tmp_path / "in", "a.wav", "x/b.flac"), tmp_path / "out" / "put"
    seen: list[tuple[int, str, str, float]] = []
    stand = Stand()
    results = convert([source], output, stand, progress=lambda n, job, step, share: seen.append((n, job.key, step, share)))
    assert statuses(results) == {"a.wav": "converted", "x/b.wav": "converted"}
    assert (output / "x" / "b.wav").read_text() == "made of x/b.flac"
    assert seen == [(number, key, *step) for number, key in enumerate(("a.wav", "x/b.wav")) for step in (("reading", 0.0), ("voice", 0.5))]
    assert results[0].as_dict()["real_time_factor"] == 0.5
    with unchanged(output):
        assert set(statuses(convert([source], output, stand)).values()) == {"skipped"}
    assert stand.calls == ["a.wav", "b.flac"]


@pytest.mark.parametrize("change", ["options", "input", "input's time", "output gone", "output truncated", "state gone"])
def test_what_has_changed_is_made_again_and_nothing_foreign_is_touched(tmp_path: Path, change: str) -> None:
    source, output, lines = files(tmp_path / "in", "a.wav", "b.wav"), tmp_path / "out", []
    convert([source], output, Stand())
    status = "converted"
    if change == "input":
        (source / "a.wav").write_text("something else")
    elif change == "input's time":
        os.utime(source / "a.wav", (1, 1))
    elif change == "output gone":
        (output / "a.wav").unlink()
    elif change == "output truncated":
        (output / "a.wav").write_text("cut")
        status = "failed"
    elif change == "state gone":
        (output / STATE).unlink()
        status = "failed"
    stand = Stand()
    results = statuses(convert([source], output, stand, "v2" if change == "options" else "v1", lines=lines))
    others = {"options": "converted", "state gone": "failed"}.get(change, "skipped")
    assert results == {"a.wav": status, "b.wav": others}
    assert ("a.wav" in stand.calls) is (status == "converted")
    if status == "failed":
        assert "--overwrite" in lines[0]
        kept = (output / "a.wav").read_text()
        assert kept == ("cut" if change == "output truncated" else "made of a.wav")
        assert statuses(convert([source], output, Stand(), overwrite=True))["a.wav"] == "converted"
        assert set(statuses(convert([source], output, Stand())).values()) == {"skipped"}


def test_an_output_that_was_edited_is_not_replaced_when_options_change(tmp_path: Path) -> None:
    source, output = files(tmp_path / "in", "a.wav"), tmp_path / "out"
    convert([source], output, Stand())
    (output / "a.wav").write_text("MADE of a.wav")  # as long as it was
    assert statuses(convert([source], output, Stand(), "v2")) == {"a.wav": "failed"}
    assert (output / "a.wav").read_text() == "MADE of a.wav"


def test_an_output_folder_that_was_copied_is_still_known(tmp_path: Path) -> None:
    import shutil

    convert([files(tmp_path / "one" / "in", "a.wav")], tmp_path / "one" / "out", Stand())
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    os.utime(tmp_path / "other" / "out" / "a.wav", (5, 5))
    assert statuses(convert([tmp_path / "other" / "in"], tmp_path / "other" / "out", Stand())) == {"a.wav": "skipped"}
    assert statuses(convert([tmp_path / "other" / "in"], tmp_path / "other" / "out", Stand(), "v2")) == {"a.wav": "converted"}


def test_another_inputs_output_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    files(tmp_path, "x/a.wav", "y/a.wav")
    output, lines = tmp_path / "out", []
    convert([tmp_path / "x"], output, Stand())
    assert statuses(convert([tmp_path / "y" / "a.wav"], output, Stand(), lines=lines)) == {"a (2).wav": "converted"}
    assert len(lines) == 1
    assert statuses(convert([tmp_path / "y", tmp_path / "x"], output, Stand())) == {"a (2).wav": "skipped", "a.wav": "skipped"}
    assert (output / "a.wav").read_text() == "made of x/a.wav"


def test_a_bad_file_is_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    source, output, lines = files(tmp_path / "in", "a.wav", "sub/b.wav", "c.wav", "d.wav", "e.wav"), tmp_path / "out", []
    faults = {
        "a.wav": AudioError(f"{source / 'a.wav'} cannot be read"),
        "b.wav": ZeroDivisionError("division\nby zero"),
        "d.wav": MemoryError(),
    }
    results = convert([source, tmp_path / "gone.wav"], output, Stand(faults), lines=lines)
    assert statuses(results) == {
        "a.wav": "failed",
        "c.wav": "converted",
        "d.wav": "failed",
        "e.wav": "converted",
        "sub/b.wav": "failed",
        "gone.wav": "failed",
    }
    assert outputs(output) == {"c.wav", "e.wav"}
    assert not (output / "sub").exists()
    assert len(lines) == 4
    assert [result.reason for result in results if result.reason] == lines
    assert lines[0] == f"{source / 'a.wav'} cannot be read"
    assert "enough memory" in lines[1]
    assert lines[2].startswith(f"{source / 'sub' / 'b.wav'}: a fault in rvc-coreml itself (ZeroDivisionError: division by zero)")
    assert all(result.as_dict()["reason"] for result in results if result.status == "failed")


def test_faults_pass_where_they_are_asked_for(tmp_path: Path) -> None:
    source = files(tmp_path / "in", "a.wav")
    with pytest.raises(ZeroDivisionError):
        convert([source], tmp_path / "out", Stand({"a.wav": ZeroDivisionError()}), strict=True)
    assert not (tmp_path / "out").exists()


def test_a_run_in_which_everything_fails_leaves_no_folder(tmp_path: Path) -> None:
    source = files(tmp_path / "in", "x/a.wav")
    convert([source], tmp_path / "out" / "put", Stand({"a.wav": AudioError("bad")}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_ends_the_run_and_a_refused_output_does_not(tmp_path: Path, number: int) -> None:
    source, output = files(tmp_path / "in", "a.wav", "b.wav", "c.wav"), tmp_path / "out"
    stand = Stand({"b.wav": OSError(number, os.strerror(number))})
    if number == errno.ENOSPC:
        with pytest.raises(OutputError, match="No space left"):
            convert([source], output, stand)
        assert outputs(output) == {"a.wav"}
    else:
        assert list(statuses(convert([source], output, stand)).values()) == ["converted", "failed", "converted"]
    assert set(statuses(convert([source], output, Stand())).values()) == {"converted", "skipped"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing_half_and_the_next_run_goes_on(tmp_path: Path, stop: type[BaseException]) -> None:
    source, output = files(tmp_path / "in", "a.wav", "x/b.wav", "x/c.wav"), tmp_path / "out"
    with pytest.raises(stop):
        convert([source], output, Stand({"b.wav": stop()}))
    assert sorted(tree(output)) == [STATE, "a.wav"]
    stand = Stand()
    assert list(statuses(convert([source], output, stand)).values()) == ["skipped", "converted", "converted"]
    assert stand.calls == ["b.wav", "c.wav"]


def test_an_interrupt_right_after_an_output_appeared_counts_it_as_done(tmp_path: Path) -> None:
    source, output = files(tmp_path / "in", "a.wav"), tmp_path / "out"

    class Late(Stand):
        def __call__(self, source: Path, target: Path, progress: object) -> Converted:
            super().__call__(source, target, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([source], output, Late())
    assert statuses(convert([source], output, Stand())) == {"a.wav": "skipped"}


def test_an_output_of_a_run_that_was_killed_is_made_again(tmp_path: Path) -> None:
    """Killed between the output and the state: the state says that it had been begun."""
    source, output = files(tmp_path / "in", "a.wav"), tmp_path / "out"
    convert([source], output, Stand())
    state = json.loads((output / STATE).read_text())
    state["outputs"]["a.wav"]["output"] = None
    (output / STATE).write_text(json.dumps(state))
    assert statuses(convert([source], output, Stand())) == {"a.wav": "converted"}
    assert statuses(convert([source], output, Stand())) == {"a.wav": "skipped"}


def test_the_state_is_on_disk_before_the_next_file_begins(tmp_path: Path) -> None:
    source, output = files(tmp_path / "in", "a.wav", "b.wav"), tmp_path / "out"
    seen = []

    class Watching(Stand):
        def __call__(self, source: Path, target: Path, progress: object) -> Converted:
            entries = json.loads((output / STATE).read_text())["outputs"]
            seen.append({key: entry["output"] is not None for key, entry in entries.items()})
            return super().__call__(source, target, None)

    convert([source], output, Watching())
    assert seen == [{"a.wav": False}, {"a.wav": True, "b.wav": False}]


DAMAGED = [
    "",
    "{",
    "[]",
    "5",
    "null",
    '{"format_version": 1}',
    '{"format_version": 99, "outputs": {}}',
    '{"format_version": 1, "outputs": {"a.wav": 5}}',
    '{"format_version": 1, "outputs": {"a.wav": {"source": 1, "input": {}, "made_with": "", "output": null}}}',
    '{"format_version": 1, "outputs": {"a.wav": {"source": "a", "input": {"size": 1, "mtime_ns": "x"}, "made_with": "", "output": null}}}',
    '{"format_version": 1, "outputs": []}',
    "[" * 100_000,
    "\ud800",
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_state_is_said_and_nothing_is_overwritten(tmp_path: Path, content: str) -> None:
    source, output, lines = files(tmp_path / "in", "a.wav", "b.wav"), files(tmp_path / "out", "a.wav"), []
    (output / STATE).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert statuses(convert([source], output, Stand(), lines=lines)) == {"a.wav": "failed", "b.wav": "converted"}
    assert "damaged" in lines[0]
    assert (output / "a.wav").read_text() == "a.wav"
    assert statuses(convert([source], output, Stand()))["b.wav"] == "skipped"


@pytest.mark.parametrize("place", ["out", "out/x", "out/x/a.wav"])
def test_a_file_or_folder_in_the_way_fails_alone(tmp_path: Path, place: str) -> None:
    source = files(tmp_path / "in", "x/a.wav")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    if place.endswith(".wav"):
        (tmp_path / place).mkdir()
    else:
        (tmp_path / place).write_text("kept")
    with unchanged(tmp_path / "in"):
        results = convert([source], tmp_path / "out", Stand(), overwrite=True)
    assert statuses(results) == {"x/a.wav": "failed"}
    assert (tmp_path / place).is_dir() or (tmp_path / place).read_text() == "kept"
    assert sorted(item.name for item in (tmp_path / place).parent.iterdir()) == sorted(
        {"in", "out"} if place == "out" else {Path(place).name}
    )


def test_the_fingerprint_depends_on_all_that_changes_the_sound() -> None:
    def component(build: str) -> SimpleNamespace:
        return SimpleNamespace(manifest=SimpleNamespace(kind="voice", name="v", build=build))

    base = fingerprint([component("one")], ConversionOptions(), backend="torch")  # type: ignore[list-item]
    assert base == fingerprint([component("one")], ConversionOptions(), backend="torch")  # type: ignore[list-item]
    others = [
        fingerprint([component("two")], ConversionOptions(), backend="torch"),  # type: ignore[list-item]
        fingerprint([component("one")], ConversionOptions(), backend="coreml"),  # type: ignore[list-item]
        fingerprint([], ConversionOptions(), backend="torch"),
        *(
            fingerprint([component("one")], ConversionOptions(**{name: value}), backend="torch")  # type: ignore[list-item, arg-type]
            for name, value in {"pitch": 1.0, "index_rate": 0.5, "seed": 1, "split": "sum", "autotune": 1.0}.items()
        ),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_output_errors_know_their_cause() -> None:
    """What decides whether a run ends."""

    def full() -> None:
        with output_errors(Path("x")):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError) as caught:
        full()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
