"""What a stage may run on, in the order in which it is tried. The last is PyTorch on the CPU in float32, which defines correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import UsageError
from ...models.stages import VOICE_STAGES
from ..backends.base import Backend
from ..backends.coreml_backend import CoreMLBackend
from ..backends.torch_backend import TorchBackend
from ..library import CONTENT_ENCODER, PITCH
from ..manifest import stage_of_entry

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")  # Core ML's compute units; all of them first, then fewer
NEURAL_ENGINE = frozenset({"ALL", "CPU_AND_NE"})  # what compiles for it, which has taken from seconds to hours
STAGES = (CONTENT_ENCODER, PITCH, *VOICE_STAGES)
EVERY_STAGE = "*"


@dataclass(frozen=True)
class Candidate:
    """One backend, with its compute units where it is Core ML. `name` is what records and reports call it."""

    backend: Backend
    units: str | None = None

    @property
    def name(self) -> str:
        if self.units is not None:
            return f"{self.backend.name} ({self.units})"
        return f"{self.backend.name} ({self.backend.detail})" if isinstance(self.backend, TorchBackend) else self.backend.name

    @property
    def is_core_ml(self) -> bool:
        return self.units is not None


def candidates_of(backend: Backend) -> list[Candidate]:
    """A backend's candidates and what follows them: PyTorch on its best device, there in float32, then on the CPU."""
    if isinstance(backend, CoreMLBackend):
        units = (backend.compute_units,) if backend.compute_units else UNITS
        first = [Candidate(CoreMLBackend(unit, backend.worker), unit) for unit in units]
    else:
        first = [Candidate(backend)]
    fallback = backend if isinstance(backend, TorchBackend) else TorchBackend()
    if fallback is not backend or fallback.precision != "fp32":
        first.append(Candidate(fallback.in_full_precision()))
    if fallback.device != "cpu":
        first.append(Candidate(fallback.in_full_precision("cpu")))
    return first


def parse_units(values: Sequence[str]) -> dict[str, str]:
    """`UNITS` or `STAGE=UNITS`, each any number of times -> units by stage, EVERY_STAGE for all. Raises UsageError."""
    chosen: dict[str, str] = {}
    for value in values:
        stage, _, units = value.rpartition("=") if "=" in value else (EVERY_STAGE, "", value)
        units = units.upper()
        if units not in UNITS:
            raise UsageError(f"there are no compute units {units!r}; choose one of {', '.join(UNITS)}, or STAGE=UNITS")
        if stage not in (EVERY_STAGE, *STAGES):
            raise UsageError(f"there is no stage {stage!r} to choose compute units for; the stages are {', '.join(STAGES)}")
        if chosen.setdefault(stage, units) != units:
            which = "every stage" if stage == EVERY_STAGE else stage
            raise UsageError(f"{which} is given both {chosen[stage]} and {units}: choose one")
    return chosen


def check_units(chosen: Mapping[str, str], backend: Backend) -> None:
    """Raises UsageError where units are chosen for another backend than Core ML."""
    if chosen and not isinstance(backend, CoreMLBackend):
        raise UsageError(f"compute units belong to Core ML, and the stages run on {backend.name} here: leave --compute-units out")


def units_for(stage: str, chosen: Mapping[str, str]) -> str | None:
    """What was chosen for a stage by its name, for a part ("decoder.p0") by its stage's too, else for all."""
    return chosen.get(stage, chosen.get(stage_of_entry(stage.partition(".")[0]), chosen.get(EVERY_STAGE)))
