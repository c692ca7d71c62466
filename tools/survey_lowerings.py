"""What coremltools' lowerings compute, operation by operation: docs/lowerings.md.

    python tools/survey_lowerings.py -o FOLDER             # runs PyTorch's own sample inputs through every lowering (10 to 15 minutes)
    python tools/survey_lowerings.py -o FOLDER --write     # writes docs/lowerings.md from what FOLDER holds
    python tools/survey_lowerings.py -o FOLDER --only div remainder

PyTorch keeps sample inputs for its operations (torch.testing's op_db, which needs the package expecttest). Each sample is
exported as a graph of its own, converted in float32, executed by the reference executor and compared with PyTorch. A sample
is: ok; unsupported (no lowering is registered); refused (coremltools raised); executor (our executor refused: says nothing
about the lowering); or wrong (other numbers, another shape or another type). What is wrong belongs into
converters/preflight/denied.py unless it is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.converters.quiet import quiet
from rvc_coreml.converters.registry import has_lowering, operation_name
from rvc_coreml.coremltools_import import ct
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from survey_samples import OWN
from torch.utils import _pytree as pytree

DOCUMENT = Path(__file__).parent.parent / "docs" / "lowerings.md"
SAMPLES = 6  # of one operation and type, evenly chosen among PyTorch's
TYPES = (torch.float32, torch.int64, torch.bool)
TOLERANCE = 1e-4  # of the largest number, for float32 against float32
MAX_NUMBERS = 200_000
NOT_NUMBERS = ("empty", "rand", "normal", "bernoulli", "multinomial", "uniform", "cauchy", "exponential", "geometric", "dropout")


@dataclass(frozen=True)
class Sampled:
    """One sample of one operation. `calls`: the operations of its graph. `detail`: what was refused or how it is wrong."""

    operation: str
    kind: str
    arguments: str
    calls: tuple[str, ...]
    verdict: str
    detail: str


class Call(torch.nn.Module):
    """A function of some tensors among its arguments; the others are constants of the graph."""

    def __init__(self, function: Any, leaves: list[Any], spec: Any, variable: list[int]) -> None:
        super().__init__()
        self.function, self.spec, self.variable = function, spec, variable
        self.leaves = [None if index in variable else leaf for index, leaf in enumerate(leaves)]
        for index, leaf in enumerate(self.leaves):
            if isinstance(leaf, torch.Tensor):
                self.register_buffer(f"constant_{index}", leaf)

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = [getattr(self, f"constant_{i}", leaf) for i, leaf in enumerate(self.leaves)]
        for index, tensor in zip(self.variable, tensors, strict=True):
            leaves[index] = tensor
        arguments, keywords = pytree.tree_unflatten(leaves, self.spec)
        return self.function(*arguments, **keywords)


def examine(name: str, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Sampled:
    """One sample with all its tensors as inputs and, where that is refused, with only the first one."""
    leaves, spec = pytree.tree_flatten((arguments, keywords))
    leaves = [leaf.detach().clone().contiguous() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    kind = str(leaves[tensors[0]].dtype).removeprefix("torch.") if tensors else ""
    shown = described(arguments, keywords)
    result = Sampled(name, kind, shown, (), "skipped", "")
    for variable in (tensors, tensors[:1]):
        calls, verdict, detail = attempt(Call(function, leaves, spec, variable), [leaves[index] for index in variable])
        result = Sampled(name, kind, shown, calls, verdict, detail)
        if verdict != "refused" or len(tensors) < 2:
            break
    return result


def attempt(module: Call, inputs: list[torch.Tensor]) -> tuple[tuple[str, ...], str, str]:
    """(operations, verdict, detail)."""
    try:
        with quiet(), torch.no_grad():
            wanted = [value for value in pytree.tree_leaves(module(*inputs)) if isinstance(value, torch.Tensor)]
            program = torch.export.export(module.eval(), tuple(inputs), strict=False).run_decompositions({})
    except Exception as error:  # noqa: BLE001 - whatever torch.export says about a sample
        return (), "unexported", first_line(error)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    calls = tuple(dict.fromkeys(operation_name(node.target) for node in nodes))
    missing = [operation_name(node.target) for node in nodes if not has_lowering(node.target)]
    if missing:
        return calls, "unsupported", ", ".join(dict.fromkeys(missing))
    if any(value.dtype not in (torch.float32, torch.int64, torch.int32, torch.bool) for value in (*inputs, *wanted)):
        return calls, "skipped", "another type"
    if any(value.numel() == 0 for value in (*inputs, *wanted)) or not wanted or any(v.dim() > 5 for v in (*inputs, *wanted)):
        return calls, "skipped", "empty or beyond rank 5"
    specs = [ct.TensorType(shape=tuple(x.shape) or (1,), dtype=np.float32 if x.is_floating_point() else np.int32) for x in inputs]
    if any(x.dtype == torch.bool for x in inputs):
        return calls, "skipped", "a boolean input"
    try:
        with quiet():
            model: Any = ct.convert(
                program,
                inputs=specs,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )
    except Exception as error:  # noqa: BLE001 - whatever coremltools raises
        return calls, "refused", f"{type(error).__name__}: {first_line(error)}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mlpackage"
        model.save(str(path))
        try:
            reference = ReferenceModel(path)
            got = reference.predict({name: x.reshape(x.shape or (1,)).numpy() for name, x in zip(reference.inputs, inputs, strict=False)})
        except (PackageError, ValueError) as error:
            return calls, "executor", first_line(error)
        values = [got[name] for name in reference.outputs]
    if len(values) != len(wanted):
        return calls, "wrong", f"{len(values)} results for {len(wanted)}"
    faults = [fault for value, want in zip(values, wanted, strict=True) if (fault := difference(value, want))]
    return calls, "wrong" if faults else "ok", faults[0] if faults else ""


def difference(value: np.ndarray, wanted: torch.Tensor) -> str:
    """How a result differs from PyTorch's, "" where it does not. A scalar may be a tensor of one element, a boolean a number."""
    want = wanted.detach().numpy()
    if value.shape != want.shape and not (want.ndim == 0 and value.shape == (1,)):
        return f"shape {value.shape} for {want.shape}"
    value = value.reshape(want.shape)
    if wanted.dtype == torch.bool:
        return "" if np.array_equal(value.astype(bool), want) else f"{np.mean(value.astype(bool) != want):.0%} of the truth values"
    if not wanted.is_floating_point():
        if not np.issubdtype(value.dtype, np.integer):
            return f"type {value.dtype} for {want.dtype}"
        return "" if np.array_equal(value, want) else f"{np.mean(value != want):.0%} of the whole numbers"
    if not np.issubdtype(value.dtype, np.floating):
        return f"type {value.dtype} for {want.dtype}"
    if not np.array_equal(np.isfinite(value), np.isfinite(want)):
        return f"{int(np.sum(~np.isfinite(value)))} not finite for {int(np.sum(~np.isfinite(want)))}"
    finite = np.isfinite(want)
    if not np.array_equal(value[~finite], want[~finite], equal_nan=True):
        return "infinities of the other sign or NaN"
    error = float(np.max(np.abs(value[finite] - want[finite]), initial=0.0))
    largest = max(1.0, float(np.max(np.abs(want[finite]), initial=0.0)))
    return "" if error <= TOLERANCE * largest else f"off by up to {error:.3g} where the largest is {largest:.3g}"


def described(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """ "(3, 4), 2, dim=1": tensors as shapes."""

    def show(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return str(tuple(value.shape))
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(show(item) for item in value)}]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join([show(value) for value in arguments] + [f"{name}={show(value)}" for name, value in keywords.items()])[:160]


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def samples() -> Iterator[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """Ours, then PyTorch's own: (operation, function, arguments, keywords)."""
    yield from OWN
    from torch.testing._internal.common_methods_invocations import op_db

    for entry in op_db:
        name = entry.name + (f".{entry.variant_test_name}" if entry.variant_test_name else "")
        if any(word in name for word in NOT_NUMBERS):
            continue
        for kind in TYPES:
            if kind not in entry.supported_dtypes("cpu"):
                continue
            torch.manual_seed(0)
            try:
                every = list(entry.sample_inputs("cpu", kind, requires_grad=False))
            except Exception:  # noqa: BLE001, S112 - some need libraries that are not here
                continue
            wanted = SAMPLES if kind == torch.float32 else 2
            step = max(1, len(every) // wanted)
            for sample in every[::step][: wanted + 1]:
                yield name, entry.op, (sample.input, *sample.args), dict(sample.kwargs)


def survey(folder: Path, only: list[str], seconds: float) -> None:
    """Examines what FOLDER does not hold yet, until the time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "samples.jsonl"
    known = {(row["operation"], row["kind"], row["arguments"]) for row in load(folder)} if stored.exists() else set()
    started, counts = time.process_time(), Counter[str]()
    hopeless: set[str] = set()  # no lowering is registered, whatever the arguments
    with stored.open("a", encoding="utf-8") as lines:
        for name, function, arguments, keywords in samples():
            if time.process_time() - started > seconds:
                break
            tensors = [leaf for leaf in pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
            kind = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
            if (only and name not in only) or name in hopeless or (name, kind, described(arguments, keywords)) in known:
                continue
            if sum(tensor.numel() for tensor in tensors) > MAX_NUMBERS or any(tensor.layout != torch.strided for tensor in tensors):
                continue
            result = examine(name, function, arguments, keywords)
            lines.write(json.dumps(asdict(result)) + "\n")
            lines.flush()
            counts[result.verdict] += 1
            if result.verdict in ("unsupported", "unexported"):
                hopeless.add(name)
            if only or result.verdict == "wrong":
                print(f"{result.verdict:8} {result.operation} {result.kind} ({result.arguments}): {result.detail}", flush=True)
    print(dict(counts), f"{time.process_time() - started:.0f} s of CPU")


def load(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare coremltools' lowerings with PyTorch, operation by operation.")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for what was measured; a run goes on where the last one ended"
    )
    parser.add_argument("--only", nargs="*", default=[], help="these operations of PyTorch's list")
    parser.add_argument("--seconds", type=float, default=900, help="of CPU time")
    parser.add_argument("--write", action="store_true", help="write docs/lowerings.md instead of measuring")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        DOCUMENT.write_text(document(load(options.output)), encoding="utf-8")
        print(DOCUMENT)
    else:
        survey(options.output, options.only, options.seconds)


def document(rows: list[dict[str, Any]]) -> str:
    """The whole text of docs/lowerings.md."""
    by_operation: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_operation[row["operation"]].append(row)
    counts = Counter(row["verdict"] for row in rows)
    tried = {name: Counter(row["verdict"] for row in found) for name, found in by_operation.items()}
    versions = f"coremltools {ct.__version__} and PyTorch {torch.__version__.partition('+')[0]}"
    lines = [
        "# What coremltools' lowerings compute",
        "",
        "<!-- generated by tools/survey_lowerings.py from a survey; do not edit -->",
        "",
        f"{versions}, on Linux: {len(rows)} samples of {len(by_operation)} operations, PyTorch's own and some of ours (`own.`), each"
        " exported as a graph of its own, converted in float32, executed by the reference executor and compared with PyTorch. A survey"
        " ends with its time and goes on where it ended, so PyTorch's list need not be covered. Nothing here was run by Core ML.",
        "",
        f"{counts['ok']} samples are right, {counts['wrong']} wrong, {counts['refused']} refused by coremltools, {counts['unsupported']}"
        f" have no lowering, {counts['executor']} are refused by our executor, {counts['unexported']} by torch.export; {counts['skipped']}"
        " were not tried (types and shapes that no package can hold).",
        "",
        "What is wrong here is what the preflight speaks about (docs/preflight.md), and what converters/exact.py puts in other terms.",
        "",
        "## Wrong",
        "",
        "| operation | arguments | type | how |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {r['operation']} | `{r['arguments']}` | {r['kind']} | {r['detail']} |" for r in rows if r["verdict"] == "wrong"]
    lines += [
        "",
        "## Refused for some arguments",
        "",
        "| operation | arguments | type | coremltools' message |",
        "| --- | --- | --- | --- |",
    ]
    for name, verdicts in sorted(tried.items()):
        if verdicts["refused"]:
            first = next(row for row in by_operation[name] if row["verdict"] == "refused")
            message = first["detail"].replace("|", "/")[:140]
            lines.append(f"| {name} | `{first['arguments']}` | {first['kind']} | {message} |")
    lines += ["", "## Without a lowering", ""]
    lines.append(", ".join(sorted(name for name, verdicts in tried.items() if verdicts["unsupported"])) + ".")
    lines += ["", "## Right in every sample that was tried", ""]
    right = (name for name, verdicts in tried.items() if verdicts["ok"] and not verdicts["wrong"] and not verdicts["refused"])
    lines.append(", ".join(sorted(right)) + ".")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
