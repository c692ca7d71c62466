"""A bundle is enough: a program with its files and numpy alone does what `infer` does."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_program
import numpy as np
import pytest
import soundfile
import torch
from bundle_program import Program, snr
from rvc_coreml.converters.conversion import convert_content_encoder, convert_pitch, convert_voice
from rvc_coreml.converters.index import check_index, keep_index
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.models import stages
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.runtime.bundle import CONTRACT, PAGE, write_bundle
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.manifest import MANIFEST
from seeded_checkpoints import write_hubert
from seeded_checkpoints import write_voice as write_full_voice
from support.checkpoints import write_small_hubert, write_voice
from support.cli import rvc
from support.indexes import clustered, ivf, write
from support.pitch_packages import crepe_file, fcpe_file
from support.remembered import remembered
from support.rmvpe_checkpoints import write_rmvpe

LEAST = 35.0  # dB against infer
HOST_LEAST = 80.0  # of a host step on its own vectors, as the page says
PACKAGE_LEAST = 45.0  # of a package
EXPECTED = {"v2": ("swiftf0", True), "v1": ("rmvpe", False), "nof0": (None, False)}  # pitch estimator, index
IN_A_PROCESS = ("nof0", "flow")  # what runs in a process of its own, at a few seconds a time; slow tests run all so


def run_here(package: Path, inputs: Path, outputs: Path) -> None:
    result = rvc("run", package, inputs, "-o", outputs, "--backend", "reference")
    assert result.exit_code == 0, result.output


def add_index(library: Path, voice: str, width: int, folder: Path) -> None:
    """As `convert voice --index` leaves it, without converting again."""
    index = write(ivf(clustered(300, width), 6), folder / "voice.index")
    component = Library.open(library).voice(voice)
    manifest = json.loads((component.folder / MANIFEST).read_text())
    manifest["index"] = keep_index(check_index(index, width), component.build)
    (component.folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def libraries(small_library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By voice: `v2` with an index, `v1` with a pitch model, `nof0` with neither."""
    folder = tmp_path_factory.mktemp("libraries")
    indexed, with_model = (shutil.copytree(small_library, folder / name) for name in ("indexed", "with_model"))
    add_index(indexed, "v2", 768, folder)
    with remembered():
        convert_pitch(write_rmvpe(folder / "rmvpe.pt"), with_model)
    return {"v2": indexed, "v1": with_model, "nof0": small_library}


@pytest.fixture(scope="module")
def bundles(libraries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bundles")

    def made(voice: str) -> Path:
        if not (folder / voice).exists():
            write_bundle(libraries[voice], voice, folder / voice, speaker=1)
        return folder / voice

    return made


def contract_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / CONTRACT).read_text(encoding="utf-8"))


def infer(bundle: Path, library: Path, folder: Path, backend: str = "torch") -> np.ndarray:
    """What the contract's command gives for its clip."""
    contract = contract_of(bundle)
    clip = np.fromfile(bundle / contract["vectors"]["clip"]["file"], "<f4")
    soundfile.write(folder / "clip.wav", clip, 16000, subtype="FLOAT")
    places = {"clip.wav": folder / "clip.wav", "out.wav": folder / "out.wav", "LIB": library}
    result = rvc(*(places.get(word, word) for word in shlex.split(contract["example"]["command"])[1:]), "--backend", backend)
    assert result.exit_code == 0, result.output
    return soundfile.read(folder / "out.wav", dtype="float32")[0]


def assert_reproduces(bundle: Path, library: Path, folder: Path, run: bundle_program.Run, backend: str = "torch") -> dict[str, float]:
    figures = bundle_program.main(bundle, folder / "out.f32", run)
    figures["infer"] = snr_db(infer(bundle, library, folder, backend), np.fromfile(folder / "out.f32", "<f4"))
    print(json.dumps({name: round(figure, 1) for name, figure in figures.items()}))
    assert figures["infer"] >= LEAST
    packages = figures.pop("package runs")
    assert packages >= 4
    assert figures.pop("neighbours found", 1.0) == 1.0
    for name, figure in figures.items():
        behind_package = name in ("pitch_hidden",) or (name == "pitch_salience" and "pitch_hidden" not in figures)
        in_chain = name.endswith("chain") or name == "infer"
        if name.endswith("chain") and backend != "torch":  # the vectors are PyTorch's, infer is then the packages'
            continue
        least = LEAST if in_chain else PACKAGE_LEAST if behind_package else HOST_LEAST
        assert figure >= least, (name, figure)
    return figures


@pytest.mark.parametrize("voice", EXPECTED)
def test_numpy_and_the_packages_reproduce_infer(bundles, libraries, voice, tmp_path):
    bundle = bundles(voice)
    contract = contract_of(bundle)
    estimator, indexed = EXPECTED[voice]
    assert contract["voice"]["pitch_estimator"] == estimator
    steps = {step["id"] for step in contract["steps"]}
    assert ("retrieval" in steps) == indexed
    assert ("pitch" in contract["stages"]) == (estimator == "rmvpe")

    def run(package: Path, inputs: Path, outputs: Path) -> None:
        (bundle_program.run_command if (voice, package.stem) == IN_A_PROCESS else run_here)(package, inputs, outputs)

    figures = assert_reproduces(bundle, libraries[voice], tmp_path, run)
    wanted = {name for step in contract["steps"] if step["kind"] == "host" for name in step.get("gives", ())}
    given = {"clip", "noise_prior", "noise_source"} | ({"pitch_estimate"} if estimator == "swiftf0" else set())
    assert wanted - given - {"neighbours"} <= set(figures), "a host step is not compared with its vector"


def test_every_package_gives_its_window_vectors(bundles):
    program = Program(bundles("v1"), run_here)
    program.check_packages()
    assert {name.split("/")[0] for name in program.figures} == set(program.contract["stages"])
    assert min(program.figures.values()) >= PACKAGE_LEAST, program.figures


def test_the_program_knows_nothing_but_the_bundle():
    tree = ast.parse(Path(bundle_program.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize("voice", EXPECTED)
def test_the_contract_lists_every_file_with_its_shape_and_hash(bundles, voice):
    bundle = bundles(voice)
    contract = contract_of(bundle)
    listed = [*contract["host"].values(), *contract["vectors"].values()]
    for entry in listed:
        file = bundle / entry["file"]
        assert sha256(file) == entry["sha256"]
        assert file.stat().st_size == 4 * int(np.prod(entry["shape"]))
        values = np.fromfile(file, "<f4" if entry["dtype"] == "float32" else "<i4")
        assert np.isfinite(values).all()
        assert entry["file"].endswith(".f32" if entry["dtype"] == "float32" else ".i32")
    for stage, entry in contract["stages"].items():
        assert sha256(bundle / entry["package"]) == entry["sha256"]
        windows = contract["example"]["windows"][stage]
        for number in range(len(windows)):
            for way, tensors in (("in", entry["inputs"]), ("out", entry["outputs"])):
                for tensor in tensors:
                    assert contract["vectors"][f"{stage}/{number}/{way}/{tensor['name']}"]["shape"] == tensor["shape"]
                    assert ("time_axis" in tensor) == (tensor["name"] not in ("g", "norm_scale", "norm_shift")), tensor["name"]
                    if "time_axis" in tensor and tensor["name"] != "waveform":  # which reaches beyond its last frame's hop
                        assert tensor["shape"][tensor["time_axis"]] == entry["window"] * tensor["samples_per_frame"], tensor["name"]
    found = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file() and ".mlpackage" not in str(file)}
    assert found == {entry["file"] for entry in listed} | {CONTRACT, PAGE}
    for step in contract["steps"]:
        assert set(step.get("tables", ())) <= set(contract["host"])
        assert set(step.get("given", ())) | set(step.get("gives", ())) <= set(contract["vectors"])
    used = {name for step in contract["steps"] for name in step.get("tables", ())}
    assert used == set(contract["host"])


def test_the_page_shows_what_the_contract_says_and_needs_nothing_else(bundles):
    for voice in EXPECTED:
        bundle = bundles(voice)
        contract, page = contract_of(bundle), (bundle / PAGE).read_text(encoding="utf-8")
        for step in contract["steps"]:
            assert f"id='{step['id']}'" in page
            for name in (*step.get("given", ()), *step.get("gives", ())):
                assert contract["vectors"][name]["file"] in page
        for name, entry in contract["constants"].items():
            assert f"<code>{name}</code>" in page
            if isinstance(entry["value"], float):
                assert repr(entry["value"]) in page
        assert not re.search(r"(src|href)=[\"'](?!data:|#)|https?://|<script", page)
        assert not re.search(r"\{\w+\}", "".join(step["about"] + "".join(step.get("formulas", ())) for step in contract["steps"]))
        assert "Not yet run on a Mac" in page
        assert str(Path.home()) not in page + json.dumps(contract)
        assert os.path.dirname(bundle) not in page + json.dumps(contract)


Case = tuple[str, str, Callable[[Program], np.ndarray]]  # constant, the vector by which a wrong one shows, and its step
WRONG: dict[str, list[Case]] = {
    "v2": [
        *(
            (name, "source", lambda p: source(p))
            for name in ("sine_amplitude", "voiced_noise", "unvoiced_noise", "source_weight", "source_bias")
        ),
        *((name, "retrieved", lambda p: p.retrieve(p.vector("features"))[2]) for name in ("index_rate", "neighbours_count")),
        ("protect", "phone", lambda p: p.phone(p.vector("features"), p.vector("retrieved"), p.vector("contour"), frames(p))),
        ("mel_bins", "coarse", lambda p: p.coarse(p.vector("contour"))),
        ("f0_min", "coarse", lambda p: p.coarse(p.vector("contour"))),
        ("semitones", "contour", lambda p: p.contour(p.vector("pitch_estimate"), frames(p))),
        ("rms_mix_rate", "mixed", lambda p: p.loudness(p.vector("filtered"), p.vector("audio"))[2]),
        ("fade_share", "fade_text_encoder", lambda p: p.fades(p.contract["windows"]["text_encoder"][-1]["windows"])),
        ("content_eps", "norm_scale", lambda p: p.normalise(p.vector("padded"))["norm_scale"]),
        ("input_peak", "filtered", lambda p: p.high_pass(p.vector("clip"))),
        ("max_gain", "norm_values", lambda p: p.normalise(p.vector("padded"))["norm_values"]),
    ],
    "v1": [
        ("cents_offset", "pitch_estimate", lambda p: p.local_mean(p.vector("pitch_salience"))),
        ("decoded_bins", "pitch_estimate", lambda p: p.local_mean(p.vector("pitch_salience"))),
        ("norm_bias", "pitch_prepared", lambda p: p.k["norm_weight"] * padded_features(p) + p.k["norm_bias"]),
    ],
}


@pytest.mark.parametrize("voice", WRONG)
def test_a_wrong_constant_shows_in_the_vector_of_its_step(bundles, voice):
    program = Program(bundles(voice))
    for name, wanted, step in WRONG[voice]:
        right = program.k[name]
        assert snr(program.vector(wanted), step(program)) >= HOST_LEAST, name
        program.k[name] = right - 1 if isinstance(right, int) else 0.5 if name == "max_gain" else right * 1.05 + 1e-3
        assert snr(program.vector(wanted), step(program)) < HOST_LEAST, name
        program.k[name] = right


def frames(program: Program) -> int:
    return program.contract["example"]["frames"]


def source(program: Program) -> np.ndarray:
    stretch = program.stretch(frames(program), program.contract["example"]["kept_frames"])
    return program.source(program.vector("contour"), program.vector("noise_source"), *stretch)[1]


def padded_features(program: Program) -> np.ndarray:
    features = program.vector("pitch_features")
    return np.pad(features, ((0, 0), (0, -features.shape[1] % program.k["pitch_unit"])))


@pytest.mark.slow
def test_several_windows_of_every_stage(tmp_path, monkeypatch):
    """Windows so short that the clip needs several, so that blending and joining take part."""
    for name, window in {"content_encoder": 120, "text_encoder": 240, "flow": 120, "decoder": 60}.items():
        monkeypatch.setitem(stages.DEFAULT_WINDOWS, name, window)
    from conftest import _wide_enough

    library = tmp_path / "library"
    convert_content_encoder(write_small_hubert(tmp_path / "hubert", config=_wide_enough()), library)
    convert_voice(write_voice(tmp_path / "v2.pth"), library)
    write_bundle(library, "v2", tmp_path / "bundle")
    assert all(len(windows) > 1 for windows in contract_of(tmp_path / "bundle")["example"]["windows"].values())
    program = Program(tmp_path / "bundle", run_here)
    program.check_host_steps()
    output = program.convert()
    print(program.figures)
    assert snr(program.vector("output"), output) >= LEAST  # the vectors have the packages' windows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcpe", "crepe-tiny", "swiftf0"])
def test_published_pitch_models(small_library, kind, tmp_path):
    library = shutil.copytree(small_library, tmp_path / "library")
    files = {"fcpe": fcpe_file, "crepe-tiny": lambda: crepe_file("tiny"), "swiftf0": lambda: embedded_path(PITCH)}
    convert_pitch(files[kind](), library)
    write_bundle(library, "v2", tmp_path / "bundle")
    assert contract_of(tmp_path / "bundle")["voice"]["pitch_estimator"] == kind
    # Half precision of a pitch package moves a frame over the voicing threshold now and then, in infer with packages too.
    assert_reproduces(tmp_path / "bundle", library, tmp_path, run_here, "reference")


@pytest.mark.slow
def test_full_size_with_index_and_pitch_model(tmp_path):
    torch.set_num_threads(os.cpu_count() or 1)
    library = tmp_path / "library"
    convert_content_encoder(write_hubert(tmp_path / "hubert_base.pt"), library)
    index = write(ivf(clustered(2000, 768), 64), tmp_path / "voice.index")
    convert_voice(write_full_voice(tmp_path / "v2_40k.pth"), library, index=index)
    convert_pitch(fcpe_file(), library)
    write_bundle(library, "v2_40k", tmp_path / "bundle", speaker=3)
    try:
        assert_reproduces(tmp_path / "bundle", library, tmp_path, bundle_program.run_command)
    finally:
        torch.set_num_threads(1)
