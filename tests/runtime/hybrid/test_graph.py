"""The stored graph: what is read back is what was written, and nothing that is no network's gets past reading."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.stored_graph import stored_graph
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.hybrid.execute import Executable, run
from rvc_coreml.runtime.hybrid.graph import HERE, MAX_DEPTH, Declared, Graph, Node, Ref, encoded, graph_from_json, read_graph
from rvc_coreml.runtime.hybrid.operations import resolve
from support.damage_json import change

X = torch.linspace(-2, 2, 6).reshape(2, 3)


def one(operation: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A graph of one operation as JSON; `x` is its input and `y` its result."""
    node = Node("y", operation, args or (Ref("x"),), kwargs)
    return Graph(("x",), (node,), (Ref("y"),), {"x": Declared((2, 3), "float32")}).to_json()


def executed(content: Any) -> Any:
    return run(graph_from_json(content, "graph.json"), {"x": X})


class Branches(torch.nn.Module):
    """A branch, a loop, sizes that depend on data, several results, constants and every kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 9).reshape(3, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x @ self.weight + torch.tensor([1.0, 2.0, 3.0])
        y = torch.cond(y.sum() > 0, lambda a: a.sin() + 1, lambda a: a.cos() - 1, (y,))
        _, y = torch.while_loop(lambda i, _a: i < 3, lambda i, a: (i + 1, a * 1.25), (torch.tensor(0), y))
        found = torch.nonzero(y > 0)
        largest, places = torch.topk(y, 2)
        masked = y.masked_fill(y > 1, float("-inf"))
        return y, found, largest, places, masked, torch.zeros(found.shape[0], 2, dtype=torch.float64), y.to(torch.float16)


@pytest.fixture(scope="module")
def branches() -> tuple[Branches, Graph, dict[str, torch.Tensor]]:
    module = Branches().eval()
    graph, tensors = stored_graph(torch.export.export(module, (X,), strict=False).run_decompositions())
    return module, graph, tensors


def values_of(graph: Graph, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": x, **{value: tensors[name] for value, name in graph.constants.items()}}


@pytest.mark.parametrize("x", [X, -X, X * 0], ids=["one branch", "the other", "zeros"])
def test_a_graph_with_branches_loops_and_sizes_of_data_computes_what_the_module_does(branches: Any, x: torch.Tensor) -> None:
    module, graph, tensors = branches
    wanted = module(x)
    found = run(graph, values_of(graph, tensors, x))
    for expected, item in zip(wanted, graph.outputs, strict=True):
        got = found[item.value]
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())


def test_a_graph_is_read_back_as_it_was_written(branches: Any) -> None:
    _module, graph, _tensors = branches
    text = json.dumps(graph.to_json(), allow_nan=False)
    assert read_graph(text, "graph.json") == graph
    kinds = [
        None,
        True,
        3,
        -(1 << 63),
        0.5,
        math.inf,
        -math.inf,
        "text",
        [1, [2.0]],
        torch.float16,
        torch.strided,
        torch.channels_last,
        1 + 2j,
    ]
    node = Node("y", "aten.sinc.default", (Ref("x"), *kinds), {"device": HERE})
    given = Graph(("x",), (node,), (Ref("y"), 3, None), {"x": Declared((), "bool")})
    assert read_graph(json.dumps(given.to_json()), "graph.json") == given
    assert math.isnan(graph_from_json(one("aten.add.Scalar", Ref("x"), math.nan), "g").nodes[0].args[1])


def test_values_are_given_back_after_their_last_use() -> None:
    alive: list[Any] = []
    import weakref

    nodes = [
        Node("a", "aten.sin.default", (Ref("x"),)),
        Node("b", "aten.cos.default", (Ref("a"),)),
        Node("c", "aten.exp.default", (Ref("b"),)),
    ]
    graph = Graph(("x",), tuple(nodes), (Ref("c"),), {"x": Declared((2, 3), "float32")})
    executable = Executable(graph)
    steps = [step for step, _dropped in executable._steps]

    def watched(known: dict[str, Any], device: torch.device) -> None:
        alive.append(weakref.ref(known["a"]))
        steps[1](known, device)

    def last(known: dict[str, Any], device: torch.device) -> None:
        assert alive[0]() is None, "a is read by nobody any more"
        steps[2](known, device)

    executable._steps = [executable._steps[0], (watched, executable._steps[1][1]), (last, executable._steps[2][1])]
    assert torch.equal(executable({"x": X})["c"], X.sin().cos().exp())


REFUSED = [
    ("aten.from_file.default", ("/etc/passwd", False, 4), {}),
    ("aten.max_pool2d_with_indices_backward.default", (Ref("x"),) * 2, {}),
    ("aten.segment_reduce.default", (Ref("x"), "sum"), {"unsafe": True}),
    ("aten._ctc_loss.Tensor", (Ref("x"),) * 4, {}),
    ("aten.slow_conv_transpose2d.default", (Ref("x"), Ref("x"), [9, 9]), {}),
    ("aten.set.source_Tensor", (Ref("x"), Ref("x")), {}),
    ("aten.set_.source_Tensor", (Ref("x"), Ref("x")), {}),
    ("aten.resize_.default", (Ref("x"), [1 << 30]), {}),
    ("aten.resize.default", (Ref("x"), [1 << 30]), {}),
    ("aten.add_.Tensor", (Ref("x"), Ref("x")), {}),
    ("aten.add.out", (Ref("x"), Ref("x")), {"out": Ref("x")}),
    ("aten.copy_.default", (Ref("x"), Ref("x")), {}),
    ("aten._sparse_coo_tensor_unsafe.default", (Ref("x"), Ref("x"), [2, 2]), {}),
    ("aten.sparse_coo_tensor.indices", (Ref("x"), Ref("x")), {}),
    ("aten.fbgemm_linear_fp16_weight.default", (Ref("x"), Ref("x"), Ref("x")), {}),
    ("aten._print.default", ("hello",), {}),
    ("aten._cufft_set_plan_cache_max_size.default", (0, 1), {}),
    ("aten.__import__.default", ("os",), {}),
    ("aten.__class__.default", (), {}),
    ("aten.__getattr__.default", (Ref("x"), "storage"), {}),
    ("aten.sin", (Ref("x"),), {}),
    ("aten..default", (Ref("x"),), {}),
    ("aten.sin.__class__", (Ref("x"),), {}),
    ("aten.sin.default.__call__", (Ref("x"),), {}),
    ("aten.not_an_operation.default", (Ref("x"),), {}),
    ("prims.sin.default", (Ref("x"),), {}),
    ("profiler._record_function_enter_new.default", ("name", None), {}),
    ("quantized.linear.default", (Ref("x"),), {}),
    ("mkldnn._convolution_pointwise.default", (Ref("x"),), {}),
    ("higher_order.run_with_rng_state", (Ref("x"),), {}),
    ("higher_order.call_torchbind", (Ref("x"),), {}),
    ("higher_order.cond", (Ref("x"), Ref("x"), Ref("x"), [Ref("x")]), {}),
    ("higher_order.while_loop", ("a", "b", [Ref("x")], []), {}),
    ("builtins.eval", ("1",), {}),
    ("builtins.getattr", (Ref("x"), "data_ptr"), {}),
    ("operator.attrgetter", ("data_ptr",), {}),
    ("operator.methodcaller", ("tolist",), {}),
    ("operator.getitem", (Ref("x"), "a"), {}),
    ("operator.getitem", ([1, 2], 0), {}),
    ("torch.load", ("/etc/passwd",), {}),
    ("torch.ops.load_library", ("evil.so",), {}),
    ("os.system", ("true",), {}),
    ("__import__", ("os",), {}),
    ("", (), {}),
    ("aten.sin.default", (Ref("x"),), {"out": Ref("x")}),
    ("aten.sin.default", (Ref("x"), Ref("x")), {}),
    ("aten.sin.default", (Ref("x"),), {"self": Ref("x")}),
    ("aten.mul.Tensor", (Ref("x"), "x"), {}),
    ("aten.rand.generator", ([2],), {"generator": 3}),
    ("aten.rand.default", ([2],), {"device": "cuda:7"}),
    ("aten.sin.default", (HERE,), {}),
]


@pytest.mark.parametrize(("operation", "args", "kwargs"), REFUSED, ids=[f"{item[0]}-{number}" for number, item in enumerate(REFUSED)])
def test_what_is_no_networks_operation_is_refused_when_it_is_loaded(operation: str, args: Any, kwargs: Any) -> None:
    content = one(operation)
    content["nodes"] = [["y", operation, encoded(args), {name: encoded(value) for name, value in kwargs.items()}]]
    with pytest.raises(PackageError) as raised:
        Executable(graph_from_json(content, "dir/graph.json"), where="dir/graph.json")
    assert str(raised.value).startswith("dir/graph.json")
    assert repr(operation) in str(raised.value) or operation in str(raised.value) or not operation


def test_no_aten_operation_that_writes_or_takes_more_than_tensors_and_numbers_is_ever_resolved() -> None:
    """Over all that this PyTorch has: the walk that the list above samples."""
    allowed, kinds = [], set()
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = qualified.partition("::")
        base, _, overload = rest.partition(".")
        try:
            operation = resolve(f"{namespace}.{base}.{overload or 'default'}")
        except ValueError:
            continue
        assert namespace == "aten"
        assert operation.arguments is not None
        schema = operation.call._schema  # pyright: ignore[reportFunctionMemberAccess]
        assert not any(item.alias_info is not None and item.alias_info.is_write for item in (*schema.arguments, *schema.returns)), qualified
        kinds |= {kind for _name, kind in operation.arguments}
        allowed.append(base)
    assert {"sinc", "convolution", "native_group_norm", "randn", "_softmax", "nonzero", "scatter_add", "grid_sampler_2d"} <= set(allowed)
    assert not {"from_file", "set", "resize", "_print", "data", "fbgemm_linear_fp16_weight"} & set(allowed)
    assert not [
        kind for kind in kinds if "Storage" in kind or "Stream" in kind or "torch.classes" in kind or "Dict" in kind or "Any" in kind
    ]


DAMAGE: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("a value that is not there", lambda g: g["nodes"][0].__setitem__(2, [{"value": "z"}])),
    ("a value before it is made", lambda g: g["nodes"].insert(0, ["w", "aten.sin.default", [{"value": "y"}], {}])),
    ("its own result", lambda g: g["nodes"][0].__setitem__(2, [{"value": "y"}])),
    ("a name twice", lambda g: g["nodes"].append(["y", "aten.sin.default", [{"value": "x"}], {}])),
    ("an output that is not there", lambda g: g.__setitem__("outputs", [{"value": "z"}])),
    ("no list", lambda g: g.__setitem__("nodes", {})),
    ("an entry more", lambda g: g.__setitem__("code", "import os")),
    ("an entry less", lambda g: g.pop("written")),
    ("no shape", lambda g: g["declared"].__setitem__("x", [[2, -3], "float32"])),
    ("a shape of texts", lambda g: g["declared"].__setitem__("x", [["2"], "float32"])),
    ("a shape of truths", lambda g: g["declared"].__setitem__("x", [[True], "float32"])),
    ("no type", lambda g: g["declared"].__setitem__("x", [[2, 3], "object"])),
    ("an undeclared input", lambda g: g.__setitem__("declared", {})),
    ("a constant without shape", lambda g: g.__setitem__("constants", {"c": "c"})),
    ("another device", lambda g: g["nodes"][0][2].append({"device": "cuda:1"})),
    ("another kind of argument", lambda g: g["nodes"][0][2].append({"pickle": "gASV"})),
    ("two kinds at once", lambda g: g["nodes"][0][2].append({"value": "x", "dtype": "float32"})),
    ("a huge number", lambda g: g["nodes"][0][2].append(1 << 70)),
    ("a huge text", lambda g: g["nodes"][0][2].append("x" * 20_000)),
    ("a sub-graph that is not there", lambda g: g["nodes"][0][2].append({"graph": "g"})),
    ("a buffer that is no constant", lambda g: g.__setitem__("buffers", {"c": "y"})),
    ("an input written that is none", lambda g: g.__setitem__("written", {"y": "y"})),
    ("a name with a line break", lambda g: g["nodes"][0].__setitem__(0, "y\n")),
    ("an empty name", lambda g: g["nodes"][0].__setitem__(0, "")),
]


@pytest.mark.parametrize("damage", [item[1] for item in DAMAGE], ids=[item[0] for item in DAMAGE])
def test_a_damaged_graph_is_one_sentence(damage: Callable[[dict[str, Any]], None]) -> None:
    content = copy.deepcopy(one("aten.sin.default"))
    assert torch.equal(executed(copy.deepcopy(content))["y"], X.sin())
    damage(content)
    with pytest.raises(PackageError, match=r"^graph\.json is damaged \(.+\): convert the network again$"):
        graph_from_json(content, "graph.json")


@pytest.mark.parametrize("text", ["", "[", "null", "[" * 100_000, '{"inputs": NaN}', '{"a": ' * 50_000, "1" * 5000, b"\xff\xfe"])
def test_what_is_no_json_is_one_sentence(text: str | bytes) -> None:
    with pytest.raises(PackageError, match=r"graph\.json"):
        read_graph(text, "graph.json")


def test_graphs_in_graphs_and_lists_in_lists_end() -> None:
    content = one("aten.sin.default")
    deep: Any = 1
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    content["nodes"][0][2].append(deep)
    with pytest.raises(PackageError, match="too deep"):
        graph_from_json(content, "graph.json")
    inner: dict[str, Any] = {name: {} for name in one("aten.sin.default")} | {"inputs": [], "nodes": [], "outputs": []}
    for _ in range(MAX_DEPTH + 2):
        inner = {**inner, "subgraphs": {"g": inner}}
    with pytest.raises(PackageError, match="too deep"):
        graph_from_json({**one("aten.sin.default"), "subgraphs": {"g": inner}}, "graph.json")


def test_arithmetic_on_sizes_takes_small_numbers_alone() -> None:
    for operation, args in (
        ("operator.pow", (9, 9_999_999)),
        ("operator.mul", ("x", 1 << 40)),
        ("operator.add", (Ref("x"), 1)),
        ("operator.mul", ([1], 9)),
    ):
        with pytest.raises(PackageError, match=r"^the graph: y \(operator\.\w+\) failed in PyTorch"):
            executed(one(operation, *args))
    assert executed(one("operator.floordiv", 7, 2))["y"] == 3


def test_what_pytorch_refuses_names_the_operation() -> None:
    with pytest.raises(PackageError, match=r"^the graph: y \(aten\.reshape\.default\) failed in PyTorch: shape .* is invalid"):
        executed(one("aten.reshape.default", Ref("x"), [5, 5]))


FAR = 1 << 40
OUTSIDE: list[tuple[str, tuple[Any, ...]]] = [
    ("as_strided.default", (X, [1000], [1])),
    ("as_strided.default", (X, [2], [1], -5)),
    ("select.int", (X, 0, 50)),
    ("embedding.default", (X, torch.tensor([FAR]))),
    ("gather.default", (X, 0, torch.tensor([[FAR]]))),
    ("linalg_lu_solve.default", (torch.eye(3), torch.full((3,), 1 << 30, dtype=torch.int32), torch.eye(3))),
    ("max_unpool2d.default", (X[None], torch.full((1, 2, 3), FAR), [4, 6])),
    # What ATen does not check, and crashes or reads on with.
    ("native_batch_norm.default", (torch.ones(1, 4_000_000, 1), X[0, :1], None, None, None, True, 0.1, 1e-5)),
    ("_native_batch_norm_legit_no_training.default", (torch.ones(1, 4_000_000, 1), None, None, X[0, :1], X[0, :1], 0.1, 1e-5)),
    ("_embedding_bag.default", (X, torch.tensor([1, 1, 0]), torch.tensor([0, -FAR, 1]))),
    ("_embedding_bag_forward_only.default", (X, torch.tensor([1, 1, 0]), torch.tensor([0, FAR, 1]))),
    ("_fft_c2c.default", (X + 0j, [99], 0, True)),
    ("_fft_r2c.default", (X, [], 0, True)),
    ("_weight_norm_interface.default", (torch.ones(4_000_000, 1), X[:1, :1])),
    ("_upsample_bilinear2d_aa.default", (X[None, None], [8, 8], False, 1e-10, 1e-10)),
    ("repeat_interleave.Tensor", (torch.tensor([1 << 20, 1 - (1 << 20)]),)),
    ("_scaled_dot_product_flash_attention_for_cpu.default", (X[None, None], torch.ones(1, 1, 400_000, 3), X[None, None])),
    ("_scaled_dot_product_flash_attention_for_cpu.default", (X[None, None], X[None, None, :0], X[None, None, :0])),
    ("_grouped_mm.default", (torch.ones(16, 16), torch.ones(2, 16, 16), torch.tensor([1 << 20, 3], dtype=torch.int32))),
]


@pytest.mark.parametrize(("operation", "args"), OUTSIDE, ids=[f"{name}-{number}" for number, (name, _args) in enumerate(OUTSIDE)])
def test_memory_outside_a_tensor_is_not_reached(operation: str, args: tuple[Any, ...]) -> None:
    """By ATen's own checks, or by those of guards.py: where one is missing, this ends the process."""
    tensors = {f"x{number}": value for number, value in enumerate(args) if isinstance(value, torch.Tensor)}
    node = Node("y", f"aten.{operation}", tuple(Ref(f"x{n}") if f"x{n}" in tensors else value for n, value in enumerate(args)))
    declared = {name: Declared(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in tensors.items()}
    with pytest.raises(PackageError, match=rf"^the graph: y \(aten\.{operation}\) failed in PyTorch"):
        run(Graph(tuple(tensors), (node,), (Ref("y"),), declared), tensors)


def test_a_guard_lets_what_networks_do_pass() -> None:
    """Against the same operations under their public names."""
    from torch.nn import functional as F

    image, signal, indices = torch.rand(1, 3, 6, 8), torch.rand(2, 3, 5), torch.tensor([1, 0, 1, 1])
    mean, variance = torch.rand(3), torch.rand(3) + 0.5
    offsets, q = torch.tensor([0, 1]), torch.rand(1, 2, 4, 8)
    for operation, args, wanted in (
        (
            "_native_batch_norm_legit_no_training.default",
            (signal, mean, variance, mean, variance, 0.1, 1e-5),
            F.batch_norm(signal, mean, variance, mean, variance),
        ),
        ("_embedding_bag.default", (X, indices, offsets), F.embedding_bag(indices, X, offsets, mode="sum")),
        ("_fft_c2c.default", (signal + 0j, [1, 2], 0, True), torch.fft.fft2(signal)),
        ("_weight_norm_interface.default", (signal, mean[:2].reshape(2, 1, 1)), torch._weight_norm(signal, mean[:2].reshape(2, 1, 1), 0)),
        (
            "_upsample_bilinear2d_aa.default",
            (image, [9, 4], False, 1.6, 0.5),
            F.interpolate(image, scale_factor=(1.6, 0.5), mode="bilinear", antialias=True),
        ),
        ("repeat_interleave.Tensor", (torch.tensor([2, 0, 1]),), torch.tensor([0, 0, 2])),
        ("_scaled_dot_product_flash_attention_for_cpu.default", (q, q, q), F.scaled_dot_product_attention(q, q, q)),
    ):
        found = resolve(f"aten.{operation}").checked(args, {})
        found = found if isinstance(found, torch.Tensor) else found[0]
        assert torch.allclose(found, wanted, atol=1e-5), operation


def test_a_custom_operation_runs_only_where_the_caller_names_it() -> None:
    library = torch.library.Library("hybrid_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.define("grow(Tensor(a!) x) -> Tensor(a!)")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    content = one("hybrid_test.twice.default")
    with pytest.raises(PackageError, match="custom_operations"):
        executed(content)
    graph = graph_from_json(content, "graph.json")
    for named in ("hybrid_test", "hybrid_test::twice", "hybrid_test.twice", "hybrid_test.twice.default"):
        assert torch.equal(run(graph, {"x": X}, custom_operations=(named,))["y"], 2 * X)
    with pytest.raises(PackageError, match="is no operation of ATen"):
        run(graph, {"x": X}, custom_operations=("hybrid", "hybrid_test::other"))
    with pytest.raises(PackageError, match="changes its arguments"):
        run(graph_from_json(one("hybrid_test.grow.default"), "g"), {"x": X}, custom_operations=("hybrid_test",))
    with pytest.raises(PackageError, match="is not registered"):
        run(graph_from_json(one("elsewhere.twice.default"), "g"), {"x": X}, custom_operations=("elsewhere",))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_change_of_a_graph_runs_or_is_one_error(branches: Any, data: st.DataObject) -> None:
    """Nothing but a PackageError or tensors comes of it."""
    _module, graph, tensors = branches
    content = json.loads(json.dumps(graph.to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        change(content, data)
    try:
        read = read_graph(json.dumps(content), "graph.json")
        values = dict.fromkeys(read.inputs, X) | {value: tensors[name] for value, name in read.constants.items() if name in tensors}
        found = run(read, values)
    except PackageError as error:
        said, found = str(error), {}
    else:
        said = ""
    assert "\n" not in said
    assert said.startswith(("graph.json", "the graph")) or not said
    if found:
        assert all(isinstance(value, (torch.Tensor, int, float, list, tuple, type(None))) for value in found.values())


class Makes(torch.nn.Module):
    """Tensors made of none, moved, and made like others."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        counted, drawn = torch.arange(3) + torch.full((3,), 2.0), torch.rand(2, 3)
        made = counted, torch.eye(3).to("cpu"), drawn, torch.zeros_like(x), torch.ones(3, device="cpu")
        return x @ made[1] + made[0], *made


def test_everything_is_made_where_the_caller_says() -> None:
    """On the device meta, which holds no values: a tensor made anywhere else would meet one of another device, or come out."""
    graph, tensors = stored_graph(torch.export.export(Makes(), (X,), strict=False).run_decompositions())
    read = read_graph(json.dumps(graph.to_json()), "graph.json")
    values = {name: value.to("meta") for name, value in values_of(read, tensors, X).items()}
    assert {value.device.type for value in run(read, values, device="meta").values()} == {"meta"}
    assert {value.device.type for value in run(read, values_of(read, tensors, X)).values()} == {"cpu"}
    bare = one("aten.full.default", [2], 1.0)  # without a device of its own
    assert run(graph_from_json(bare, "g"), {"x": X.to("meta")}, device="meta")["y"].device.type == "meta"
