"""What a model library keeps in writing of a component: its manifest, and in it an entry for each stage and window."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..models.arrangement import Arrangement
from ..models.layouts import LAYOUTS, PLAIN

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
AT = "@"  # between a stage and its frames, in the name of a further window


@dataclass(frozen=True)
class StageEntry:
    """One stage as the manifest keeps it. Paths are relative to the build.

    A stage of which something stays in PyTorch has a `plan` (runtime/hybrid/plan.py); `package` is then its stored graph, and
    the plan names the packages of its parts. `inputs` and `outputs` are the stage's own; an `arrangement`
    (models/arrangement.py) leads from them to the package's. `function` names one of a package of several; operations
    that a half-precision package computes in float32 are `kept_float32`; `weights` says how they are compressed.
    """

    package: str
    golden: str
    operations: str
    window: int
    context: int
    precision: str
    compute_units: str
    minimum_deployment_target: str
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    operation_counts: dict[str, int]
    audited_values: int
    reference_snr_db: float | None
    plan: dict[str, Any] | None = None
    layout: str = "plain"
    arrangement: dict[str, Any] | None = None
    function: str | None = None
    kept_float32: list[str] = field(default_factory=list)
    weights: str | None = None

    @property
    def arranged(self) -> Arrangement | None:
        """Raises ValueError where what the manifest says is none."""
        return None if self.arrangement is None else Arrangement.from_dict(self.arrangement)

    @property
    def package_inputs(self) -> dict[str, list[int]]:
        """Names and shapes of what the package takes, in order."""
        arranged = self.arranged
        return dict(self.inputs) if arranged is None else {item.name: list(item.shape) for item in arranged.inputs}

    @property
    def package_outputs(self) -> list[str]:
        """Names of what the package gives, in order."""
        arranged = self.arranged
        return list(self.outputs) if arranged is None else list(dict.fromkeys(item.source for item in arranged.outputs))

    def packages(self) -> list[str]:
        """Its package, or those of its parts."""
        return [self.package] if self.plan is None else [part["package"] for part in self.plan["parts"] if part["package"] is not None]

    def files(self) -> list[str]:
        """Every path that the entry names."""
        own = [] if self.layout == PLAIN else [own_modules_name(self.operations)]
        return list(dict.fromkeys([self.package, self.golden, self.operations, *own, *self.packages()]))

    def check(self) -> None:
        """Raises ValueError, or what torch raises, where the layout is none or the arrangement does not lead there and back."""
        texts = (self.function, self.weights)
        if self.layout not in LAYOUTS or any(not (text is None or isinstance(text, str)) for text in texts):
            raise ValueError(f"layout {self.layout!r}, function {self.function!r}, weights {self.weights!r}")
        if not isinstance(self.kept_float32, list):
            raise ValueError(f"operations in float32 {self.kept_float32!r}")
        arranged = self.arranged
        if arranged is not None:
            arranged.check(self.inputs, self.outputs)


@dataclass(frozen=True)
class Manifest:
    """A component's manifest. `details` is what the kind of component adds (a voice's version, rate, config, ...)."""

    kind: str
    name: str
    build: str
    source: dict[str, Any]
    tools: dict[str, str]
    stages: dict[str, StageEntry]
    details: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """As it is stored: a stage in one package says nothing of a plan."""
        content = asdict(self)
        for entry in content["stages"].values():
            if entry["plan"] is None:
                del entry["plan"]
        return content


def stage_of_entry(name: str) -> str:
    """The stage of a manifest's entry: `content_encoder` of `content_encoder@2150`, a further window of it."""
    return name.partition(AT)[0]


def file_label(name: str) -> str:
    """An entry's name as its files have it."""
    return name.replace(AT, "_")


def own_modules_name(operations: str) -> str:
    """The file beside a stage's operation map that has modules as the stage's layout calls them."""
    return operations.replace(".operations.json", ".modules.json")
