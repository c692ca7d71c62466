from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.errors import LibraryError, OutputError
from rvc_coreml.models.stages import VOICE_STAGES
from rvc_coreml.runtime import library as module
from rvc_coreml.runtime.library import CONTENT_ENCODER, VOICES, Component, Library, check_name, new_build
from rvc_coreml.runtime.manifest import Manifest, StageEntry
from support.forked import python

STAGE = StageEntry(
    package="flow.mlpackage",
    golden="flow.safetensors",
    operations="flow.json",
    window=100,
    context=24,
    precision="fp16",
    compute_units="ALL",
    minimum_deployment_target="iOS17",
    inputs={"z": [1, 4, 100]},
    outputs={"audio": [1, 1, 40000]},
    operation_counts={"conv": 3},
    audited_values=12,
    reference_snr_db=None,
)


def manifest(name: str = "anna", kind: str = "voice", build: str | None = None) -> Manifest:
    return Manifest(
        kind=kind,
        name=name,
        build=build or new_build("0123456789abcdef"),
        source={"file": "anna.pth", "sha256": "00"},
        tools={"coremltools": "9.0"},
        stages=dict.fromkeys([CONTENT_ENCODER] if kind == CONTENT_ENCODER else VOICE_STAGES, STAGE),
        details={"version": "v2", "versions": ["v2"], "sample_rate": 40000, "f0": True, "speakers": 1},
    )


def fill(folder: Path, content: str = "weights") -> None:
    (folder / "weights.safetensors").write_text(content)
    (folder / "flow.mlpackage").mkdir()
    (folder / "flow.mlpackage" / "Manifest.json").write_text("{}")
    (folder / "flow.safetensors").write_text("golden")
    (folder / "flow.json").write_text('{"conv_0": "flow.flows.0"}')


def add(library: Library, entry: Manifest, content: str = "weights") -> Component:
    with library.write(entry.kind, entry.name) as temporary:
        fill(temporary, content)
        return library.commit(temporary, entry)


def tree(path: Path) -> dict[str, bytes | None]:
    """Every file's bytes and every folder under a path."""
    return {str(item.relative_to(path)): None if item.is_dir() else item.read_bytes() for item in path.rglob("*")}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """With one voice and a content encoder."""
    made = Library(tmp_path / "lib")
    add(made, manifest())
    add(made, manifest("hubert", CONTENT_ENCODER))
    return made


def test_what_is_committed_is_read_back(tmp_path: Path) -> None:
    written = manifest()
    component = add(Library(tmp_path / "lib"), written)
    found = Library.open(tmp_path / "lib").voice("anna")
    assert found == component
    assert found.manifest == written
    assert found.folder == tmp_path / "lib" / VOICES / "anna"
    assert found.weights.read_text() == "weights"
    assert found.package("flow").is_dir()
    assert found.golden("flow").read_text() == "golden"
    assert found.operations("flow") == {"conv_0": "flow.flows.0"}
    assert found.title == "voice 'anna'"


def test_components_are_the_content_encoder_and_the_voices_by_name(library: Library) -> None:
    for name in ("zoe", "Bob", "ärger"):
        add(library, manifest(name))
    assert library.voice_names() == ["Bob", "anna", "zoe", "ärger"]
    assert [component.title for component in library.components()] == [
        "content encoder",
        "voice 'Bob'",
        "voice 'anna'",
        "voice 'zoe'",
        "voice 'ärger'",
    ]


def test_existing_tells_what_a_conversion_would_replace(library: Library) -> None:
    assert library.existing("voice", "anna") == library.voice("anna")
    assert library.existing(CONTENT_ENCODER, "any name") == library.content_encoder()
    assert library.existing("voice", "berta") is None


def test_a_commit_replaces_the_old_build(library: Library) -> None:
    old = library.voice("anna")
    new = add(library, manifest(), "new weights")
    assert library.voice("anna") == new
    assert new.weights.read_text() == "new weights"
    assert not old.build.exists()
    assert sorted(os.listdir(new.folder)) == sorted([new.manifest.build, "manifest.json"])


def test_a_commit_leaves_other_components_alone(library: Library) -> None:
    before = tree(library.path / CONTENT_ENCODER)
    add(library, manifest(), "new weights")
    add(library, manifest("berta"))
    assert tree(library.path / CONTENT_ENCODER) == before


def test_a_build_is_invisible_until_it_is_committed(library: Library) -> None:
    before = library.components()
    with library.write("voice", "berta") as temporary:
        fill(temporary)
        assert library.components() == before
        assert Library.open(library.path).voice_names() == ["anna"]
    assert library.components() == before


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_building_leaves_the_tree_byte_for_byte(library: Library, failure: type[BaseException]) -> None:
    before = tree(library.path)

    def build() -> None:
        with library.write("voice", "anna") as temporary:
            fill(temporary)
            raise failure

    with pytest.raises(failure):
        build()
    assert tree(library.path) == before


def test_a_failure_in_a_new_library_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with Library(tmp_path / "lib").write("voice", "anna") as temporary:
            fill(temporary)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised just above
        build()
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    with Library(tmp_path / "lib").write("voice", "anna"):
        pass
    assert tree(tmp_path) == {"lib": None}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_a_failure_while_switching_the_manifest_keeps_the_old_voice(
    library: Library, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = tree(library.path)

    def failing(_path: Path, _value: Any) -> None:
        raise failure

    monkeypatch.setattr(module, "write_json", failing)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt):
        add(library, manifest(), "new weights")
    assert tree(library.path) == before


def test_a_failure_while_switching_a_first_manifest_leaves_no_voice(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(library.path)

    def failing(_path: Path, _value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", failing)
    with pytest.raises(OutputError, match="berta could not be written: No space left on device"):
        add(library, manifest("berta"))
    assert tree(library.path) == before


def script(body: str, *arguments: object) -> Any:
    """A Python process that has this file's helpers."""
    prelude = f"import importlib.util, sys; spec = importlib.util.spec_from_file_location('helpers', {__file__!r}); "
    prelude += "helpers = importlib.util.module_from_spec(spec); spec.loader.exec_module(helpers); globals().update(vars(helpers))\n"
    return python(prelude + body, *arguments)


def ended(process: Any) -> int:
    """With which status; what it said goes into a failing test's message."""
    stderr = process.communicate(timeout=60)[1]
    print(stderr)
    return process.returncode


CRASH = """
module.write_json = lambda path, value: os._exit(9)
add(Library(sys.argv[1]), manifest(), "new weights")
"""


def test_a_crash_between_rename_and_manifest_leaves_the_old_voice_and_the_next_commit_cleans_up(library: Library) -> None:
    before = library.voice("anna")
    assert ended(script(CRASH, library.path)) == 9
    assert library.voice("anna") == before
    assert before.weights.read_text() == "weights"
    assert len(os.listdir(before.folder)) == 3
    after = add(library, manifest(), "newer weights")
    assert sorted(os.listdir(after.folder)) == sorted([after.manifest.build, "manifest.json"])
    assert after.weights.read_text() == "newer weights"


KILLED = """
with Library(sys.argv[1]).write("voice", "anna") as temporary:
    fill(temporary)
    os._exit(9)
"""


def test_what_a_killed_process_was_building_is_swept_by_the_next_conversion(library: Library) -> None:
    before = tree(library.path)
    assert ended(script(KILLED, library.path)) == 9
    (leftover,) = library.path.glob(".convert-*")
    assert (leftover / "weights.safetensors").is_file()
    assert [component.title for component in Library.open(library.path).components()] == ["content encoder", "voice 'anna'"]
    with library.write("voice", "berta"):
        assert not leftover.exists()
    assert tree(library.path) == before


def test_what_a_living_process_builds_is_not_swept(library: Library) -> None:
    with library.write("voice", "berta") as first:
        fill(first)
        mine = library.path / f".convert-{os.getppid()}-00"
        mine.mkdir()
        with library.write("voice", "carla") as second:
            assert first.is_dir()
            assert mine.is_dir()
            assert first != second
        library.commit(first, manifest("berta"))
    assert library.voice_names() == ["anna", "berta"]


@pytest.mark.parametrize("name", [".convert-", ".convert-abc-1", ".convert-notes"])
def test_folders_that_name_no_process_are_not_swept(library: Library, name: str) -> None:
    (library.path / name).mkdir()
    with library.write("voice", "berta"):
        assert (library.path / name).is_dir()


# Reading back can meet another process's commit; test_a_voice_replaced_while_it_is_read... is about that.
COMMITS = """
for _ in range(8):
    try:
        add(Library(sys.argv[1]), manifest(sys.argv[2]), sys.argv[3])
    except LibraryError as error:
        assert "is incomplete" in str(error)
"""


@pytest.mark.parametrize(
    "act", [lambda library: library.voice("anna"), lambda library: add(library, manifest(), "mine")], ids=["reading", "committing"]
)
def test_a_voice_replaced_while_it_is_read_is_found_whole(library: Library, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    check = module._check

    def overtaken(component: Component) -> None:
        monkeypatch.setattr(module, "_check", check)
        add(library, manifest(), "another process's weights")
        check(component)

    monkeypatch.setattr(module, "_check", overtaken)
    assert act(library).weights.read_text() in {"mine", "another process's weights"}


def test_concurrent_commits_of_one_voice_leave_one_whole_build(tmp_path: Path) -> None:
    library = Library(tmp_path / "lib")
    processes = [script(COMMITS, library.path, "anna", f"weights {index}") for index in range(3)]
    assert [ended(process) for process in processes] == [0, 0, 0]
    component = library.voice("anna")
    assert component.weights.read_text() in {"weights 0", "weights 1", "weights 2"}
    assert sorted(os.listdir(component.folder)) == sorted([component.manifest.build, "manifest.json"])
    assert not list(library.path.glob(".convert-*"))


def test_concurrent_commits_of_different_voices_all_arrive(tmp_path: Path) -> None:
    library = Library(tmp_path / "lib")
    processes = [script(COMMITS, library.path, f"voice {index}", "weights") for index in range(3)]
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert [component.manifest.name for component in library.components()] == ["voice 0", "voice 1", "voice 2"]


def test_a_commit_waits_for_another_processs_commit(library: Library) -> None:
    fcntl = pytest.importorskip("fcntl")
    before = library.voice("anna").manifest
    with (library.path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        body = "add(Library(sys.argv[1]), manifest(), 'new weights')"
        process = script(body, library.path)
        while process.poll() is None and not list(library.path.glob(".convert-*/flow.json")):
            time.sleep(0.01)
        time.sleep(0.3)
        assert process.poll() is None
        assert library.voice("anna").manifest == before
    assert ended(process) == 0
    assert library.voice("anna").weights.read_text() == "new weights"


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="the folder does not exist"):
        Library.open(tmp_path / "none")


def test_a_folder_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(LibraryError, match="holds no content encoder and no voice"):
        Library.open(tmp_path)


def test_an_unknown_voice_is_refused_with_those_known(library: Library) -> None:
    add(library, manifest("berta"))
    with pytest.raises(LibraryError, match="has no voice 'carla'; its voices are: anna, berta"):
        library.voice("carla")


@pytest.mark.parametrize("name", ["../voices/anna", "../content_encoder", "", ".", "anna/", "/etc"])
def test_a_voices_name_is_no_path(library: Library, name: str) -> None:
    with pytest.raises(LibraryError, match="has no voice"):
        library.voice(name)


def test_a_library_without_content_encoder_says_how_to_add_one(tmp_path: Path) -> None:
    add(Library(tmp_path / "lib"), manifest())
    with pytest.raises(LibraryError, match="has no content encoder; add one with 'rvc-coreml convert hubert"):
        Library.open(tmp_path / "lib").content_encoder()


@pytest.mark.parametrize("name", ["a", "Anna 2 (live)", "声", "ä" * 50, "x" * 100, "con.pth", "-o"])
def test_good_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    add(Library(tmp_path / "lib"), manifest(name))
    assert Library.open(tmp_path / "lib").voice_names() == [name]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a\nb", "a\0b", "\x1b[2J", "x" * 101, "ä" * 51])
def test_bad_names_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(LibraryError, match="cannot be a voice's name"), Library(tmp_path / "lib").write("voice", name):
        pass
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(LibraryError):
        check_name("caf\udce9")


def test_builds_never_share_a_folder() -> None:
    builds = {new_build("ab" * 32) for _ in range(100)}
    assert len(builds) == 100
    assert all(build.startswith("build-abababababab-") for build in builds)


def edit(library: Library, **changes: Any) -> Path:
    """Change the voice's manifest on disk."""
    path = library.path / VOICES / "anna" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


DAMAGED = {
    "empty": b"",
    "not json": b"{'kind': 'voice'}",
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "no keys": b"{}",
    "only a version": b'{"format_version": 4}',
    "nested beyond recursion": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_manifest_is_refused_by_its_path(library: Library, content: str) -> None:
    path = library.path / VOICES / "anna" / "manifest.json"
    path.write_bytes(DAMAGED[content])
    with pytest.raises(LibraryError, match=r"manifest\.json is damaged .*convert again") as error:
        library.voice("anna")
    assert str(path) in str(error.value)
    assert library.content_encoder().manifest.name == "hubert"


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": None},
        {"stages": []},
        {"stages": {"flow": {}}},
        {"stages": {"flow": asdict(STAGE) | {"extra": 1}}},
        {"extra": 1},
        {"stages": {"flow": 7}},
    ],
    ids=["no stages", "a list of stages", "an empty stage", "an unknown stage key", "an unknown key", "a number for a stage"],
)
def test_a_manifest_of_other_contents_is_refused(library: Library, changes: dict[str, Any]) -> None:
    edit(library, **changes)
    with pytest.raises(LibraryError, match="is damaged"):
        library.voice("anna")


def wrong_types() -> list[dict[str, Any]]:
    return [
        {"build": 7},
        {"build": None},
        {"build": "a\0b"},
        *({"stages": {"flow": asdict(STAGE) | {key: 7}}} for key in ("package", "golden", "operations")),
    ]


@pytest.mark.parametrize("changes", wrong_types(), ids=["number", "null", "null byte", "package", "golden", "operations"])
def test_a_manifest_whose_paths_are_no_text_is_refused(library: Library, changes: dict[str, Any]) -> None:
    edit(library, **changes)
    with pytest.raises(LibraryError):
        library.voice("anna")


@pytest.mark.parametrize("version", [0, 3, 5, "4", None, 1.5])
def test_another_format_version_is_refused(library: Library, version: Any) -> None:
    edit(library, format_version=version)
    with pytest.raises(LibraryError, match=f"has format version {version}; this rvc-coreml reads 4: convert again"):
        library.voice("anna")


@pytest.mark.parametrize("build", ["../../..", "..", "/", "../../content_encoder"])
def test_a_build_outside_its_component_is_refused(library: Library, build: str) -> None:
    edit(library, build=build)
    with pytest.raises(LibraryError, match="points outside its folder"):
        library.voice("anna")


@pytest.mark.parametrize("key", ["package", "golden", "operations"])
@pytest.mark.parametrize("target", ["../../../../secret", "/etc/passwd"])
def test_a_stages_path_outside_its_component_is_refused(library: Library, key: str, target: str) -> None:
    (library.path.parent / "secret").write_text("secret")
    stages = dict.fromkeys(VOICE_STAGES, asdict(STAGE)) | {"flow": asdict(replace(STAGE, **{key: target}))}
    edit(library, stages=stages)
    with pytest.raises(LibraryError, match="points outside its folder"):
        library.voice("anna")


def test_a_link_out_of_the_component_is_refused(library: Library, tmp_path: Path) -> None:
    golden = library.voice("anna").golden("flow")
    golden.rename(tmp_path / "elsewhere")
    golden.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LibraryError, match="points outside its folder"):
        library.voice("anna")


@pytest.mark.parametrize("name", ["weights.safetensors", "flow.safetensors", "flow.json", "flow.mlpackage/Manifest.json"])
def test_a_component_with_a_missing_file_is_refused(library: Library, name: str) -> None:
    path = library.voice("anna").build / name
    path.unlink()
    if path.parent.name == "flow.mlpackage":
        path.parent.rmdir()
    with pytest.raises(LibraryError, match=r"the voice 'anna' is incomplete: .* is missing; convert it again"):
        library.voice("anna")


def test_a_component_without_its_build_is_refused(library: Library) -> None:
    edit(library, build="build-other")
    with pytest.raises(LibraryError, match="is incomplete"):
        library.voice("anna")


@pytest.mark.parametrize("path", ["file", "file/lib"])
def test_a_library_where_none_can_be_is_an_output_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OutputError, match="could not be written"), Library(tmp_path / path).write("voice", "anna"):
        pass
    assert tree(tmp_path) == {"file": b"text"}
