"""A conversion with a bundle's files and numpy alone, written from its contract.json; packages run through `rvc-coreml run`.

    python bundle_program.py BUNDLE OUT.f32

Converts the bundle's clip, compares every step with its golden vectors, and prints the figures as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[Path, Path, Path], None]


def run_command(package: Path, inputs: Path, outputs: Path) -> None:
    command = [sys.executable, "-m", "rvc_coreml", "run", str(package), str(inputs), "-o", str(outputs), "--backend", "reference"]
    subprocess.run(command, check=True, capture_output=True)


def snr(reference: np.ndarray, actual: np.ndarray) -> float:
    """dB: the reference without its mean over the error with its own; 999 where there is none."""
    assert reference.shape == actual.shape, (reference.shape, actual.shape)
    r, a = reference.astype(np.float64), actual.astype(np.float64)
    signal, error = np.sum((r - r.mean()) ** 2), np.sum((a - r) ** 2)
    return 999.0 if error == 0 else float(10 * np.log10(signal / error)) if signal else -999.0


class Program:
    def __init__(self, folder: Path, run: Run = run_command) -> None:
        self.folder, self.run = folder, run
        self.contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        assert self.contract["schema_version"] == 2
        self.k = {name: entry["value"] for name, entry in self.contract["constants"].items()}
        self.steps = [step["id"] for step in self.contract["steps"]]
        self.figures: dict[str, float] = {}
        self.calls = 0

    def table(self, name: str) -> np.ndarray:
        return self._read(self.contract["host"][name])

    def vector(self, name: str) -> np.ndarray:
        return self._read(self.contract["vectors"][name])

    def _read(self, entry: dict) -> np.ndarray:
        return np.fromfile(self.folder / entry["file"], {"float32": "<f4", "int32": "<i4"}[entry["dtype"]]).reshape(entry["shape"])

    def check(self, name: str, actual: np.ndarray) -> None:
        self.figures[name] = snr(self.vector(name), np.asarray(actual))

    # -- windows ------------------------------------------------------------------------------------------------------

    def plan(self, first: int, last: int, stage: str) -> list[dict]:
        size, context = self.contract["stages"][stage]["window"], self.contract["stages"][stage]["context"]
        if last - first <= size:
            return [{"start": first, "valid": last - first, "keep_from": first, "keep_to": last}]
        windows, keep, start = [], first, first
        while True:
            start = min(start, last - size)
            end = start + size == last
            to = last if end else start + size - context
            windows.append({"start": start, "valid": size, "keep_from": keep, "keep_to": to})
            if end:
                return windows
            keep = to
            start = keep - context

    def fades(self, windows: list[dict]) -> np.ndarray:
        """(windows, frames)"""
        first, last = windows[0]["start"], windows[-1]["start"] + windows[-1]["valid"]
        middle = np.arange(first, last) + 0.5

        def half(left: dict, right: dict) -> int:
            seen = int(self.k["fade_share"] * min(left["start"] + left["valid"] - left["keep_to"], right["keep_from"] - right["start"]))
            return min(seen, *((w["keep_to"] - w["keep_from"]) // 2 for w in (left, right)))

        def ramp(seam: int, size: int) -> np.ndarray:
            return np.clip((middle - seam) / (2 * size) + 0.5, 0, 1) if size else (middle > seam).astype(float)

        halves = [half(left, right) for left, right in pairwise(windows)]
        weights = []
        for index, window in enumerate(windows):
            weight = ((middle > window["start"]) & (middle < window["start"] + window["valid"])).astype(float)
            if index:
                weight *= ramp(window["keep_from"], halves[index - 1])
            if index < len(halves):
                weight *= 1 - ramp(window["keep_to"], halves[index])
            weights.append(weight)
        return np.array(weights, np.float32)

    def package(self, stage: str, given: Arrays, valid: int) -> Arrays:
        """Inputs padded with zeros to the contract's shapes, and the mask."""
        entry = self.contract["stages"][stage]
        inputs = {}
        for tensor in entry["inputs"]:
            shape = tensor["shape"]
            if tensor["name"] == "mask":
                value = (np.arange(entry["window"]) < valid).astype(np.float32)
            else:
                value = given[tensor["name"]]
                axes = [axis for axis, size in enumerate(shape) if size > 1 or len(shape) == value.ndim]
                value = value.reshape([value.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))])
                value = np.pad(value, [(0, want - have) for want, have in zip(shape, value.shape, strict=True)])
            inputs[tensor["name"]] = np.ascontiguousarray(value.reshape(shape), np.float32)
        return self.execute(stage, inputs)

    def arranged(self, tensors: list[dict], values: Arrays) -> Arrays:
        """Tensors made of others by the contract's steps."""
        found = {}
        for tensor in tensors:
            value = values[tensor["source"]]
            for step in tensor["steps"]:
                value = self.rearranged(value, step["kind"], step["numbers"])
            assert list(value.shape) == tensor["shape"], (tensor["name"], value.shape)
            found[tensor["name"]] = np.ascontiguousarray(value)
        return found

    @staticmethod
    def rearranged(value: np.ndarray, kind: str, numbers: list[int]) -> np.ndarray:
        if kind == "reshape":
            return value.reshape(numbers)
        if kind == "permute":
            return value.transpose(numbers)
        axis, *rest = numbers
        axis %= value.ndim
        if kind == "pad":
            return np.pad(value, [tuple(rest) if place == axis else (0, 0) for place in range(value.ndim)])
        if kind == "cut":
            return np.take(value, range(*rest), axis)
        if kind == "repeat":
            return np.repeat(value, rest[0], axis)
        assert kind == "windows"
        size, stride = rest
        rows = [np.take(value, range(start, start + size), axis) for start in range(0, value.shape[axis] - size + 1, stride)]
        return np.stack(rows, axis)

    def execute(self, stage: str, inputs: Arrays) -> Arrays:
        entry = self.contract["stages"][stage]
        if entry["package_inputs"] is None:
            return self.run_package(stage, inputs, [tensor["name"] for tensor in entry["outputs"]])
        names = list(dict.fromkeys(tensor["source"] for tensor in entry["package_outputs"]))
        found = self.run_package(stage, self.arranged(entry["package_inputs"], inputs), names)
        return self.arranged(entry["package_outputs"], found)

    def run_package(self, stage: str, inputs: Arrays, names: list[str]) -> Arrays:
        entry = self.contract["stages"][stage]
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(source, **inputs)
            self.run(self.folder / entry["package"], source, target)
            self.calls += 1
            with np.load(target) as found:
                return {name: found[name] for name in names}

    # -- the way in ---------------------------------------------------------------------------------------------------

    def high_pass(self, x: np.ndarray) -> np.ndarray:
        x = np.float64(x / np.float32(max(1.0, float(np.abs(x).max()) / self.k["input_peak"])))
        b, a = self.k["high_pass_b"], self.k["high_pass_a"]
        p = min(self.k["high_pass_padding"], len(x) - 1)
        extended = np.concatenate([2 * x[0] - x[p:0:-1], x, 2 * x[-1] - x[-2 : -2 - p : -1]])

        def once(u: np.ndarray) -> np.ndarray:
            out, s = np.empty_like(u), [0.0] * 5
            for n, value in enumerate((u - u[0]).tolist()):
                y = b[0] * value + s[0]
                s = [b[i + 1] * value + s[i + 1] - a[i + 1] * y for i in range(4)] + [b[5] * value - a[5] * y]
                out[n] = y
            return out

        return once(once(extended)[::-1])[::-1][p : p + len(x)].astype(np.float32)

    def segments(self, x: np.ndarray) -> tuple[list[int], list[int]]:
        k, size, cuts = self.k, len(x), []
        if size + k["hop"] > k["longest"]:
            for center in range(k["center"], size, k["center"]):
                first, last = center - k["query"], min(center + k["query"], size)
                places = np.abs(np.arange(first - 80, last + 79))
                places = np.where(places >= size, 2 * (size - 1) - places, places)
                windows = np.lib.stride_tricks.sliding_window_view(np.abs(x[places].astype(np.float64)), k["hop"])
                cuts.append((first + int(np.argmin(np.cumsum(windows, axis=1)[:, -1]))) // k["hop"] * k["hop"])
        starts = [0, *cuts]
        return starts, [cut + 2 * k["pad"] + k["hop"] for cut in cuts] + [size + 2 * k["pad"]]

    def normalise(self, x: np.ndarray) -> Arrays:
        k, weight = self.k, self.table("content_weight").astype(np.float64)
        offset = float(np.mean(x, dtype=np.float64))
        peak = float(np.abs(x - np.float32(offset)).max())
        gain = min(1 / peak, k["max_gain"]) if peak else 1.0
        size, step = k["content_kernel"], k["content_stride"]
        patches = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), size)[::step]
        mean = patches.mean(0)
        spread = (patches - mean).T @ (patches - mean) / len(patches)
        means, variances = weight @ mean, np.maximum(0, np.einsum("ck,kl,cl->c", weight, spread, weight))
        factor = self.table("content_gamma") / np.sqrt(variances + k["content_eps"])
        shift = self.table("content_beta") - (means - offset * weight.sum(1)) * factor
        return {
            "norm_values": np.array([offset, gain]),
            "norm_mean": means,
            "norm_variance": variances,
            "norm_scale": factor / gain,
            "norm_shift": shift,
            "normalised": (x - np.float32(offset)) * np.float32(gain),
        }

    # -- pitch --------------------------------------------------------------------------------------------------------

    def log_mel(self, x: np.ndarray) -> np.ndarray:
        k = self.k
        size, frames = k["mel_window"], len(x) // k["hop"] + 1
        padded = np.pad(x, k["mel_pad"], mode="reflect")
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        power = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, size)[:: k["hop"]] * window)) ** 2
        mel = np.log(np.maximum(np.sqrt(power + k["magnitude_floor"]) @ self.table("mel_filters").T, k["log_floor"])).T
        return np.concatenate([mel, mel[:, -1:]], axis=1)[:, :frames]

    def estimate(self, padded: np.ndarray) -> np.ndarray:
        if "pitch" not in self.contract["stages"]:
            return self.vector("pitch_estimate")  # any estimator's, given
        kind = self.contract["voice"]["pitch_estimator"]
        return {"rmvpe": self.rmvpe, "fcpe": self.fcpe, "crepe": self.crepe, "crepe-tiny": self.crepe, "swiftf0": self.swiftf0}[kind](
            padded
        )

    def body(self, features: np.ndarray, frames: int, axis: int, **more: np.ndarray) -> np.ndarray:
        """(frames, width) of the pitch package."""
        parts = []
        for w in self.plan(0, frames, "pitch"):
            part = np.take(features, np.arange(w["start"], w["start"] + w["valid"]), axis=axis)
            (found,) = self.package("pitch", {"features": part, **more}, w["valid"]).values()
            parts.append(found[0, w["keep_from"] - w["start"] : w["keep_to"] - w["start"]])
        return np.concatenate(parts)

    def rmvpe(self, padded: np.ndarray) -> np.ndarray:
        k = self.k
        features = self.log_mel(padded)
        frames = features.shape[1]
        self.check("pitch_features", features)
        prepared = k["norm_weight"] * np.pad(features, ((0, 0), (0, -frames % k["pitch_unit"]))) + k["norm_bias"]
        self.check("pitch_prepared", prepared)
        hidden = self.body(prepared, prepared.shape[1], 1)
        self.check("pitch_hidden", hidden)
        self.check("pitch_salience", self.recurrent(self.vector("pitch_hidden"))[:frames])
        self.check("pitch_estimate", self.local_mean(self.vector("pitch_salience")))
        return self.local_mean(self.recurrent(hidden)[:frames])

    def recurrent(self, x: np.ndarray) -> np.ndarray:
        def sigmoid(value: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-value))

        states = []
        for way in ("forward", "backward"):
            w_in, b_in, w_past, b_past = (self.table(f"gru_{way}_{part}") for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
            order = range(len(x)) if way == "forward" else range(len(x) - 1, -1, -1)
            h, out = np.zeros(w_past.shape[1]), np.empty((len(x), w_past.shape[1]))
            inputs = x @ w_in.T.astype(np.float64) + b_in
            for t in order:
                i_r, i_z, i_n = np.split(inputs[t], 3)
                j_r, j_z, j_n = np.split(w_past @ h + b_past, 3)
                z = sigmoid(i_z + j_z)
                h = (1 - z) * np.tanh(i_n + sigmoid(i_r + j_r) * j_n) + z * h
                out[t] = h
            states.append(out)
        return sigmoid(np.concatenate(states, axis=1) @ self.table("classes_weight").T + self.table("classes_bias"))

    def local_mean(self, salience: np.ndarray) -> np.ndarray:
        k, out = self.k, np.zeros(len(salience))
        for t, s in enumerate(salience.astype(np.float64)):
            c = int(np.argmax(s))
            near = np.arange(max(0, c - k["decoded_bins"]), min(len(s), c + k["decoded_bins"] + 1))
            if s[c] > k["pitch_threshold"]:
                out[t] = 10 * 2 ** (np.sum(s[near] * (k["cents_step"] * near + k["cents_offset"])) / np.sum(s[near]) / 1200)
        return out

    def fcpe(self, padded: np.ndarray) -> np.ndarray:
        k = self.k
        features = self.log_mel(padded)
        self.check("pitch_features", features)

        def statistics(mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            weight = self.table("first_weight").astype(np.float64)
            around = np.pad(mel, ((0, 0), (1, 1)))
            out = sum(weight[:, :, i] @ around[:, i : i + mel.shape[1]] for i in range(3)) + self.table("first_bias")[:, None]
            groups = out.reshape(k["norm_groups"], -1)
            deviation = np.repeat(np.sqrt(groups.var(1) + k["norm_eps"]), len(out) // k["norm_groups"])
            scale = self.table("group_gamma") / deviation
            return scale, self.table("group_beta") - np.repeat(groups.mean(1), len(out) // k["norm_groups"]) * scale

        for name, found in zip(("pitch_norm_scale", "pitch_norm_shift"), statistics(self.vector("pitch_features")), strict=True):
            self.check(name, found)
        scale, shift = statistics(features)
        salience = self.body(features, features.shape[1], 1, norm_scale=scale, norm_shift=shift)
        self.check("pitch_salience", salience)

        def hertz(salience: np.ndarray) -> np.ndarray:
            c, cents = np.argmax(salience, axis=1), self.table("cents").astype(np.float64)
            near = np.clip(c[:, None] + np.arange(-k["decoded_bins"], k["decoded_bins"] + 1), 0, salience.shape[1] - 1)
            s = np.take_along_axis(salience, near, axis=1)
            return np.where(salience.max(1) > k["pitch_threshold"], 10 * 2 ** ((s * cents[near]).sum(1) / s.sum(1) / 1200), 0)

        self.check("pitch_estimate", hertz(self.vector("pitch_salience")))
        return hertz(salience)

    def crepe(self, padded: np.ndarray) -> np.ndarray:
        k = self.k
        size = k["pitch_window"]
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, size // 2), size)[:: k["hop"]][: len(padded) // k["hop"] + 1]
        frames = frames - frames.mean(1, keepdims=True)
        frames = frames / np.maximum(frames.std(1, ddof=1, keepdims=True), k["least_deviation"])
        self.check("pitch_features", frames)
        salience = self.body(frames, len(frames), 0)
        self.check("pitch_salience", salience)
        given = self.vector("pitch_salience")
        path = self.path(given)
        self.check("pitch_path", path)
        for name, found in zip(("pitch_refined", "pitch_periodicity", "pitch_estimate"), self.refined(given, path), strict=True):
            self.check(name, found)
        return self.refined(salience, self.path(salience))[2]

    def swiftf0(self, padded: np.ndarray) -> np.ndarray:
        k, classes = self.k, self.k["pitch_classes"]
        hop, count = k["pitch_hop"], max(1, len(padded) // k["pitch_hop"])
        spectra = []
        for index in (1, 2, 3):
            size = k[f"pitch_windows_{index}"]
            window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
            frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, (size // 2, size + hop)), size)[::hop][:count]
            spectra.append(np.log(np.abs(np.fft.rfft(frames * window)) @ self.table(f"bands_{index}") + k["log_floor"]).T)
        self.check("pitch_features", np.stack(spectra))

        def salience(scores: np.ndarray) -> np.ndarray:
            odds = np.exp(scores.astype(np.float64))
            return np.concatenate(
                [odds[:, :classes] / odds[:, :classes].sum(1, keepdims=True), odds[:, classes:] / (1 + odds[:, classes:])], 1
            )

        def own(p: np.ndarray) -> np.ndarray:
            hertz, out = self.table("class_hertz").astype(np.float64), np.zeros(count)
            allowed = (hertz >= k["f0_min"]) & (hertz <= k["f0_max"])
            for t in range(count):
                c = int(np.argmax(p[t, :classes]))
                near = [i for i in (c - 1, c, c + 1) if 0 <= i < classes and allowed[i]]
                heard = np.abs(padded[t * hop : (t + 1) * hop]).max() >= k["silence_peak"]
                if allowed[c] and heard and p[t, classes] >= k["pitch_threshold"]:
                    out[t] = np.exp(np.sum(p[t, near] * np.log(hertz[near])) / np.sum(p[t, near]))
            return out

        def ten_ms(f: np.ndarray) -> np.ndarray:
            out = np.zeros(len(padded) // k["hop"] + 1)
            for n in range(len(out)):
                x = min(k["hop"] * n / hop, count - 1)
                a = int(x)
                b, w = min(a + 1, count - 1), x - a
                joined = min(f[a], f[b]) > 0 and max(f[a], f[b]) < k["joined_ratio"] * min(f[a], f[b])
                out[n] = f[a] ** (1 - w) * f[b] ** w if joined else f[a] if w <= 0.5 else f[b]
            return out

        scores = self.body(np.stack(spectra), count, 2)
        self.check("pitch_hidden", scores)
        self.check("pitch_salience", salience(self.vector("pitch_hidden")))
        self.check("pitch_frames", own(self.vector("pitch_salience")))
        self.check("pitch_estimate", ten_ms(self.vector("pitch_frames").astype(np.float64)))
        return ten_ms(own(salience(scores)))

    def path(self, salience: np.ndarray) -> np.ndarray:
        k, low, high = self.k, self.k["lowest_bin"], self.k["highest_bin"]
        likely = np.maximum(k["path_reach"] - np.abs(np.subtract.outer(np.arange(360), np.arange(360))), 0.0)
        step = np.where(likely > 0, np.log(likely / likely.sum(1, keepdims=True) + k["path_floor"]), -np.inf)[low:high, low:high]
        softened = np.exp(salience[:, low:high].astype(np.float64))
        emission = np.log(softened / softened.sum(1, keepdims=True) + k["path_floor"])
        best, origins = emission[0], []
        for frame in emission[1:]:
            reached = best[:, None] + step
            origins.append(reached.argmax(0))
            best = reached.max(0) + frame
        path = [int(best.argmax())]
        for origin in reversed(origins):
            path.append(int(origin[path[-1]]))
        return np.array(path[::-1]) + low

    def refined(self, salience: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k = self.k
        offsets = np.arange(-k["decoded_bins"], k["decoded_bins"] + 1)
        near = path[:, None] + offsets
        s = np.take_along_axis(salience, near.clip(0, 359), axis=1) * ((near >= 0) & (near < 360))
        bins = path + (s * offsets).sum(1) / s.sum(1)
        hertz = 10 * 2 ** ((k["cents_offset"] + k["cents_step"] * bins) / 1200)
        on_path = salience[np.arange(len(path)), path]
        around = [slice(max(0, t - 1), t + 2) for t in range(len(path))]
        smooth = np.array([hertz[part].mean() for part in around])
        periodicity = np.array(
            [np.sort(on_path[part])[1 if part.stop - part.start == 3 and part.stop <= len(path) else 0] for part in around]
        )
        return hertz, periodicity, np.where(periodicity >= k["pitch_threshold"], smooth, 0)

    def contour(self, estimate: np.ndarray, frames: int) -> np.ndarray:
        if self.contract["voice"]["pitch_estimator"] == "harvest":
            around = np.pad(estimate, 1)
            estimate = np.median([around[:-2], around[1:-1], around[2:]], axis=0)
        shifted = estimate[:frames] * 2.0 ** (self.k["semitones"] / 12)
        return np.pad(shifted, (0, frames - len(shifted)))

    def coarse(self, contour: np.ndarray) -> np.ndarray:
        def mel(hertz: np.ndarray | float) -> np.ndarray:
            return 1127 * np.log(1 + np.float64(hertz) / 700)

        low, high = mel(self.k["f0_min"]), mel(self.k["f0_max"])
        scaled = (mel(contour) - low) * self.k["mel_bins"] / (high - low) + 1
        return np.where(contour > 0, np.round(np.clip(scaled, 1, 255)), 1).astype(np.int32)

    # -- features -----------------------------------------------------------------------------------------------------

    def blended(self, stage: str, total: int, compute: Callable[[dict], np.ndarray]) -> np.ndarray:
        """(total, channels)"""
        windows = self.plan(0, total, stage)
        out = None
        for w, weight in zip(windows, self.fades(windows), strict=True):
            found = compute(w)[: w["valid"]]
            out = np.zeros((total, found.shape[1]), np.float32) if out is None else out
            place = slice(w["start"], w["start"] + w["valid"])
            out[place] += weight[place, None] * found
        return out

    def content(self, norm: Arrays, samples: int) -> np.ndarray:
        k = self.k
        total = (samples - k["content_reach"]) // k["content_hop"] + 1

        def compute(w: dict) -> np.ndarray:
            length = (w["valid"] - 1) * k["content_hop"] + k["content_reach"]
            piece = norm["normalised"][w["start"] * k["content_hop"] :][:length]
            given = {"waveform": piece, "norm_scale": norm["norm_scale"], "norm_shift": norm["norm_shift"]}
            return self.package("content_encoder", given, w["valid"])[k["content_output"]][0]

        return self.blended("content_encoder", total, compute)

    def retrieve(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k, rate = self.k, self.k["index_rate"]
        centroids, offsets, vectors = (self.table(f"index_{name}") for name in ("centroids", "offsets", "vectors"))
        rows, distances, out = [], [], []
        for x in features.astype(np.float64):
            cells = np.argsort(((centroids - x) ** 2).sum(1), kind="stable")[: k["probed_cells"]]
            own = np.concatenate([np.arange(offsets[cell], offsets[cell + 1]) for cell in cells])
            squared = ((vectors[own] - x) ** 2).sum(1)
            nearest = np.argsort(squared, kind="stable")[: k["neighbours_count"]]
            d = squared[nearest]
            weights = np.array([1.0 if value == d[0] else (d[0] / value) ** 2 for value in d])
            mixed = (weights / weights.sum()) @ vectors[own[nearest]] if len(d) else x
            out.append(rate * mixed + (1 - rate) * x)
            missing = k["neighbours_count"] - len(d)
            rows.append(np.pad(own[nearest], (0, missing), constant_values=-1))
            distances.append(np.pad(d, (0, missing), constant_values=np.finfo(np.float32).max))
        return np.array(rows, np.int32), np.array(distances), np.array(out, np.float32)

    def phone(self, features: np.ndarray, retrieved: np.ndarray | None, contour: np.ndarray | None, frames: int) -> np.ndarray:
        if retrieved is None:
            return np.repeat(features, 2, axis=0)[:frames]
        out = np.repeat(retrieved, 2, axis=0)[:frames]
        if contour is not None and self.k["protect"] < 0.5:
            share = np.where(contour < self.k["unvoiced_below"], self.k["protect"], 1.0)[:, None]
            out = share * out + (1 - share) * np.repeat(features, 2, axis=0)[:frames]
        return out

    # -- the way out --------------------------------------------------------------------------------------------------

    def source(self, contour: np.ndarray, noise: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        k, size = self.k, self.k["samples_per_frame"]
        pitch = contour.astype(np.float32).astype(np.float64)
        cycles = np.mod(pitch / 100, 1)
        phases = np.mod(np.cumsum(cycles) - cycles, 1)
        f = pitch[first:last, None]
        sine = k["sine_amplitude"] * np.sin(2 * np.pi * np.mod(phases[first:last, None] + f * np.arange(1, size + 1) / k["voice_rate"], 1))
        drawn = noise.reshape(-1, size)[first:last]
        excitation = np.where(f > 0, sine + k["voiced_noise"] * drawn, k["unvoiced_noise"] * drawn)
        return phases, np.tanh(k["source_weight"] * excitation + k["source_bias"]).reshape(-1)

    def loudness(self, source: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        def envelope(x: np.ndarray, rate: int) -> np.ndarray:
            hop = rate // 2
            count = len(x) // hop
            around = np.pad(x.astype(np.float64), (hop, hop * (count + 2) - len(x)))
            return np.array([np.sqrt(np.mean(around[m * hop : (m + 2) * hop] ** 2)) for m in range(count + 1)])

        def spread(frames: np.ndarray) -> np.ndarray:
            places = (np.arange(len(made)) + 0.5) * len(frames) / len(made) - 0.5
            return np.interp(places, np.arange(len(frames)), frames)

        first, second = envelope(source, self.k["input_rate"]), envelope(made, self.k["voice_rate"])
        gain = (spread(first) / np.maximum(spread(second), self.k["rms_floor"])) ** (1 - self.k["rms_mix_rate"])
        return first, second, (made * gain).astype(np.float32)

    def limit(self, x: np.ndarray) -> np.ndarray:
        return x / np.float32(max(1.0, float(np.abs(x).max()) / self.k["output_peak"]))

    def windowed(self, stage: str, first: int, last: int, kept: tuple[int, int], given: Callable[[slice], Arrays]) -> np.ndarray:
        """(channels, kept frames · samples of a frame)"""
        parts = []
        (tensor,) = self.contract["stages"][stage]["outputs"]
        size = tensor["samples_per_frame"]
        for w in self.plan(first, last, stage):
            low, high = max(w["keep_from"], kept[0]), min(w["keep_to"], kept[1])
            if low < high:
                found = self.package(stage, given(slice(w["start"], w["start"] + w["valid"])), w["valid"])[tensor["name"]][0]
                parts.append(found[:, (low - w["start"]) * size : (high - w["start"]) * size])
        return np.concatenate(parts, axis=1)

    # -- everything ---------------------------------------------------------------------------------------------------

    def check_host_steps(self) -> None:
        """Each step on its given vectors."""
        vector, pitched, indexed = self.vector, self.contract["voice"]["f0"], "retrieval" in self.steps
        example = self.contract["example"]
        self.check("filtered", self.high_pass(vector("clip")))
        self.check("padded", np.pad(vector("filtered"), self.k["pad"], mode="reflect"))
        for name, found in self.normalise(vector("padded")).items():
            self.check(name, found)
        cuts = self.contract["segments"]
        long = np.concatenate([vector("filtered") * np.float32(gain) for gain in cuts["gains"]])
        assert self.segments(long) == (cuts["starts"], cuts["stops"])
        for stage, plans in self.contract["windows"].items():
            assert all(self.plan(0, one["frames"], stage) == one["windows"] for one in plans), stage
        for stage in ("content_encoder", "text_encoder"):
            self.check(f"fade_{stage}", self.fades(self.contract["windows"][stage][-1]["windows"]))
        if indexed:
            rows, distances, retrieved = self.retrieve(vector("features"))
            self.figures["neighbours found"] = float((rows == vector("neighbours")).mean())
            self.check("distances", distances)
            self.check("retrieved", retrieved)
        contour = vector("contour") if pitched else None
        self.check("phone", self.phone(vector("features"), vector("retrieved") if indexed else None, contour, example["frames"]))
        if contour is not None:
            self.check("contour", self.contour(vector("pitch_estimate"), example["frames"]))
            self.check("coarse", self.coarse(contour))
            self.check("pitch_embedding", self.table("pitch_table")[vector("coarse")])
            first, last = self.stretch(example["frames"], example["kept_frames"])
            phases, source = self.source(contour, vector("noise_source"), first, last)
            self.check("phases", phases)
            self.check("source", source)
        self.check("g", self.table("speakers")[self.contract["voice"]["speaker"]])
        for name, found in zip(("loudness_in", "loudness_out", "mixed"), self.loudness(vector("filtered"), vector("audio")), strict=True):
            self.check(name, found)
        self.check("output", self.limit(vector("mixed")))

    def check_packages(self) -> None:
        """Each package on the vectors of each of its windows."""
        for stage, windows in self.contract["example"]["windows"].items():
            entry = self.contract["stages"][stage]
            for number in range(len(windows)):
                inputs = {tensor["name"]: self.vector(f"{stage}/{number}/in/{tensor['name']}") for tensor in entry["inputs"]}
                for name, found in self.execute(stage, inputs).items():
                    self.check(f"{stage}/{number}/out/{name}", found)
            if entry["package_inputs"] is not None:
                inputs = {tensor["name"]: self.vector(f"{stage}/0/in/{tensor['name']}") for tensor in entry["inputs"]}
                for name, found in self.arranged(entry["package_inputs"], inputs).items():
                    assert np.array_equal(found, self.vector(f"{stage}/0/package_in/{name}")), name
                outputs = {
                    tensor["source"]: self.vector(f"{stage}/0/package_out/{tensor['source']}") for tensor in entry["package_outputs"]
                }
                for name, found in self.arranged(entry["package_outputs"], outputs).items():
                    self.check(f"{stage}/0/out/{name}", found)

    def stretch(self, frames: int, kept: int) -> tuple[int, int]:
        """The frames that the decoder is given."""
        pad, context = self.k["pad_frames"], self.k["decoder_context"]
        return max(0, pad - context), min(frames, pad + kept + context)

    def convert(self) -> np.ndarray:
        """From the clip to the output with nothing of the vectors but the noise (and the pitch, where no model makes it)."""
        k, speaker = self.k, self.contract["voice"]["speaker"]
        filtered = self.high_pass(self.vector("clip"))
        padded = np.pad(filtered, k["pad"], mode="reflect")
        frames = min(len(padded) // k["hop"], 2 * ((len(padded) - k["content_reach"]) // k["content_hop"] + 1))
        contour = self.contour(self.estimate(padded), frames) if self.contract["voice"]["f0"] else None
        features = self.content(self.normalise(padded), len(padded))
        self.figures["features, chain"] = snr(self.vector("features"), features)
        retrieved = self.retrieve(features)[2] if "retrieval" in self.steps else None
        phone = self.phone(features, retrieved, contour, frames)
        embedding = self.table("pitch_table")[self.coarse(contour)] if contour is not None else None

        def prior(w: dict) -> np.ndarray:
            place = slice(w["start"], w["start"] + w["valid"])
            given = {"phone": phone[place]} | ({} if embedding is None else {"pitch_embedding": embedding[place]})
            found = self.package("text_encoder", given, w["valid"])
            return np.concatenate([found["m_p"][0], found["logs_p"][0]]).T

        m_p, logs_p = np.split(self.blended("text_encoder", frames, prior).T, 2)
        self.figures["m_p, chain"], self.figures["logs_p, chain"] = snr(self.vector("m_p"), m_p), snr(self.vector("logs_p"), logs_p)
        kept = frames - 2 * k["pad_frames"]
        a, b = self.stretch(frames, kept)
        g, noise = self.table("speakers")[speaker], self.vector("noise_prior")
        first, last = max(0, a - k["flow_context"]), min(frames, b + k["flow_context"])
        z = self.windowed(
            "flow", first, last, (a, b), lambda part: {"m_p": m_p[:, part], "logs_p": logs_p[:, part], "noise": noise[:, part], "g": g}
        )
        self.figures["z, chain"] = snr(self.vector("z"), z)
        size = k["samples_per_frame"]
        source = None if contour is None else self.source(contour, self.vector("noise_source"), a, b)[1]

        def decoder(part: slice) -> Arrays:
            given = {"z": z[:, part.start - a : part.stop - a], "g": g}
            return given if source is None else given | {"source": source[(part.start - a) * size : (part.stop - a) * size]}

        audio = self.windowed("decoder", a, b, (k["pad_frames"], k["pad_frames"] + kept), decoder)[0]
        self.figures["audio, chain"] = snr(self.vector("audio"), audio)
        output = self.limit(self.loudness(filtered, audio)[2])
        self.figures["output, chain"] = snr(self.vector("output"), output)
        return output


def main(folder: Path, target: Path, run: Run = run_command) -> dict[str, float]:
    program = Program(folder, run)
    program.check_host_steps()
    program.convert().astype("<f4").tofile(target)
    program.figures["package runs"] = program.calls
    return program.figures


if __name__ == "__main__":
    print(json.dumps({name: round(figure, 2) for name, figure in main(Path(sys.argv[1]), Path(sys.argv[2])).items()}))
