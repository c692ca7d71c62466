"""The steps around a pitch model, one family for each kind."""

from __future__ import annotations

from typing import Any

from ...models.crepe import Crepe
from ...models.fcpe import Fcpe
from ...models.pitch_network import PitchNetwork
from ...models.rmvpe import Rmvpe
from ...models.swiftf0 import SwiftF0

Values = dict[str, Any]


def pitch_model_steps(network: PitchNetwork) -> list[Values]:
    """Fields of each step. Raises ValueError for a kind without a description."""
    for kind, steps in ((Rmvpe, _rmvpe), (Fcpe, _fcpe), (Crepe, _crepe), (SwiftF0, _swiftf0)):
        if isinstance(network, kind):
            return steps()
    raise ValueError(f"no steps are written for {type(network).__name__}")


def _log_mel(repeated: bool) -> Values:
    floor = "√(|X|² + {magnitude_floor})" if repeated else "|X|"
    about = (
        "Over the padded clip, which has N samples here. A periodic Hann window of {mel_window} samples every {hop}, {mel_pad}"
        " samples reflected on"
        " either side. mel_filters has {mel_bins_count} bands by {mel_window} / 2 + 1 frequencies. The host computes this in"
        " float32: a magnitude"
        " spectrum spans more than half precision does."
    )
    if repeated:
        about += " The transform gives a frame less than wanted; the last is repeated."
    return {
        "id": "pitch_features",
        "title": "Pitch: log-mel",
        "about": about,
        "formulas": (
            "hann[i] = 0.5 - 0.5 · cos(2πi / {mel_window})",
            "X_t = FFT(hann · r[{hop}t … {hop}t + {mel_window} - 1]), r the reflected clip",
            f"features[:, t] = ln(max(mel_filters · {floor}, {{log_floor}})),  t = 0 … ⌊N / {{hop}}⌋",
        ),
        "tables": ("mel_filters",),
        "given": ("padded",),
        "gives": ("pitch_features",),
    }


def _rmvpe() -> list[Values]:
    return [
        _log_mel(repeated=False),
        {
            "id": "pitch_prepared",
            "title": "Pitch: padded and normalised",
            "about": "Zeros behind the last frame up to a multiple of {pitch_unit} frames, then one factor and one addend for everything.",
            "formulas": ("prepared = {norm_weight} · features + {norm_bias}",),
            "given": ("pitch_features",),
            "gives": ("pitch_prepared",),
        },
        {
            "id": "pitch",
            "title": "Pitch model",
            "about": "RMVPE's convolutions. Windows over the prepared frames, joined; all starts are multiples of {pitch_unit}.",
            "given": ("pitch_prepared",),
            "gives": ("pitch_hidden",),
            "package": "pitch",
        },
        {
            "id": "pitch_salience",
            "title": "Pitch: recurrent layer",
            "about": "A bidirectional GRU over all frames of the clip, from a state of zeros, then a linear layer. It is on the"
            " host because it"
            " must not start anew in every window. Backward runs from the last frame to the first. Frames beyond the clip's are"
            " dropped behind it.",
            "formulas": (
                "i = W_ih x + b_ih,  j = W_hh h + b_hh, each in thirds r, z, n",
                "r = sigmoid(i_r + j_r);  z = sigmoid(i_z + j_z);  n = tanh(i_n + r · j_n);  h ← (1 - z) · n + z · h",
                "salience = sigmoid(classes_weight · [h_forward, h_backward] + classes_bias)",
            ),
            "tables": (
                *(f"gru_{way}_{part}_{end}" for way in ("forward", "backward") for part in ("weight", "bias") for end in ("ih", "hh")),
                *("classes_weight", "classes_bias"),
            ),
            "given": ("pitch_hidden",),
            "gives": ("pitch_salience",),
        },
        {
            "id": "pitch_decode",
            "title": "Pitch: Hz",
            "about": "The mean of the classes around the strongest, weighted by their salience; classes outside the range count nothing.",
            "formulas": (
                "c = argmax salience;  cents = Σ_{k=c-{decoded_bins}}^{c+{decoded_bins}} s_k · ({cents_step} · k + {cents_offset}) / Σ s_k",
                "Hz = 10 · 2^(cents / 1200) where s_c > {pitch_threshold}, else 0",
            ),
            "given": ("pitch_salience",),
            "gives": ("pitch_estimate",),
        },
    ]


def _fcpe() -> list[Values]:
    return [
        _log_mel(repeated=True),
        {
            "id": "pitch_statistics",
            "title": "Pitch: GroupNorm statistics",
            "about": "FCPE's GroupNorm spans the clip: the host computes the first convolution over all frames (a zero frame on"
            " either side)"
            " and takes mean and variance over the channels of each of {norm_groups} groups and all frames.",
            "formulas": (
                "h[c, t] = first_bias[c] + Σ_{b, k=0..2} first_weight[c, b, k] · features[b, t + k - 1]",
                "norm_scale_c = group_gamma_c / √(var_group + {norm_eps});  norm_shift_c = group_beta_c - mean_group · norm_scale_c",
            ),
            "tables": ("first_weight", "first_bias", "group_gamma", "group_beta"),
            "given": ("pitch_features",),
            "gives": ("pitch_norm_scale", "pitch_norm_shift"),
        },
        {
            "id": "pitch",
            "title": "Pitch model",
            "about": "Windows over the frames of the log-mel, joined. norm_scale and norm_shift are the same for all.",
            "given": ("pitch_features", "pitch_norm_scale", "pitch_norm_shift"),
            "gives": ("pitch_salience",),
            "package": "pitch",
        },
        {
            "id": "pitch_decode",
            "title": "Pitch: Hz",
            "about": "The mean of the classes around the strongest, weighted by their salience; classes beyond the range count as"
            " its edge.",
            "formulas": (
                "c = argmax salience;  k = clamp(c - {decoded_bins} … c + {decoded_bins}, 0, 359);  mean = Σ s_k · cents[k] / Σ s_k",
                "Hz = 10 · 2^(mean / 1200) where s_c > {pitch_threshold}, else 0",
            ),
            "tables": ("cents",),
            "given": ("pitch_salience",),
            "gives": ("pitch_estimate",),
        },
    ]


def _crepe() -> list[Values]:
    return [
        {
            "id": "pitch_features",
            "title": "Pitch: frames",
            "about": "Over the padded clip, which has N samples here: {pitch_window} samples around every 10 ms, {pitch_window} /"
            " 2 zeros before and"
            " behind the clip. Each frame has mean 0 and standard deviation 1 (divided by {pitch_window} - 1).",
            "formulas": (
                "frame_t = z[{hop}t … {hop}t + {pitch_window} - 1],  t = 0 … ⌊N / {hop}⌋",
                "frame ← (frame - mean) / max(deviation, {least_deviation})",
            ),
            "given": ("padded",),
            "gives": ("pitch_features",),
        },
        {
            "id": "pitch",
            "title": "Pitch model",
            "about": "Windows over the frames, joined. No frame sees another.",
            "given": ("pitch_features",),
            "gives": ("pitch_salience",),
            "package": "pitch",
        },
        {
            "id": "pitch_path",
            "title": "Pitch: path",
            "about": "The most likely path through the classes {lowest_bin} ..< {highest_bin}, by Viterbi's algorithm. The first"
            " frame's classes are"
            " equally likely. Steps of {path_reach} classes or more are never taken.",
            "formulas": (
                "emission[t, j] = ln(softmax_j(salience[t, {lowest_bin} ..< {highest_bin}]) + {path_floor})",
                "step(i → j) = ln(L_ij + {path_floor}),  L_ij = max({path_reach} - |i - j|, 0) / Σ_{k = 0..359} max({path_reach}"
                " - |i - k|, 0)",
                "best[t, j] = emission[t, j] + max_i (best[t-1, i] + step(i → j)); back from the best of the last frame",
            ),
            "given": ("pitch_salience",),
            "gives": ("pitch_path",),
        },
        {
            "id": "pitch_decode",
            "title": "Pitch: Hz",
            "about": "The classes around the path's, weighted by their salience (those outside 0 … 359 count nothing), then a"
            " mean over three frames,"
            " over the two that exist at either end. Periodicity is the salience on the path, its median over three frames (the"
            " lesser of two at"
            " either end).",
            "formulas": (
                "offset = Σ_{k=-{decoded_bins}..{decoded_bins}} s[b + k] · k / Σ s[b + k];  refined = 10 · 2^(({cents_offset} +"
                " {cents_step} · (b + offset)) / 1200)",
                "Hz[t] = mean(refined[t-1 … t+1]) where periodicity[t] ≥ {pitch_threshold}, else 0",
            ),
            "given": ("pitch_salience", "pitch_path"),
            "gives": ("pitch_refined", "pitch_periodicity", "pitch_estimate"),
        },
    ]


def _swiftf0() -> list[Values]:
    return [
        {
            "id": "pitch_features",
            "title": "Pitch: three log spectra",
            "about": "Over the padded clip, which has N samples here. Frames of {pitch_hop} samples: F = max(1, ⌊N / {pitch_hop}⌋) of them,"
            " frame t centred on sample {pitch_hop}t, zeros around the clip. A periodic Hann window of each of {pitch_windows_1},"
            " {pitch_windows_2} and {pitch_windows_3} samples, in this order; the tables have its frequencies by {pitch_bands} bands.",
            "formulas": (
                "hann[i] = 0.5 - 0.5 · cos(2πi / L)",
                "X_t = FFT(hann · z[{pitch_hop}t - L / 2 … {pitch_hop}t + L / 2 - 1]), z the clip and zeros",
                "features[l, :, t] = ln(|X_t| · bands_L + {log_floor}),  t = 0 … F - 1",
            ),
            "tables": ("bands_1", "bands_2", "bands_3"),
            "given": ("padded",),
            "gives": ("pitch_features",),
        },
        {
            "id": "pitch",
            "title": "Pitch model",
            "about": "Windows over the frames, joined.",
            "given": ("pitch_features",),
            "gives": ("pitch_hidden",),
            "package": "pitch",
        },
        {
            "id": "pitch_salience",
            "title": "Pitch: probabilities",
            "about": "The scores of {pitch_classes} classes and, last, of voicing.",
            "formulas": (
                "salience[t, k] = exp(s[t, k]) / Σ_{j < {pitch_classes}} exp(s[t, j]),  k < {pitch_classes}",
                "salience[t, {pitch_classes}] = 1 / (1 + exp(-s[t, {pitch_classes}]))",
            ),
            "given": ("pitch_hidden",),
            "gives": ("pitch_salience",),
        },
        {
            "id": "pitch_frames",
            "title": "Pitch: Hz of its frames",
            "about": "The strongest class and its neighbours on either side that exist and lie between {f0_min} and {f0_max} Hz,"
            " their log pitches weighted by their probabilities.",
            "formulas": (
                "c = argmax_{k < {pitch_classes}} p_k;  Hz = exp(Σ_{k=c-1..c+1} p_k · ln(class_hertz[k]) / Σ p_k)",
                "where p_voicing ≥ {pitch_threshold}, {f0_min} ≤ class_hertz[c] ≤ {f0_max} and any of the {pitch_hop} samples from the"
                " frame's centre on reaches {silence_peak}; else 0",
            ),
            "tables": ("class_hertz",),
            "given": ("padded", "pitch_salience"),
            "gives": ("pitch_frames",),
        },
        {
            "id": "pitch_decode",
            "title": "Pitch: Hz every 10 ms",
            "about": "Log pitch is linear between two voiced frames less than half an octave apart. Elsewhere the nearer frame's value"
            " stands, the earlier one's half way between; the last holds to the end.",
            "formulas": (
                "x = min({hop}n / {pitch_hop}, F - 1);  a = ⌊x⌋;  b = min(a + 1, F - 1);  w = x - a",
                "Hz[n] = exp((1 - w) · ln f[a] + w · ln f[b]) where both are voiced and max / min < {joined_ratio}",
                "Hz[n] = f[a] where w ≤ 0.5, else f[b], elsewhere;  n = 0 … ⌊N / {hop}⌋",
            ),
            "given": ("pitch_frames",),
            "gives": ("pitch_estimate",),
        },
    ]
