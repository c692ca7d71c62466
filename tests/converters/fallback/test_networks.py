"""Well-known networks convert without a line that knows any of them; docs/networks.md is what the tool writes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import convert_networks
from convert_networks import NETWORKS, Result, convert, document, find, row

DOCUMENT = Path(__file__).parents[3] / "docs" / "networks.md"
NOT_FOLLOWED = {"EnCodec"}  # torch.export: its padding is computed from the values of a buffer
LEAST_SNR = 40.0  # dB, of the worst output of a whole network in half precision


@pytest.mark.parametrize("title", ["DistilBERT", "ConvNeXt"])
def test_a_transformer_and_a_convolutional_network_convert_whole(title: str) -> None:
    result = convert(*find([title]))
    assert result.problem == ""
    assert len(result.report.plan.packages) == 1
    assert result.report.operations_in_pytorch == 0
    assert result.snr_db > 45
    assert re.fullmatch(rf"\| {title} \(`\w+`\) \| \d+ \| \d+ k \| 1 \| 100 \| \d\d\.\d \| nothing \|", row(result))


def test_the_document_has_a_row_for_every_network() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "(`" in line and line.startswith("|")]
    assert [line.split(" (`")[0].removeprefix("| ") for line in rows] == [network.title for network in NETWORKS]
    missing = [line.split(" (`")[0].removeprefix("| ") for line in rows if "not converted" in line]
    assert set(missing) <= NOT_FOLLOWED
    assert len(rows) - len(missing) >= 12


def test_the_tool_knows_no_network_but_by_its_table() -> None:
    """Every title and class stands in the table alone."""
    source = Path(convert_networks.__file__).read_text(encoding="utf-8")
    code = source[source.index("@dataclass(frozen=True)\nclass Result") :]
    assert not [network.title for network in NETWORKS if network.model in code or f'"{network.title}"' in code]


def test_a_network_that_does_not_convert_is_a_row_with_the_reason() -> None:
    network = replace(find(["ResNet"])[0], numbers={"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"})
    broken = Result(network, parameters=1000, problem="torch.export cannot follow it")
    assert row(broken) == "| ResNet (`ResNetForImageClassification`) | | 1 k | | | | not converted: torch.export cannot follow it |"
    assert "0 of 1 networks convert" in document([broken], "fp16")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("title", [network.title for network in NETWORKS])
def test_every_network_converts(title: str) -> None:
    result = convert(*find([title]))
    if title in NOT_FOLLOWED:
        assert "torch.export cannot follow" in result.problem
        return
    assert result.problem == ""
    assert result.snr_db >= LEAST_SNR
    assert result.report.plan.packages
    assert all(finding["reason"] for finding in result.report.plan.findings)
