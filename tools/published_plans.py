"""Compute plans that others have published, against what the linter says of the same operations: rule by rule, with the disagreements.

    python tools/published_plans.py            # prints them
    python tools/published_plans.py --write    # writes docs/published_plans.md

A plan gives the number of operations of each type that Core ML placed on the Neural Engine. The HiFi-GAN is built in torch with the
published widths and converted; of WhisperKit's models and the speech transformer the operations that the sources describe are built
one by one. The rules are not fitted to these plans: where they disagree, that is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.converters.placement import RULES, Assessment, assess_package
from rvc_coreml.converters.quiet import quiet
from rvc_coreml.coremltools_import import ct
from torch import Tensor, nn
from torch.nn import functional as F

DOCUMENT = Path(__file__).parent.parent / "docs" / "published_plans.md"
_mil: Any = ct.converters.mil  # no part of its interface
mb, types = _mil.Builder, _mil.mil.types
EMPTY: Any = ct.PassPipeline.EMPTY
FRAMES, MELS, CHANNELS = 262, 80, 512
RATES, KERNELS = (8, 8, 2, 2), (16, 16, 4, 4)
BLOCK_KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)
SLOPE = 0.1


@dataclass(frozen=True)
class Plan:
    """`placed`: operation type -> how many the plan has on the Neural Engine, and how many there are."""

    name: str
    chip: str
    source: str
    placed: Mapping[str, tuple[int, int]]
    assess: Callable[[str], Assessment]
    comments: Mapping[str, str]

    @property
    def short(self) -> str:
        return (
            self.name.split(", ")[0]
            if self.name.startswith("HiFi")
            else self.name.split(", ")[-1]
            if "Whisper" in self.name
            else "transformer"
        )


@dataclass(frozen=True)
class Row:
    """One operation type: measured and predicted on the Neural Engine, and for each operation the rules that blocked it."""

    operation: str
    measured: int
    blocking: tuple[frozenset[str], ...]
    unproven: dict[str, int]
    comment: str = ""

    @property
    def total(self) -> int:
        return len(self.blocking)

    @property
    def predicted(self) -> int:
        return sum(not rules for rules in self.blocking)

    @property
    def agrees(self) -> bool:
        return self.measured == self.predicted

    @property
    def rules(self) -> dict[str, int]:
        """How many operations each rule blocked."""
        return dict(sorted(Counter(rule for rules in self.blocking for rule in rules).items()))

    @property
    def stricter(self) -> set[str]:
        """Rules that block what the plan has on the Neural Engine: those beside the one that explains most of what it has elsewhere."""
        if self.predicted >= self.measured:
            return set()
        fitting = {rule: count for rule, count in self.rules.items() if count <= self.total - self.measured}
        explains = max(fitting, key=lambda rule: fitting[rule], default="")
        return {rule for rules in self.blocking if explains not in rules for rule in rules}


class _Block(nn.Module):
    """(1, C, T) -> (1, C, T)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel // 2)) for d in DILATIONS)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = second(F.leaky_relu(first(F.leaky_relu(x, SLOPE)), SLOPE)) + x
        return x


class HifiGan(nn.Module):
    """HiFi-GAN's generator, first configuration: (1, 80, T) mel to (1, 1, 256 T) audio. Its weights do not matter here."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        widths = [channels >> level for level in range(len(RATES) + 1)]
        self.conv_pre = nn.Conv1d(MELS, channels, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, rate, padding=(kernel - rate) // 2)
            for i, (rate, kernel) in enumerate(zip(RATES, KERNELS, strict=True))
        )
        self.blocks = nn.ModuleList(_Block(width, kernel) for width in widths[1:] for kernel in BLOCK_KERNELS)
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x: Tensor = self.conv_pre(mel)
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = self.blocks[level * len(BLOCK_KERNELS) : (level + 1) * len(BLOCK_KERNELS)]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / len(BLOCK_KERNELS)
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


def hifigan(chip: str, channels: int = CHANNELS) -> Assessment:
    """Traced and converted in half precision, as its authors did."""
    traced = torch.jit.trace(HifiGan(channels).eval(), (torch.zeros(1, MELS, FRAMES),))
    with quiet():
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(name="mel", shape=(1, MELS, FRAMES))],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,
        )
    return _assessed(model, chip)


def _program(build: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    specs = [mb.TensorSpec(shape=shape, dtype=types.fp16) for shape in shapes]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS17)(build)
    with quiet():
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=EMPTY,
            skip_model_load=True,
        )


def _assessed(model: Any, chip: str) -> Assessment:
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        return assess_package(path, chip)["main"]


def _half(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)


def whisper_encoder(chip: str) -> Assessment:
    """The front end and the norms of the medium AudioEncoder: (1, 80, 1, 3000) to (1, 1024, 1, 1500), narrower in channels."""

    def build(x: Any) -> Any:
        x = mb.gelu(x=mb.conv(x=x, weight=_half(64, 80, 1, 3), pad_type="custom", pad=[0, 0, 1, 1]))
        x = mb.gelu(x=mb.conv(x=x, weight=_half(64, 64, 1, 3), strides=[1, 2], pad_type="custom", pad=[0, 0, 1, 1]))
        x = mb.layer_norm(x=x, axes=[1], epsilon=np.float16(1e-5))
        return mb.batch_norm(x=x, mean=_half(64), variance=np.ones(64, np.float16))

    return _assessed(_program(build, (1, 80, 1, 3000)), chip)


def whisper_mel(chip: str) -> Assessment:
    """MelSpectrogram: 480,000 samples padded by 200 on either side, windows of 400 every 160 as two convolutions."""

    def build(x: Any) -> Any:
        x = mb.pad(x=x, pad=[0, 0, 0, 0, 200, 200], mode="reflect")
        real = mb.conv(x=x, weight=_half(201, 1, 400), strides=[160])
        imaginary = mb.conv(x=x, weight=_half(201, 1, 400), strides=[160])
        return real, imaginary

    return _assessed(_program(build, (1, 1, 480_000)), chip)


def whisper_decoder(chip: str) -> Assessment:
    """The TextDecoder's embedding: one row of (51865, width), narrower here."""

    def build(x: Any) -> Any:
        return mb.gather(x=_half(51865, 8), indices=mb.cast(x=x, dtype="int32"), axis=0)

    return _assessed(_program(build, (1,)), chip)


def transformer(chip: str) -> Assessment:
    """One operation of each type of the speech transformer's decoder at its length and width: (1, 262, 256), four heads."""

    def build(x: Any) -> Any:
        x = mb.linear(x=x, weight=_half(256, 256))
        x = mb.transpose(x=mb.reshape(x=x, shape=[1, 262, 4, 64]), perm=[0, 2, 1, 3])
        scores = mb.softmax(x=mb.mul(x=mb.matmul(x=x, y=x, transpose_y=True), y=np.float16(0.125)), axis=-1)
        x = mb.reshape(x=mb.transpose(x=mb.matmul(x=scores, y=x), perm=[0, 2, 1, 3]), shape=[1, 262, 256])
        x = mb.relu(x=mb.layer_norm(x=mb.add(x=x, y=x), axes=[-1], epsilon=np.float16(1e-5)))
        x = mb.concat(values=[x, x], axis=2)
        x = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, 262, 256])
        x = mb.conv(x=mb.transpose(x=x, perm=[0, 2, 1]), weight=_half(256, 256, 5), pad_type="same")
        x = mb.tanh(x=mb.batch_norm(x=x, mean=_half(256), variance=np.ones(256, np.float16)))
        chosen = mb.greater_equal(x=x, y=np.float16(0))
        x = mb.select(cond=chosen, a=x, b=_half(1, 256, 262))
        return mb.gather(x=x, indices=np.array([0], np.int32), axis=2)

    return _assessed(_program(build, (1, 262, 256)), chip)


AUDIO = "coreml-audio-research, docs/2026-05-19/mlcomputeplan-dispatch-map.md: iPhone 13, CPU_AND_NE"
WHISPER = "WhisperKit's published compute plans (coreml_ane.md, addenda)"
PLANS = (
    Plan(
        "HiFi-GAN, 262 frames, half precision",
        "a15",
        AUDIO,
        {"conv": (17, 74), "leaky_relu": (18, 69), "add": (44, 44), "conv_transpose": (1, 4), "mul": (1, 4), "tanh": (0, 1)},
        hifigan,
        {
            "conv": "which two of the 19 with axes within the cap the plan leaves to the CPU is not published",
            "add": "D1-add is strict on purpose: the plan has all of them there, and this model comes out four times too loud",
            "conv_transpose": "the first one, 16 taps at stride 8, is on the Neural Engine of an A15: D4 is stricter than that device",
        },
    ),
    Plan(
        "Speech transformer's decoder, one operation of each type",
        "a15",
        AUDIO,
        {
            "linear": (1, 1),
            "reshape": (2, 2),
            "transpose": (3, 3),
            "matmul": (2, 2),
            "mul": (1, 1),
            "softmax": (1, 1),
            "add": (1, 1),
            "layer_norm": (1, 1),
            "relu": (1, 1),
            "concat": (1, 1),
            "slice_by_index": (1, 1),
            "conv": (1, 1),
            "batch_norm": (1, 1),
            "tanh": (1, 1),
            "greater_equal": (0, 1),
            "select": (0, 1),
            "gather": (0, 1),
        },
        transformer,
        {},
    ),
    Plan(
        "WhisperKit medium, AudioEncoder",
        "m1",
        WHISPER,
        {"conv": (2, 2), "gelu": (2, 2), "layer_norm": (1, 1), "batch_norm": (1, 1)},
        whisper_encoder,
        {},
    ),
    Plan("WhisperKit, TextDecoder's embedding", "m1", WHISPER, {"gather": (0, 1)}, whisper_decoder, {}),
    Plan("WhisperKit, MelSpectrogram", "m1", WHISPER, {"pad": (0, 1), "conv": (0, 2)}, whisper_mel, {}),
)


def compare(plan: Plan, assessment: Assessment) -> list[Row]:
    """One row for each operation type of the plan. Raises ValueError where the network has another number of them."""
    rows = []
    for kind, (measured, total) in plan.placed.items():
        found = [operation for operation in assessment.counted if operation.type == kind]
        if len(found) != total:
            raise ValueError(f"{plan.name}: the plan has {total} {kind} and the network here {len(found)}")
        blocking = tuple(frozenset(finding.rule for finding in operation.blocking) for operation in found)
        unproven = Counter(rule for operation in found for rule in {f.rule for f in operation.unproven if f.severity == "off-ane"})
        rows.append(Row(kind, measured, blocking, dict(sorted(unproven.items())), plan.comments.get(kind, "")))
    return rows


def report(plans: Mapping[str, list[Row]]) -> str:
    """Markdown: a table for each plan, and every rule that took part with where it agrees and where not."""
    lines = []
    for plan in PLANS:
        rows = plans[plan.name]
        lines += [f"## {plan.name}", "", f"Chip {plan.chip}. {plan.source}.", ""]
        lines += [
            "| operation | on the Neural Engine | predicted | of | blocked by | unproven | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            mark = "" if row.agrees else f"does not agree: {row.comment}" if row.comment else "does not agree"
            lines.append(
                f"| `{row.operation}` | {row.measured} | {row.predicted} | {row.total} | {_shown(row.rules)} | {_shown(row.unproven)} "
                f"| {mark or row.comment} |"
            )
        lines.append("")
    lines += ["## Rule by rule", "", "| rule | operations it blocked | what the plans say |", "| --- | --- | --- |"]
    for name in RULES:
        found = [(plan, row) for plan in PLANS for row in plans[plan.name] if name in row.rules]
        if found:
            blocked = "; ".join(f"{row.rules[name]} of {row.total} `{row.operation}` ({plan.short})" for plan, row in found)
            wrong = [f"`{row.operation}` ({plan.short})" for plan, row in found if name in row.stricter]
            lines.append(f"| `{name}` | {blocked} | {'reproduced' if not wrong else 'stricter than the plan for ' + ', '.join(wrong)} |")
    more = [(plan, row) for plan in PLANS for row in plans[plan.name] if row.predicted > row.measured]
    lines += ["", "Kept off the Neural Engine in a plan, and by no rule here:", ""]
    lines += [
        f"- {row.predicted - row.measured} `{row.operation}` ({plan.short}): {row.comment or 'no reason is known'}" for plan, row in more
    ]
    return "\n".join(lines) + "\n"


def _shown(rules: Mapping[str, int]) -> str:
    return ", ".join(f"`{name}` {count}" for name, count in rules.items())


_HEAD = """# Published plans

Written by `python tools/published_plans.py --write`: compute plans that others measured on devices, beside what the placement
linter says of the same operations. The rules come from the facts of each source and were not fitted to these tables.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the linter with published compute plans.")
    parser.add_argument("--write", action="store_true", help="write docs/published_plans.md")
    options = parser.parse_args()
    text = report({plan.name: compare(plan, plan.assess(plan.chip)) for plan in PLANS})
    if options.write:
        DOCUMENT.write_text(_HEAD + text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
