"""Which attention strategy the content encoder takes: ranked under the linter's cost model for the strictest chip, not chosen by taste."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.placement.assess import assess_package
from rvc_coreml.models import HubertConfig
from rvc_coreml.models.ane.attention import CHOSEN, STRATEGIES, WORKING_SET, Attention
from rvc_coreml.models.ane.content_encoder import WINDOW
from rvc_coreml.models.ane.layers import conv1x1
from rvc_coreml.models.hubert import SelfAttention
from torch import Tensor, nn

BASE = HubertConfig()
STRICTEST = "m1"


class Layer(nn.Module):
    """One attention layer of HuBERT-base."""

    def __init__(self, name: str) -> None:
        super().__init__()
        plain = SelfAttention(BASE.hidden, BASE.heads)
        projections = [conv1x1(layer) for layer in (plain.q_proj, plain.k_proj, plain.v_proj, plain.out_proj)]
        self.attention = Attention(*projections, heads=BASE.heads, strategy=name)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.attention(x, bias)


@dataclass(frozen=True, order=True)
class Rank:
    """The less the better, the first first."""

    blocked: int
    hazards: int
    microseconds: float
    slow: int
    transposes: int
    operations: int


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rank]:
    folder, found = tmp_path_factory.mktemp("strategies"), {}
    for name, strategy in STRATEGIES.items():
        example = (torch.zeros(1, BASE.hidden, 1, WINDOW), torch.zeros(strategy.bias_shape(WINDOW)))
        network = export_module(Layer(name).eval(), example)
        part = convert_part(network, [facts.name for facts in network.operations], "fp16")
        part.model.save(str(folder / f"{name}.mlpackage"))
        seen = assess_package(folder / f"{name}.mlpackage", STRICTEST)["main"]
        time = round(seen.times.total * 1e6, 1)
        transposes = part.operation_counts.get("transpose", 0)
        found[name] = Rank(len(seen.blocked), len(seen.hazards), time, len(seen.slow), transposes, len(seen.counted))
    return found


def test_the_recorded_choice_is_the_best_under_the_cost_model(ranks: dict[str, Rank]) -> None:
    assert min(ranks, key=lambda name: ranks[name]) == CHOSEN, ranks


def test_the_figures_that_justify_it_are_as_recorded(ranks: dict[str, Rank]) -> None:
    assert {(rank.blocked, rank.hazards, rank.microseconds) for rank in ranks.values()} == {(0, 0, ranks[CHOSEN].microseconds)}
    assert ranks[CHOSEN].microseconds == pytest.approx(493, abs=1)
    assert {name: (rank.slow, rank.transposes, rank.operations) for name, rank in ranks.items()} == {
        "whole": (2, 0, 13),
        "per_head": (1, 1, 59),
        "chunked": (0, 1, 20),
        "grouped": (0, 0, 21),
    }


def test_the_working_set_is_the_linters() -> None:
    from rvc_coreml.converters.placement.cost import WORKING_SET as LINTED

    assert WORKING_SET == LINTED
