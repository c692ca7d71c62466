"""--check, --strict, --keep-in-pytorch and convert module, as a user sees them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from rvc_coreml.converters.preflight import Preflight
from rvc_coreml.runtime.hybrid import HybridModel
from support.checkpoints import write_small_hubert, write_voice
from support.cli import one_sentence, rvc, unchanged, usage_error

PLACE = "hubert.encoder.layers.1"
OWN = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 32, 3, padding=1))
            self.curve = Curve()

        def forward(self, x):
            return self.body(self.curve(self.body(x)))

    class Curve(nn.Module):
        def forward(self, x):
            return torch.sinc(x)

    class Fine(nn.Module):
        def forward(self, x):
            return torch.tanh(x) * 2

    def net():
        torch.manual_seed(0)
        return Net(), (torch.randn(1, 32, 400),)

    def fine():
        return Fine(), torch.randn(1, 8)

    def nothing():
        return 3

    def no_module():
        return "net", (torch.zeros(1),)

    def broken():
        raise RuntimeError("no weights here")
"""


PLAIN = ("--layout", "plain", "--windows", "500")  # modules and operations as the network has them


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_hubert(tmp_path_factory.mktemp("check") / "hubert")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's in the current folder, which no other test has imported."""
    name = f"my_models_{abs(hash(tmp_path.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


# ---------------------------------------------------------------- of a library's stages


def test_check_needs_no_library_and_writes_nothing(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path, encoder):
        result = rvc("convert", "hubert", encoder, "--check")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "content_encoder: " in result.stdout
    assert "all of them can go into packages" in result.stdout


@pytest.mark.parametrize("width", [80, 140])
def test_check_names_every_operation_its_place_and_fits_the_terminal(encoder: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = rvc("convert", "hubert", encoder, "--check", "--keep-in-pytorch", PLACE, "--strict", *PLAIN)
    assert result.exit_code == 1
    assert "operations  [unwanted]" in result.stdout
    shown = " ".join(result.stdout.split())
    for operation in ("aten.linear.default", "aten.gelu.default", "aten.layer_norm.default", "aten.softmax.int"):
        assert f"{operation}: (1, " in shown
    for module in ("self_attn.q_proj", "self_attn", "fc1", "fc2", "final_layer_norm"):
        assert f" {PLACE}.{module} models/hubert.py:" in shown
    assert "-> (1, 500, 48) float32" in shown
    assert f"you asked for {PLACE} in PyTorch" in result.stdout
    lines = [line for line in result.stdout.splitlines() if " " in line.strip()]
    assert max(map(len, lines)) <= width
    assert "--strict allows none" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_check_as_json_is_json_and_nothing_else(encoder: Path) -> None:
    result = rvc("convert", "hubert", encoder, "--check", "--json", "--keep-in-pytorch", "aten.gelu", "--windows", "255")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    [file] = said["files"]
    [network] = file["networks"]
    assert (file["file"], network["network"]) == (str(encoder), "content_encoder")
    assert said["stay_in_pytorch"] == len(network["findings"]) > 0
    assert {finding["operation"] for finding in network["findings"]} == {"aten.gelu.default"}
    for finding in network["findings"]:
        assert finding["rule"] == "unwanted"
        assert finding["source"].startswith("models/")
        assert finding["inputs"]
        assert finding["flops"] > 0


def test_strict_says_what_would_stay_and_leaves_no_library(encoder: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    result = rvc("convert", "hubert", encoder, "-o", library, "--strict", "--keep-in-pytorch", "aten.gelu", *PLAIN)
    assert result.exit_code == 1
    assert not library.exists()
    assert result.stdout == ""
    assert "aten.gelu.default  [unwanted]" in result.stderr
    assert "at   hubert.encoder.layers.0 (models/hubert.py:" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("rvc-coreml: ")
    assert "would stay in PyTorch" in result.stderr.splitlines()[-1]


def test_no_output_without_check_is_a_usage_error(encoder: Path) -> None:
    assert "--output" in usage_error(rvc("convert", "hubert", encoder))


@pytest.mark.parametrize(("pattern", "said"), [("vocoder:aten.tanh", "text_encoder, flow, decoder"), ("flow:", "no pattern")])
def test_a_pattern_of_no_stage_is_one_sentence(tmp_path: Path, pattern: str, said: str) -> None:
    voice = write_voice(tmp_path / "v.pth")
    assert said in one_sentence(rvc("convert", "voice", voice, "--check", "--keep-in-pytorch", pattern), (2,))


@pytest.mark.parametrize("pattern", ["aten.nothing", "content_encoder:hubert.decoder"])
def test_a_pattern_that_names_nothing_is_one_sentence(encoder: Path, pattern: str) -> None:
    assert repr(pattern) in one_sentence(rvc("convert", "hubert", encoder, "--check", "--keep-in-pytorch", pattern), (2,))


def test_a_folder_shows_equal_networks_once_and_fails_for_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Preflight("decoder", 303, 10**9, ())]  # what the preflight finds is for the tests above
    monkeypatch.setattr("rvc_coreml.converters.examination.check_checkpoint", lambda *_: found)
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("a.pth", "b.pth"):
        write_voice(folder / name)
    assert rvc("convert", "voice", folder, "--check").exit_code == 0
    (folder / "c.pth").write_bytes((folder / "a.pth").read_bytes()[:3000])
    result = rvc("convert", "voice", folder, "--check")
    assert result.exit_code == 1
    assert result.stdout == f"{folder}/a.pth\n{folder}/b.pth\n\n{found[0].text()}\n"
    assert result.stderr.startswith(f"rvc-coreml: {folder}/c.pth is a damaged or truncated torch checkpoint")
    result = rvc("convert", "voice", folder, "--check", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert [file["file"] for file in said["files"]] == [f"{folder}/a.pth", f"{folder}/b.pth"]
    assert f"{folder}/c.pth is a damaged" in said["problems"][0]


def test_an_unknown_rewrite_is_one_sentence_with_those_there_are(encoder: Path) -> None:
    said = one_sentence(rvc("convert", "hubert", encoder, "--check", "--rewrite", "everything"), (2,))
    assert "everything" in said
    assert "remainder" in said


# ---------------------------------------------------------------- of one's own modules


def test_own_module_is_checked_with_the_line_of_its_own_code(own: str) -> None:
    result = rvc("convert", "module", f"{own}:net", "--check")
    assert result.exit_code == 0, result.output
    assert "aten.sinc.default  [unsupported]" in result.stdout
    assert f"curve ({own}.py:" in result.stdout
    assert "register a lowering" in result.stdout
    assert rvc("convert", "module", f"{own}:fine", "--check", "--strict").exit_code == 0


def test_own_module_converts_and_comes_back(own: str, tmp_path: Path) -> None:
    result = rvc("convert", "module", f"{own}:net", "-o", tmp_path / "net", "--precision", "fp32", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert {finding["operation"] for finding in said["findings"]} == {"aten.sinc.default"}
    assert said["packages"] == 2
    model = HybridModel.load(tmp_path / "net", backend="reference")
    network, (example,) = __import__(own).net()
    with torch.inference_mode():
        assert (model(example) - network(example)).abs().max() < 1e-5
    with unchanged(tmp_path / "net"):
        assert rvc("convert", "module", f"{own}:net", "-o", tmp_path / "net", "--strict").exit_code == 1
    shown = rvc("inspect", tmp_path / "net").stdout
    assert "p0.mlpackage" in shown
    assert "aten.sinc.default" in shown
    said = json.loads(rvc("inspect", tmp_path / "net", "--json").stdout)
    assert [part["package"] is None for part in said["plan"]["parts"]] == [False, True, False]
    assert "network in parts" in one_sentence(rvc("run", tmp_path / "net", "in.npz", "-o", tmp_path / "out.npz"), (2,))
    for name in ("graph.json", "manifest.json"):
        (tmp_path / "net" / name).write_text("{")
        assert name in one_sentence(rvc("inspect", tmp_path / "net"), (2,))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("net", "names no function"),
        (".my_models:net", "names no function"),
        ("absent_module:net", "'absent_module'"),
        ("{own}:absent", "its functions are: net"),
        ("{own}:nothing", "(module, example_inputs)"),
        ("{own}:no_module", "torch.nn.Module"),
        ("{own}:broken", "no weights here"),
    ],
)
def test_what_is_no_function_of_a_module_is_one_sentence(own: str, function: str, said: str) -> None:
    assert said in one_sentence(rvc("convert", "module", function.format(own=own), "--check"), (2,))


def test_a_folder_of_something_else_is_not_written_to(own: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("notes")
    with unchanged(tmp_path / "mine"):
        assert "mine" in one_sentence(rvc("convert", "module", f"{own}:net", "-o", tmp_path / "mine"), (2,))
