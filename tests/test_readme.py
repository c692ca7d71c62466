"""The two READMEs say the same, and what they show exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rvc_coreml.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-TW.md"]


def parts(path: Path) -> dict[str, list[str]]:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
    code = [re.sub(r"\s*#.*", "", line).rstrip() for block in blocks for line in block.splitlines()]
    return {
        "code": [line for line in code if line],
        "commands": re.findall(r"^\| (`.*?`(?:[,、] ?`.*?`)*) \|", text, re.MULTILINE),
        "headings": re.findall(r"^#+", text, re.MULTILINE),
        "figures": sorted(re.findall(r"\d+\.\d+", text)),
    }


def test_both_languages_have_the_same_structure_code_and_figures():
    english, chinese = map(parts, READMES)
    assert english["code"] == chinese["code"]
    assert english["headings"] == chinese["headings"]
    assert english["figures"] == chinese["figures"]
    assert len(english["commands"]) == len(chinese["commands"])


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_first_screen_shows_the_two_commands(path):
    first = path.read_text(encoding="utf-8").splitlines()[:30]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_every_command_is_mentioned_and_every_link_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    assert all(re.search(rf"`{command}\b", text) for command in COMMANDS)
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert targets
    assert all((ROOT / target).exists() for target in targets)


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in READMES:
        for target in set(re.findall(r"make ([a-z-]+)", path.read_text(encoding="utf-8"))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
