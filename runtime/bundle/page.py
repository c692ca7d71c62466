"""integration.html: the contract for people, in one file without anything from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import picture
from .style import STYLE
from .swift import CHECKING, LOADING, SWIFT_UNITS

Contract = Mapping[str, Any]
SHOWN_DIGITS = 10


def integration_page(contract: Contract, folder: Path) -> str:
    """The page of a bundle whose files lie in `folder`."""
    name = escape(contract["voice"]["name"])
    body = [_head(contract), _begin(contract), "<h2 id='steps'>Steps</h2>"]
    body += [_step(number, step, contract, folder) for number, step in enumerate(contract["steps"], 1)]
    body += [_swift(contract), _windows(contract), _constants(contract), _files(contract)]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,"
        " initial-scale=1'>"
        f"<title>{name}: integration</title><style>{STYLE}</style></head><body><div class='layout'>{_navigation(contract)}"
        f"<main>{''.join(body)}</main></div></body></html>\n"
    )


def _navigation(contract: Contract) -> str:
    steps = "".join(
        f"<a href='#{escape(step['id'])}'><i class='{step['kind']}'></i>{escape(step['title'])}</a>" for step in contract["steps"]
    )
    rest = "".join(
        f"<a href='#{place}'>{text}</a>"
        for place, text in (("swift", "Swift"), ("plans", "Window plans"), ("constants", "Constants"), ("files", "Files"))
    )
    return f"<nav><b>Steps</b>{steps}<b>Reference</b>{rest}</nav>"


def _head(contract: Contract) -> str:
    voice = contract["voice"]
    facts = {
        "voice": f"{voice['name']}, {voice['version']}",
        "rate": f"{voice['sample_rate']} Hz",
        "pitch": voice["pitch_estimator"] if voice["f0"] else "none: this voice was trained without",
        "speaker": f"{voice['speaker']} of {voice['speakers']}",
        "needs": f"{contract['minimum_deployment_target']} or the macOS of that year",
        "packages": len(contract["stages"]),
        "golden vectors": len(contract["vectors"]),
        "made by": f"rvc-coreml {contract['made_by']['rvc-coreml']}",
    }
    items = "".join(f"<li><span>{escape(name)}</span>{escape(str(value))}</li>" for name, value in facts.items())
    return (
        f"<h1>{escape(voice['name'])} in your app</h1><p class='lead'>{len(contract['stages'])} Core ML packages make this voice."
        " The rest is"
        " arithmetic that the app does itself, on this page step by step: in words, in formulas, and in numbers to compare with.</p>"
        f"<ul class='facts'>{items}</ul>"
    )


def _begin(contract: Contract) -> str:
    example = contract["example"]
    return (
        "<h2>How to use it</h2><p>Begin at the top. Give each step the vectors under <em>given</em>, compare what comes out with"
        " those under"
        " <em>gives</em>, and only then go on. All numbers are in <code>contract.json</code>, from which this page is made.</p>"
        "<p>Vectors and tables are raw numbers, little endian, row by row, without a header: float32 in <code>.f32</code>, int32 in"
        f" <code>.i32</code>. They come from one conversion of {example['samples']} samples of speech, in float32, as"
        f" <code>{escape(example['command'])}</code> does it.</p>"
        "<p>To compare: SNR = 10 · log₁₀(Σ(r - mean r)² / Σ(a - r)²). A host step in float32 should reach"
        " 80 dB and more (what"
        " follows a division or a logarithm of small numbers somewhat less), a half-precision package 45 dB against its own window"
        " vectors, the whole chain 35 dB (somewhat less where half precision moves a frame of the pitch over its voicing threshold).</p>"
        "<p class='note'>Core ML can compute wrong numbers without an error: a half-precision decoder is known to come out four"
        " times too loud on some"
        " compute units. Run each package on its window vectors once after installation and after each system update, and take"
        " other compute units where"
        " the SNR is below 30 dB.</p>"
    )


def _step(number: int, step: Mapping[str, Any], contract: Contract, folder: Path) -> str:
    kind = "on the host" if step["kind"] == "host" else "Core ML package"
    parts = [
        f"<section class='step {step['kind']}' id='{escape(step['id'])}'><div class='head'><span class='number'>{number}</span>"
        f"<h3>{escape(step['title'])}</h3><span class='kind'>{kind}</span></div><p>{_prose(step['about'])}</p>"
    ]
    if step.get("formulas"):
        parts.append("<ul class='formulas'>" + "".join(f"<li>{escape(line)}</li>" for line in step["formulas"]) + "</ul>")
    if step.get("code"):
        parts.append(f"<pre>{escape(step['code'])}</pre>")
    if step.get("package"):
        parts.append(_package(step["package"], contract))
    rows = [("table", name, contract["host"][name]) for name in step.get("tables", ())]
    rows += [(way, name, contract["vectors"][name]) for way in ("given", "gives") for name in step.get(way, ())]
    if rows:
        body = [[way, _file(entry), _shape(entry), escape(entry["description"]), _look(entry, folder, name)] for way, name, entry in rows]
        parts.append(_table(["", "file", "shape", "holds", ""], body))
    if step.get("package"):
        parts.append(_window_vectors(step["package"], contract))
    return "".join(parts) + "</section>"


def _prose(text: str) -> str:
    """Escaped, with `names` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _package(name: str, contract: Contract) -> str:
    stage = contract["stages"][name]
    facts = (
        f"<p><code>{stage['package']}</code>, {stage['precision']}, compute units {escape(stage['compute_units'])}"
        f" ({escape(stage['compute_units_from'])}). Window W = {stage['window']} frames of {stage['frame_seconds'] * 1000:g} ms,"
        " context C ="
        f" {stage['context']}, {stage['join']}.</p>"
    )
    rows = [
        [way, f"<code>{tensor['name']}</code>", _shape(tensor), escape(tensor["meaning"])]
        for way, tensors in (("input", stage["inputs"]), ("output", stage["outputs"]))
        for tensor in tensors
    ]
    return facts + _table(["", "tensor", "shape, float32", "meaning"], rows) + _arranged(stage, contract)


def _arranged(stage: Mapping[str, Any], contract: Contract) -> str:
    """For a package whose tensors are not the stage's: what leads from these to those and back."""
    if stage["package_inputs"] is None:
        return ""
    rows = [
        [way, f"<code>{tensor['name']}</code>", _shape(tensor), f"<code>{tensor['source']}</code>", _steps(tensor["steps"])]
        for way, tensors in (("the package takes", stage["package_inputs"]), ("the stage gives", stage["package_outputs"]))
        for tensor in tensors
    ]
    kinds = {step["kind"] for side in ("package_inputs", "package_outputs") for tensor in stage[side] for step in tensor["steps"]}
    meanings = "".join(f"<li><code>{kind}</code> {_prose(text)}</li>" for kind, text in contract["arranging"].items() if kind in kinds)
    return (
        "<p>The package is laid out for the Neural Engine: its tensors are the ones above in another arrangement. Each is made of"
        " its source by steps in order; nothing is computed.</p>"
        + _table(["", "tensor", "shape, float32", "made of", "steps"], rows)
        + (f"<ul class='formulas'>{meanings}</ul>" if meanings else "")
    )


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    """`permute (0, 2, 1), reshape (1, 768, 1, 928)`."""
    return escape(", ".join(f"{step['kind']} ({', '.join(map(str, step['numbers']))})" for step in steps)) or "as it is"


def _window_vectors(name: str, contract: Contract) -> str:
    entries = [entry for vector, entry in contract["vectors"].items() if vector.startswith(f"{name}/")]
    windows = contract["example"]["windows"][name]
    places = "; ".join(
        f"{index}: frames {w['start']} to {w['start'] + w['valid']}, keeps {w['keep_from']} to {w['keep_to']}"
        for index, w in enumerate(windows)
    )
    rows = [[_file(entry), _shape(entry), escape(entry["description"])] for entry in entries]
    return (
        f"<details><summary>{len(rows)} vectors of the package itself, as it takes and gives them</summary><p>Windows of the"
        f" example: {places}.</p>" + _table(["file", "shape", "holds"], rows) + "</details>"
    )


def _look(entry: Mapping[str, Any], folder: Path, name: str) -> str:
    if entry["dtype"] != "float32" or int(np.prod(entry["shape"])) > 1 << 22:
        return ""
    values = np.fromfile(folder / entry["file"], "<f4").reshape(entry["shape"])
    over_frames = "(channels" in entry["description"] or name.startswith("fade_") or name in ("pitch_features", "pitch_prepared")
    return picture(values, time_last=over_frames)


def _swift(contract: Contract) -> str:
    units = {stage["compute_units"] for stage in contract["stages"].values()}
    chosen = ", ".join(f"{name} is .{SWIFT_UNITS[name]}" for name in sorted(units) if name in SWIFT_UNITS)
    loading = LOADING.replace("UNITS", SWIFT_UNITS.get(contract["stages"]["flow"]["compute_units"], "all"))
    return (
        "<h2 id='swift'>Swift</h2><p>Loading a package and giving it a vector. Not yet run on a Mac: take it as a sketch. Of the"
        " contract's compute"
        f" units, {chosen}. Inputs and outputs are float32 whatever the package computes in.</p><pre>{escape(loading)}</pre>"
        f"<p>Comparing with a golden vector:</p><pre>{escape(CHECKING)}</pre>"
    )


def _windows(contract: Contract) -> str:
    rows = []
    for name, plans in contract["windows"].items():
        for example in plans:
            listed = ", ".join(f"{w['start']}+{w['valid']} keeps {w['keep_from']}..{w['keep_to']}" for w in example["windows"])
            rows.append([escape(name), str(example["frames"]), listed])
    cuts = contract["segments"]
    segments = ", ".join(f"{start}..{stop}" for start, stop in zip(cuts["starts"], cuts["stops"], strict=True))
    return (
        "<h2 id='plans'>Window plans</h2><p>What the planning function gives for some lengths: start + valid frames, and the"
        " frames kept.</p>"
        + _table(["package", "frames", "windows"], rows)
        + f"<p>Segments of the filtered clip, {len(cuts['gains'])} times over with the contract's gains,"
        + f" in samples of the padded clip: {segments}.</p>"
    )


def _constants(contract: Contract) -> str:
    rows = [
        [f"<code>{escape(name)}</code>", f"<code>{escape(_number(entry['value']))}</code>", escape(entry["meaning"])]
        for name, entry in contract["constants"].items()
    ]
    return "<h2 id='constants'>Constants</h2>" + _table(["name", "value", "meaning"], rows)


def _number(value: Any) -> str:
    return ", ".join(repr(item) for item in value) if isinstance(value, list) else json.dumps(value)


def _files(contract: Contract) -> str:
    packages = [
        [f"<code>{stage['package']}</code>", f"<span class='hash'>{stage['sha256']}</span>"] for stage in contract["stages"].values()
    ]
    tables = [[_file(entry), f"<span class='hash'>{entry['sha256']}</span>"] for entry in contract["host"].values()]
    sources = [
        [escape(name), escape(source["file"]), f"<span class='hash'>{escape(source['sha256'])}</span>"]
        for name, source in contract["sources"].items()
    ]
    licences = [[escape(name), escape(text)] for name, text in contract["licences"]["packages"].items()]
    licences += [[escape(name), escape(text)] for name, text in contract["licences"].items() if isinstance(text, str)]
    tools = ", ".join(f"{escape(name)} {escape(str(version))}" for name, version in contract["made_by"].items())
    return (
        "<h2 id='files'>Files</h2><p>SHA-256 of a package is that of its files in the order of their names, each preceded by its"
        " path, a zero byte, its"
        " size in decimal and a zero byte. The vectors' are in the contract.</p>"
        + _table(["file", "SHA-256"], packages + tables)
        + "<p>Converted from:</p>"
        + _table(["part", "file", "SHA-256"], sources)
        + "<p>Licences:</p>"
        + _table(["part", "licence"], licences)
        + f"<p>Made with {tools}. Seed of the noise: {contract['example']['seed']}.</p>"
    )


def _file(entry: Mapping[str, Any]) -> str:
    return f"<code class='whole'>{entry['file']}</code>"


def _shape(entry: Mapping[str, Any]) -> str:
    kind = entry.get("dtype", "float32")
    return f"<span class='whole'>{' &times; '.join(map(str, entry['shape']))}{'' if kind == 'float32' else f' {kind}'}</span>"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _cell(cell: str) -> str:
    return f"<td class='look'>{cell}</td>" if cell.startswith(("<svg", "<img")) else f"<td>{cell}</td>"
