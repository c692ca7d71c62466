"""The project's own golden outputs: narrow networks of every kind with seeded weights, in golden_outputs/recorded.

    python tools/record_goldens.py              # check that today's networks give the recorded numbers
    python tools/record_goldens.py --record     # record them again; --reason TEXT where limits were loosened

Continuous integration runs the check: what changes a number of any stage fails it. golden_outputs/upstream holds
RVC-WebUI's own numbers for full-size networks; `--upstream` describes those files in a manifest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rvc_coreml.golden_outputs
from rvc_coreml.golden_outputs.golden import MANIFEST, Golden, GoldenSet
from rvc_coreml.golden_outputs.seeded_weights import seeded_tensor
from rvc_coreml.models import Hubert, HubertConfig, Synthesizer, VoiceConfig
from rvc_coreml.models.rmvpe import Rmvpe, RmvpeConfig
from rvc_coreml.models.stages import VOICE_STAGES, Stage, content_encoder_stage, pitch_stage, voice_stage
from rvc_coreml.runtime.files import sha256, write_json
from rvc_coreml.runtime.goldens import make_cases
from rvc_coreml.runtime.recording import threshold_changes, tool_versions
from torch import nn

FOLDER = Path(rvc_coreml.golden_outputs.__path__[0])
RECORDED, UPSTREAM = FOLDER / "recorded", FOLDER / "upstream"
SEED = 7
LEAST_SNR_DB = 100.0  # two float32 results of the same network; another processor or another order of sums costs no more
WINDOWS = {"content_encoder": 20, "text_encoder": 48, "flow": 48, "decoder": 20, "pitch": 32}  # frames: the files are in git
# Name -> version, rate in Hz, f0, kind of residual block.
VOICES = {
    "v2_40k": ("v2", 40000, True, "1"),
    "v1_32k": ("v1", 32000, True, "1"),
    "v2_48k_nof0": ("v2", 48000, False, "1"),
    "v2_32k_resblock2": ("v2", 32000, True, "2"),
}
RATES = {
    ("v2", 40000): ([10, 10, 2, 2], [16, 16, 4, 4]),
    ("v1", 32000): ([10, 4, 2, 2, 2], [16, 16, 4, 4, 4]),
    ("v2", 48000): ([12, 10, 2, 2], [24, 20, 4, 4]),
    ("v2", 32000): ([10, 8, 2, 2], [20, 16, 4, 4]),
}  # upsampling factors and kernels, as RVC-WebUI's configs have them
PHONE_CHANNELS = {"v1": 16, "v2": 24}  # of 256 and 768
LAYERS = 12  # as many as HuBERT-base, so that layer 9 and layer 12 differ here too


def networks() -> Iterator[tuple[str, nn.Module, dict[str, Stage]]]:
    """(name, network with seeded weights, stages by name) for every kind of network."""
    narrow = HubertConfig(conv_channels=(16,) * 7, hidden=24, layers=LAYERS, heads=2, feed_forward=32, position_kernel=16)
    hubert = _seeded(Hubert(replace(narrow, position_groups=4, projection=12)))
    yield "content_encoder", hubert, {"content_encoder": content_encoder_stage(hubert, WINDOWS["content_encoder"])}
    for seed, (name, (version, rate, f0, block)) in enumerate(VOICES.items(), SEED):
        voice = _seeded(Synthesizer(_voice_config(version, rate, block), PHONE_CHANNELS[version], f0), seed)
        yield name, voice, {stage: voice_stage(stage, voice, WINDOWS[stage]) for stage in VOICE_STAGES}
    rmvpe = _seeded(Rmvpe(RmvpeConfig(base=2, levels=2, blocks=2, intermediate=1, hidden=8, end_channels=2)))
    yield "rmvpe", rmvpe, {"pitch": pitch_stage(rmvpe, WINDOWS["pitch"])}


def recorded_today(only: Collection[str] | None = None) -> dict[str, list[Golden]]:
    """Set name (network and stage) -> its cases, computed now; of all networks or those in `only`."""
    sets: dict[str, list[Golden]] = {}
    for name, network, stages in networks():
        if only is not None and name not in only:
            continue
        for golden in make_cases(network, stages):
            sets.setdefault(name if name == golden.what else f"{name}_{golden.what}", []).append(golden)
    return sets


def differences(folder: Path = RECORDED, only: Collection[str] | None = None) -> list[str]:
    """A sentence for every recorded number that today's networks do not give, naming network and stage, case and tensor.

    Raises LibraryError where the recordings are damaged.
    """
    found = GoldenSet.load(folder).sets
    today = {name: {golden.case: golden for golden in goldens} for name, goldens in recorded_today(only).items()}
    problems = [f"{name} is not recorded" for name in sorted(set(today) - set(found))]
    if only is None:
        problems += [f"{name} is recorded and no longer made" for name in sorted(set(found) - set(today))]
    for name in sorted(set(today) & set(found)):
        if list(today[name]) != list(found[name]):
            problems.append(f"{name} has the cases {', '.join(today[name])} and not {', '.join(found[name])}")
            continue
        for case, golden in found[name].items():
            problems += [f"{name}, {case}: {problem}" for problem in _differs(golden, today[name][case])]
    return problems


def record(reason: str | None = None, folder: Path = RECORDED) -> None:
    """Write the recordings; an older folder is replaced. Raises UsageError where loosened limits lack a reason."""
    changes = threshold_changes(folder, reason)
    fresh, aside = folder.with_name(".recorded-new"), folder.with_name(".recorded-old")
    for left in (fresh, aside):
        shutil.rmtree(left, ignore_errors=True)
    GoldenSet.of(recorded_today(), tool_versions(), changes=changes).save(fresh)
    if folder.exists():
        folder.rename(aside)
    fresh.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def upstream_manifest(folder: Path = UPSTREAM) -> dict[str, Any]:
    """What upstream's files hold, with their hashes. The values are upstream's; this project only describes them."""
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".npz", ".index", ".json") or path.name == MANIFEST:
            continue
        files[path.name] = {"sha256": sha256(path)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                files[path.name]["tensors"] = {
                    name: {"shape": list(arrays[name].shape), "dtype": str(arrays[name].dtype)} for name in arrays.files
                }
                files[path.name]["seed"] = int(arrays["seed"]) if "seed" in arrays.files else None
    tools = {"RVC-WebUI": "branch 20240604", "HubertModel": "transformers"}
    return {"format_version": 1, "producer": "upstream", "tools": tools, "weights": "golden_outputs/seeded_weights.py", "files": files}


def _differs(recorded: Golden, today: Golden) -> Iterator[str]:
    for name, wanted in recorded.inputs.items():
        got = today.inputs.get(name)
        if got is None or got.shape != wanted.shape:
            yield f"the input {name} has another shape"
        elif _input_snr_db(wanted, got) < LEAST_SNR_DB:
            yield f"the input {name} has {_input_snr_db(wanted, got):.1f} dB of the recorded one ({LEAST_SNR_DB:.0f} are asked for)"
    try:
        compared = recorded.compare(today.outputs, audio=False, heard=False)
    except ValueError as error:
        yield str(error)
        return
    for name, comparison in compared.items():
        if not comparison.snr_db >= LEAST_SNR_DB:
            yield f"the output {name} has {comparison.snr_db:.1f} dB of the recorded one ({LEAST_SNR_DB:.0f} are asked for)"


def _input_snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Inputs may be constant, so no mean is removed."""
    error = float(np.sum((wanted.astype(np.float64) - got) ** 2))
    signal = float(np.sum(wanted.astype(np.float64) ** 2))
    return np.inf if error == 0 else 10 * float(np.log10(signal / error)) if signal > 0 and np.isfinite(error) else -np.inf


def _voice_config(version: str, rate: int, block: str) -> VoiceConfig:
    factors, kernels = RATES[version, rate]
    dilations = [[1, 3, 5]] * 3 if block == "1" else [[1, 3]] * 3
    widths = [513, 32, 16, 16, 32, 2, 2, 3, 0, block, [3, 7, 11], dilations, factors, 2 << len(factors), kernels, 3, 8, rate]
    return VoiceConfig.from_list(widths)


def _seeded(network: nn.Module, seed: int = SEED) -> Any:
    """A network with seeded weights in place of its own, by the names they have once weight norm is folded."""
    state = {name: seeded_tensor(name, tuple(value.shape), seed).to(value.dtype) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record again")
    parser.add_argument("--reason", help="why limits are looser than the recorded ones")
    parser.add_argument("--upstream", action="store_true", help="describe golden_outputs/upstream in its manifest")
    arguments = parser.parse_args()
    if arguments.upstream:
        write_json(UPSTREAM / MANIFEST, upstream_manifest())
    elif arguments.record:
        record(arguments.reason)
    else:
        problems = differences()
        print("\n".join(problems) or "today's networks give the recorded numbers")
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
