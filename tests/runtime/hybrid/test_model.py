"""A network in parts beside the module that it was made of: calls, state, files, and what crosses into packages."""

from __future__ import annotations

import copy
import json
import shutil
from collections import defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError, UsageError
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime.backends.base import PackageRunner
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.hybrid import HybridModel
from rvc_coreml.runtime.hybrid.calling import Calling, made_spec, stored_spec
from rvc_coreml.runtime.hybrid.graph import read_graph
from rvc_coreml.runtime.hybrid.parts import Unfit, entering, leaving
from rvc_coreml.runtime.hybrid.plan import Plan, Seam
from rvc_coreml.runtime.hybrid.storage import _write_weights
from support.damage_json import change
from support.hybrid import hybrid

Pair = namedtuple("Pair", ["first", "second"])
LEFT = ("aten.sinc.default", "aten.randn_like.default")


class Small(torch.nn.Module):
    """Two packages around an operation that stays, with a buffer that changes, an input that is written, and all kinds of results."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Conv1d(4, 4, 3, padding=1) for _ in range(2))
        self.second.bias = self.first.bias  # shared
        self.register_buffer("seen", torch.zeros(4, 1))

    def forward(self, x: torch.Tensor, k: torch.Tensor, times: int = 2, *, table: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = torch.sinc(self.first(x))
        self.seen += y.mean(-1).mean(0)[:, None]
        table["offset"].mul_(2)
        z = torch.relu(self.second(y) + self.seen) * times + table["offset"]
        return {
            "z": z,
            "over": z > 0.5,
            "k": k + 1,
            "pair": Pair(z.sum(), [torch.argmax(z, -1), None, times]),
            "noise": torch.randn_like(z),
        }


def call(seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 4, 16, generator=generator), torch.arange(3), 2), {"table": {"offset": torch.full((1, 1, 16), 0.25)}}


@pytest.fixture(scope="module")
def module() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def made(module: Small) -> HybridModel:
    return hybrid(copy.deepcopy(module), [call()], LEFT, backend="reference", precision="fp32")


@pytest.fixture(scope="module")
def folder(made: HybridModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.save(tmp_path_factory.mktemp("hybrid") / "small")


def agree(found: Any, wanted: Any, within: float) -> None:
    """Of one structure, types and shapes, floats within so much."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert torch.equal(found, wanted) if within == 0 else torch.allclose(found.double(), wanted.double(), rtol=0, atol=within)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            agree(found[name], wanted[name], within)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            agree(one, other, within)
    else:
        assert found == wanted


@pytest.mark.parametrize(("backend", "within"), [("torch", 0.0), ("reference", 1e-4)])
def test_it_is_called_as_the_module_and_gives_what_the_module_gives(folder: Path, module: Small, backend: str, within: float) -> None:
    """State is kept between calls, written inputs are written, a seed gives the module's own noise."""
    model, eager = HybridModel.load(folder, backend), copy.deepcopy(module)
    for seed in range(3):
        (args, kwargs), (same, also) = call(seed), call(seed)
        torch.manual_seed(seed)
        found = model(*args, **kwargs)
        torch.manual_seed(seed)
        wanted = eager(*same, **also)
        agree(found, wanted, within)
        agree(kwargs["table"]["offset"], also["table"]["offset"], 0.0)
        assert torch.equal(found["noise"], wanted["noise"])
    before = model(*call()[0], **call()[1])["z"]
    model.reset()
    args, kwargs = call()
    agree(model(args[0], k=args[1], times=2, table=kwargs["table"])["z"], copy.deepcopy(module)(*call()[0], **call()[1])["z"], within)
    assert not torch.allclose(before, model(*call()[0], **call()[1])["z"])


def test_a_fresh_one_computes_what_the_saved_one_does_and_lives_in_a_folder_of_its_own(module: Small) -> None:
    fresh = hybrid(copy.deepcopy(module), [call()], LEFT, backend="torch", precision="fp32")
    agree(fresh(*call()[0], **call()[1])["z"], copy.deepcopy(module)(*call()[0], **call()[1])["z"], 0.0)
    place = fresh._stored.folder
    assert place.is_dir()
    del fresh
    assert not place.exists()


class Kept(torch.nn.Module):
    """Gives parts of copies of its input, which it then writes to, and of its buffer; copies that its graph leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3, 4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        before = x.clone()[:, :2]
        x.add_(1)
        return before, y.clone()[:, :2], self.table.clone().reshape(-1), torch.sinc(x) + self.table


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_it_gives_may_be_changed_and_does_not_change(backend: str) -> None:
    """No result lies in what the caller gave or in what the network keeps."""

    def arguments() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((3, 4), 0.25), torch.full((3, 4), 0.5)

    model, eager = hybrid(Kept(), [(arguments(), {})], LEFT, backend=backend, precision="fp32"), Kept()
    for _ in range(2):
        given = arguments()
        found, wanted = model(*given), eager(*arguments())
        for value in given:
            value.fill_(9)
        agree(found, wanted, 1e-6)
        for value in found:
            value.fill_(7)


def test_the_report_says_how_much_stays_and_why(made: HybridModel) -> None:
    text = made.report.text(80)
    assert "2 packages" in text
    assert f"2 of {made.report.operations} operations" in text
    assert "sinc (aten.sinc.default)" in text
    assert "it was planted here" in text
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(made.report.as_dict()))["totals"]["operations_in_pytorch"] == 2
    assert 0 < made.report.flops_share < 0.5


WRONG: list[tuple[str, Callable[[HybridModel], Any], str]] = [
    ("missing", lambda m: m(call()[0][0], call()[0][1], 2), "lacks its argument 'table'; it was converted with x, k, times, table"),
    ("too many", lambda m: m(*call()[0], 1, 2, **call()[1]), "takes 4 arguments .* and 5 were given"),
    ("unknown", lambda m: m(*call()[0], y=1, **call()[1]), "has no argument 'y'"),
    ("twice", lambda m: m(*call()[0], x=1, **call()[1]), "is given 'x' twice"),
    (
        "shape",
        lambda m: m(torch.zeros(1, 4, 16), *call()[0][1:], **call()[1]),
        r"x has to be a tensor \(2, 4, 16\) float32, and one of \(1, 4, 16\)",
    ),
    ("type", lambda m: m(call()[0][0].double(), *call()[0][1:], **call()[1]), "and one of .* float64 was given"),
    ("an array", lambda m: m(call()[0][0].numpy(), *call()[0][1:], **call()[1]), "and a ndarray was given"),
    ("another number", lambda m: m(*call()[0][:2], 3, **call()[1]), "was converted with times = 2, and 3 was given: convert it again"),
    ("a truth", lambda m: m(*call()[0][:2], True, **call()[1]), "was converted with times = 2, and True"),
    ("another table", lambda m: m(*call()[0], table={"other": torch.zeros(1, 1, 16)}), "called with other lists or tables"),
    ("no table", lambda m: m(*call()[0], table=torch.zeros(1, 1, 16)), "called with other lists or tables"),
]


@pytest.mark.parametrize(("make", "said"), [item[1:] for item in WRONG], ids=[item[0] for item in WRONG])
def test_a_wrong_call_is_one_sentence(made: HybridModel, make: Callable[[HybridModel], Any], said: str) -> None:
    with pytest.raises(PackageError, match=f"^small.*{said}"):
        make(made)


def test_integers_that_a_package_cannot_hold_are_computed_in_pytorch_and_said_once(folder: Path) -> None:
    lines: list[str] = []
    model = HybridModel.load(folder, "reference", notify=lines.append)
    args, kwargs = call()
    big = torch.tensor([1 << 40, -5, 7])
    for _ in range(2):
        assert torch.equal(model(args[0], big, 2, **kwargs)["k"], big + 1)
    assert len(lines) == 1
    assert "k holds 1099511627776, and a package's integers have 32 bits" in lines[0]
    assert torch.equal(model(*args, **kwargs)["k"], args[1] + 1)
    assert len(lines) == 1


def test_values_cross_without_copies_where_the_types_are_the_same() -> None:
    """float32 and int32 on the CPU: the package's array, the seam and PyTorch's tensor are one memory."""
    given: dict[str, np.ndarray] = {}
    kept = np.ones((2, 3), np.float32)

    class Model:
        def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            given.update(inputs)
            return {"out": kept}

    value, whole = torch.zeros(2, 3), torch.zeros(4, dtype=torch.int32)
    floats, integers = Seam("x", "x", (2, 3)), Seam("k", "k", (4,), "int32", "int32")
    found = PackageRunner(Model(), None).predict({"x": entering(value, floats), "k": entering(whole, integers)})
    assert given["x"].ctypes.data == value.data_ptr()
    assert given["k"].ctypes.data == whole.data_ptr()
    assert leaving(found["out"], floats, torch.device("cpu")).data_ptr() == kept.ctypes.data
    assert given["k"].dtype == np.int32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_what_crosses_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.arange(6) % 2).to(dtype)[: int(np.prod(shape))].reshape(shape)
    seam = Seam("x", "x", shape, str(dtype).removeprefix("torch."), "float32" if dtype.is_floating_point else "int32")
    inside = entering(value, seam)
    assert inside.dtype in (torch.float32, torch.int32)
    assert tuple(inside.shape) == seam.package_shape
    back = leaving(inside, seam, torch.device("cpu"))
    assert back.dtype == dtype
    assert back.shape == value.shape
    assert torch.equal(back, value)


def test_the_borders_of_int32_cross_and_nothing_beyond() -> None:
    seam = Seam("k", "k", (2,), "int64", "int32")
    assert entering(torch.tensor([-(1 << 31), (1 << 31) - 1]), seam).tolist() == [-(1 << 31), (1 << 31) - 1]
    for value in (1 << 31, -(1 << 31) - 1):
        with pytest.raises(Unfit):
            entering(torch.tensor([0, value]), seam)


def test_shared_tensors_are_stored_once(folder: Path) -> None:
    from safetensors import safe_open

    weights = json.loads((folder / "manifest.json").read_text())["weights"]
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        stored = set(file.keys())
    assert {"first.bias", "second.bias"} <= set(weights)
    assert weights["first.bias"] == weights["second.bias"]
    assert stored == set(weights.values())


def test_a_tensor_and_its_conjugate_are_two(tmp_path: Path) -> None:
    value = torch.tensor([1 + 2j])
    assert _write_weights(tmp_path / "w", {"a": value, "b": value.conj(), "c": value}) == {"a": "a", "b": "b", "c": "a"}


def test_saving_replaces_a_saved_network_and_nothing_else(made: HybridModel, folder: Path, tmp_path: Path) -> None:
    target = made.save(tmp_path / "deep" / "small")
    (target / "extra").touch()
    made.save(target)
    assert not (target / "extra").exists()
    assert sorted(item.name for item in target.parent.iterdir()) == ["small"]
    empty = tmp_path / "empty"
    empty.mkdir()
    made.save(empty)
    HybridModel.load(target, "torch").save(target)  # itself
    HybridModel.load(target, "torch")
    for name in ("file", "folder"):
        other = tmp_path / name
        other.mkdir() if name == "folder" else other.write_text("mine")
        if name == "folder":
            (other / "manifest.json").write_text('{"format_version": 1}')
        with pytest.raises(UsageError, match="is no network saved by rvc-coreml; name another folder"):
            made.save(other)
        assert other.exists()


@pytest.mark.parametrize("at", [1, 2])
def test_a_save_that_fails_leaves_what_was_there(made: HybridModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    target = made.save(tmp_path / "small")
    before = sha256(target)
    monkeypatch.setattr("os.rename", _raising(at))
    with pytest.raises(Exception, match="could not be written"):
        made.save(target)
    monkeypatch.undo()
    assert sha256(target) == before
    assert [item.name for item in tmp_path.iterdir()] == ["small"]


def _raising(at: int) -> Callable[..., None]:
    """os.rename that fails at its n-th call."""
    import os

    calls, rename = [0], os.rename

    def renamed(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(28, "No space left on device")
        rename(source, target)

    return renamed


def _edited(folder: Path, change: Callable[[dict[str, Any]], None], whole: bool = True) -> None:
    """Change the manifest; with `whole`, so that its SHA-256s fit the files again."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if whole:
        manifest["files"] = {
            name: sha256(folder / name) if (folder / name).exists() else value for name, value in manifest["files"].items()
        }
    path.write_text(json.dumps(manifest))


def _graph(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "graph.json"
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))
    _edited(folder, lambda _manifest: None)


DAMAGED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "is no network saved by rvc-coreml"),
    ("no JSON", lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
    ("another format", lambda f: _edited(f, lambda m: m.update(format="pt2")), "its manifest is of another kind"),
    ("a later version", lambda f: _edited(f, lambda m: m.update(format_version=99)), "has format version 99; this rvc-coreml reads 1"),
    ("a missing file", lambda f: (f / "weights.safetensors").unlink(), "is incomplete: weights.safetensors is missing"),
    ("a missing package", lambda f: shutil.rmtree(f / "p0.mlpackage"), "is incomplete: p0.mlpackage is missing"),
    ("other weights", lambda f: (f / "weights.safetensors").open("ab").write(b"x"), "its SHA-256 differs"),
    ("another package", lambda f: next((f / "p0.mlpackage").rglob("*.mlmodel")).open("ab").write(b"x"), "its SHA-256 differs"),
    ("another golden", lambda f: next((f / "golden").glob("p0*")).open("ab").write(b"x"), "its SHA-256 differs"),
    (
        "a graph with another operation",
        lambda f: _graph(f, lambda g: g["nodes"][0].__setitem__(1, "aten.from_file.default")),
        "aten.from_file.default, which may not run: it reads files; nothing was run",
    ),
    (
        "a graph with another weight",
        lambda f: _graph(f, lambda g: g["constants"].__setitem__("p_first_weight", "first.bias")),
        "the tensor 'first.bias' is",
    ),
    (
        "a graph without a weight",
        lambda f: _graph(f, lambda g: g["constants"].__setitem__("p_first_weight", "third.weight")),
        "the tensor 'third.weight' is missing",
    ),
    ("a file outside", lambda f: _edited(f, lambda m: m["files"].update({"../manifest.json": "0"}), False), "is not in the folder"),
    ("a file without hash", lambda f: _edited(f, lambda m: m["files"].pop("p0.mlpackage"), False), "p0.mlpackage has no SHA-256"),
    ("a package outside", lambda f: _edited(f, lambda m: m["plan"]["parts"][0].update(package="../p0.mlpackage")), "is no package's name"),
    (
        "an operation twice",
        lambda f: _edited(f, lambda m: m["plan"]["parts"][0]["operations"].append(m["plan"]["parts"][1]["operations"][0])),
        "is in two parts",
    ),
    (
        "an operation nowhere",
        lambda f: _edited(f, lambda m: m["plan"]["parts"][0]["operations"].pop()),
        "is in the graph or in the plan alone|reads|gives",
    ),
    ("parts in another order", lambda f: _edited(f, lambda m: m["plan"]["parts"].reverse()), "which a later part makes"),
    ("no plan", lambda f: _edited(f, lambda m: m.update(plan={})), "its plan: no entry 'format_version'"),
    ("no calling", lambda f: _edited(f, lambda m: m.update(calling={"inputs": {"kind": "tuple"}})), "how the network is called"),
    (
        "an unknown class",
        lambda f: _edited(f, lambda m: m["calling"]["outputs"].update(kind="no_such.module.Output")),
        "import 'no_such.module' before loading",
    ),
    (
        "a class that is imported by name",
        lambda f: _edited(
            f,
            lambda m: m["calling"]["outputs"].update(
                kind="collections.defaultdict",
                context=json.dumps({"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": []}),
            ),
        ),
        "has no stored form",
    ),
]


@pytest.mark.parametrize(("damage", "said"), [item[1:] for item in DAMAGED], ids=[item[0] for item in DAMAGED])
def test_a_damaged_folder_is_one_sentence_that_names_it(folder: Path, tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    damage(copied)
    with pytest.raises(PackageError, match=said) as raised:
        HybridModel.load(copied, "torch")
    assert str(copied) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_loading_a_folder_unpickles_and_imports_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import pickle

    HybridModel.load(folder, "torch")(*call()[0], **call()[1])  # what loads when first used is there

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("something is unpickled, or imported by a name from a file")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (importlib, "import_module")):
        monkeypatch.setattr(owner, name, refuse)
    HybridModel.load(folder, "torch")(*call()[0], **call()[1])


def test_nested_values_have_a_stored_form_of_their_own() -> None:
    import torch.utils._pytree as pytree

    value = ((1, [2, {"b": 3, "a": Pair(4, None)}]), {"c": 5})
    leaves, spec = pytree.tree_flatten(value)
    stored = json.loads(json.dumps(stored_spec(spec)))
    assert made_spec(stored) == spec
    assert pytree.tree_unflatten(leaves, made_spec(stored)) == value
    unknown = pytree.tree_flatten(defaultdict(list, a=1))[1]
    with pytest.raises(ValueError, match="has no stored form"):
        stored_spec(unknown)
    with pytest.raises(PackageError, match=r"'somewhere\.else\.Thing', which this process does not know: import 'somewhere\.else'"):
        Calling.of_json(
            {"inputs": stored, "outputs": {"kind": "namedtuple", "context": "somewhere.else.Thing", "items": []}, "names": []}, "f"
        )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_change_of_a_manifest_is_read_or_is_one_error(folder: Path, data: st.DataObject) -> None:
    """The plan and how the network is called, as `load` reads them."""
    graph = read_graph((folder / "graph.json").read_bytes(), "graph.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    content = {name: manifest[name] for name in ("plan", "calling")}
    for _ in range(data.draw(st.integers(1, 3))):
        change(content, data)
    said = ""
    try:
        plan = Plan.of_json(content.get("plan"), graph, "manifest.json")
        assert sorted(name for part in plan.parts for name in part.operations) == sorted(node.name for node in graph.nodes)
        Calling.of_json(content.get("calling"), "manifest.json")
    except PackageError as error:
        said = str(error)
    assert said.startswith("manifest.json") or not said
    assert "\n" not in said


def test_half_precision_stays_within_the_limits_of_a_stage(module: Small) -> None:
    model = hybrid(copy.deepcopy(module), [call(), call(1)], LEFT, backend="reference")
    eager = copy.deepcopy(module)
    (args, kwargs), (same, also) = call(5), call(5)
    wanted, found = eager(*same, **also)["z"], model(*args, **kwargs)["z"]
    assert snr_db(wanted.detach().numpy(), found.numpy(), steady=True) > 45
