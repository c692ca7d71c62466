"""Stages in the Neural Engine's layout: networks for them, their packages run by the host's arrangement, their weights accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.models import Synthesizer, VoiceConfig
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.config import PHONE_CHANNELS
from rvc_coreml.models.stages import Stage
from rvc_coreml.runtime.library import Component
from rvc_coreml.runtime.reference.executor import ReferenceModel
from torch import Tensor

from .checkpoints import full_config, small_config, voice_state


@torch.inference_mode(False)
def seeded_voice(config: list[Any], version: str = "v2", f0: bool = True) -> Synthesizer:
    """A voice of this configuration with seeded weights."""
    network = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS[version], f0)
    network.load_state_dict(fold_weight_norm(Path("seeded"), voice_state(config, version, f0)))
    return network.eval()


@cache
def _configured(changes: tuple[tuple[str, Any], ...]) -> Synthesizer:
    return seeded_voice(small_config(**dict(changes)))


def configured_voice(**changes: Any) -> Synthesizer:
    """A narrow v2 voice with some fields of its configuration changed, made once."""
    return _configured(tuple(sorted(changes.items())))


@cache
def full_size_voice(version: str, rate: int, f0: bool) -> Synthesizer:
    """A voice as wide as they are trained, made once."""
    return seeded_voice(full_config(version, rate), version, f0)


def packaged_outputs(stage: Stage, model: ReferenceModel, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The stage's own outputs, as its package computes them."""
    assert stage.arrangement is not None
    given = stage.arrangement.enter(inputs)
    assert set(model.inputs) == set(given)
    found = model.predict({name: value.numpy() for name, value in given.items()})
    left = stage.arrangement.leave({name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in found.items()})
    return {name: value.numpy() for name, value in left.items()}


def group_problems(stage: Any, plain: Stage) -> list[str]:
    """What `stage.sources()` leaves out, and groups whose values are not those of the plain parameters, none more or less often."""
    own, origins = dict(stage.named_parameters()), dict(plain.named_parameters())
    sources: dict[str, tuple[str, ...]] = stage.sources()
    problems = [f"{name} has no source" for name in own if name not in sources]
    hosted = tuple(prefix + entry for entry in plain.host_entries for prefix in ("", "hubert.", "network."))
    wanted = {name for name in origins if not name.startswith(hosted)}
    problems += [f"{name} is read by nobody" for name in wanted - {name for names in sources.values() for name in names}]
    for names in set(sources.values()):
        made = torch.cat([own[name].flatten() for name, given in sources.items() if given == names])
        given = torch.cat([origins[name].flatten() for name in names])
        if not torch.equal(made[made != 0].sort().values, given[given != 0].sort().values):
            problems.append(f"what is made of {', '.join(names)} has other values")
    return problems


def repeated_problems(stage: Any, plain: Stage, times: Mapping[str, int]) -> list[str]:
    """The same where each parameter is made of one; `times` says which hold every value several times."""
    own, origins = dict(stage.named_parameters()), dict(plain.named_parameters())
    sources: dict[str, tuple[str, ...]] = stage.sources()
    problems = [f"{name} has no source" for name in own if name not in sources]
    given = {name for names in sources.values() for name in names}
    hosts = tuple(f"{part}{prefix}" for prefix in plain.host_entries for part in ("", "network."))
    problems += [f"{name} is read by nobody" for name in origins if name not in given and not name.startswith(hosts)]
    for name, (origin,) in sources.items():
        wanted, made = (values[values != 0].flatten().sort().values for values in (origins[origin], own[name]))
        if not torch.equal(made, wanted.repeat_interleave(times.get(name, 1))):
            problems.append(f"{name} has other values than {origin}")
    return problems


def package_arrays(component: Component, stage: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A stage's inputs as its package takes them."""
    arrangement = component.arrangement(stage)
    if arrangement is None:
        return dict(inputs)
    return {name: value.numpy() for name, value in arrangement.enter({name: torch.from_numpy(v) for name, v in inputs.items()}).items()}
