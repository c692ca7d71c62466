"""The numbers and tables with which the host computes, taken from where the product itself has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ...models import crepe, fcpe, rmvpe, source, swiftf0, viterbi
from ...models.crepe import Crepe
from ...models.fcpe import Fcpe
from ...models.host import MAX_WAVEFORM_GAIN, ContentHost, VoiceHost
from ...models.mel import FCPE_MEL, LOG_FLOOR, RMVPE_MEL, MelSettings, mel_filters
from ...models.pitch_network import PitchNetwork
from ...models.rmvpe import Rmvpe
from ...models.swiftf0 import SwiftF0
from ..audio import filters, loudness, output, reading
from ..pitch import F0_MAX, F0_MIN
from ..pitch.contour import MEL_BINS
from ..retrieval import FeatureIndex, load_index
from ..retrieval.search import NEIGHBOURS
from ..segments import CENTER, EXTRA, HOP, LONGEST, PAD, PAD_FRAMES, QUERY, SAMPLE_RATE
from ..windows import FADE_SHARE
from .capture import Capture
from .folder import BundleFolder

Constants = dict[str, tuple[Any, str]]
ROWS = 4096  # of an index at a time
UNVOICED_BELOW = 1  # Hz, RVC-WebUI's protection of consonants; runtime/synthesis.py


def constants(capture: Capture) -> Constants:
    """Name -> value and meaning, in the order of the steps."""
    synthesizer, options = capture.converter.synthesizer, capture.options
    content, voice = synthesizer.content_host.config, synthesizer.voice_host
    b, a = filters.coefficients()
    found: Constants = {
        "input_rate": (SAMPLE_RATE, "Hz of everything before synthesis"),
        "hop": (HOP, "samples of a 10 ms frame at the input rate"),
        "input_peak": (reading.PEAK, "a louder recording is scaled down to this peak"),
        "high_pass_hz": (filters.HIGH_PASS_HZ, "cut-off of the Butterworth high-pass"),
        "high_pass_order": (filters.HIGH_PASS_ORDER, "its order"),
        "high_pass_b": ([float(value) for value in b], "numerator b[0..5], float64"),
        "high_pass_a": ([float(value) for value in a], "denominator a[0..5], float64"),
        "high_pass_padding": (filters.PADDING, "samples mirrored about either end"),
        "pad": (PAD, "samples reflected on either side of the clip"),
        "pad_frames": (PAD_FRAMES, "10 ms frames of that"),
        "longest": (LONGEST, "samples up to which a clip is one segment"),
        "center": (CENTER, "samples between the places near which a longer clip is cut"),
        "query": (QUERY, "samples to either side in which the quietest place is looked for"),
        "extra": (EXTRA, "samples more at the end where the output has to be as long as the input"),
        "content_kernel": (content.conv_kernels[0], "samples of a patch of the content encoder's first layer"),
        "content_stride": (content.conv_strides[0], "samples between its patches"),
        "content_hop": (content.stride, "samples of a 20 ms frame of the content encoder"),
        "content_reach": (content.samples(1), "samples that one such frame needs"),
        "content_eps": (content.eps, "added to the variance of the first layer's GroupNorm"),
        "content_output": (f"features_{synthesizer.version}", "output of the content encoder that the voice was trained with"),
        "max_gain": (MAX_WAVEFORM_GAIN, "most that a quiet clip is raised"),
        "fade_share": (FADE_SHARE, "of the overlap on one side, over which windows fade into each other"),
        "voice_rate": (voice.config.sr, "Hz of the voice"),
        "samples_per_frame": (voice.config.samples_per_frame, "samples of a 10 ms frame at that rate"),
        "inter_channels": (voice.config.inter_channels, "channels of the prior and of its noise"),
        "decoder_context": (synthesizer.entries["decoder"].context, "frames on either side that a frame of audio depends on"),
        "flow_context": (synthesizer.entries["flow"].context, "frames on either side that a frame of the latent depends on"),
        "rms_floor": (loudness.FLOOR, "least loudness of the output that is divided by"),
        "output_peak": (output.OUTPUT_PEAK, "a louder result is scaled down to this peak"),
    }
    if voice.has_f0:
        found |= _pitched(voice)
        found |= _of_model(capture.network)
    if capture.has_index:
        index = _index(capture)
        found["neighbours_count"] = (NEIGHBOURS, "neighbours of a frame")
        found["probed_cells"] = (index.nprobe, "cells that are searched for them")
        found["index_cells"] = (index.cells, "cells of the index")
        found["unvoiced_below"] = (UNVOICED_BELOW, "Hz; lower frames count as unvoiced for the protection")
    given = {"semitones": "pitch", "index_rate": "index_rate", "protect": "protect", "rms_mix_rate": "rms_mix_rate"}
    meanings = (
        "shift of the pitch",
        "share of the retrieved features",
        "their share in unvoiced frames",
        "share of the output's own loudness",
    )
    for (name, option), meaning in zip(given.items(), meanings, strict=True):
        found[name] = (getattr(options, option), f"{meaning} (a user's choice; the vectors use this one)")
    return found


def _pitched(voice: VoiceHost) -> Constants:
    assert voice.source_weight is not None  # noqa: S101 - a voice with f0 has both
    assert voice.source_bias is not None  # noqa: S101
    return {
        "f0_min": (F0_MIN, "Hz, lowest of the search and of coarse pitch 1"),
        "f0_max": (F0_MAX, "Hz, highest of the search and of coarse pitch 255"),
        "mel_bins": (MEL_BINS, "steps between them on the mel scale"),
        "sine_amplitude": (source.SINE_AMPLITUDE, "of the harmonic source"),
        "voiced_noise": (source.VOICED_NOISE, "deviation of its noise where voiced"),
        "unvoiced_noise": (source.UNVOICED_NOISE, "deviation of its noise where unvoiced"),
        "source_weight": (float(voice.source_weight.reshape(())), "l_linear of the voice: factor of the source"),
        "source_bias": (float(voice.source_bias.reshape(())), "l_linear of the voice: addend of the source"),
    }


def _of_model(network: PitchNetwork | None) -> Constants:
    if isinstance(network, Rmvpe):
        norm = network.unet.encoder.bn
        return {
            **_mel(RMVPE_MEL),
            "pitch_unit": (network.granularity, "a clip is padded to whole multiples of so many frames"),
            "norm_weight": (float(norm["weight"].reshape(-1)[0]), "factor of every log-mel value"),
            "norm_bias": (float(norm["bias"].reshape(-1)[0]), "addend of every log-mel value"),
            "cents_step": (rmvpe.CENTS_STEP, "cents of a class"),
            "cents_offset": (rmvpe.CENTS_OFFSET, "cents above 10 Hz of class 0"),
            "decoded_bins": (rmvpe.DECODED_BINS, "classes on either side of the strongest that are averaged"),
            "pitch_threshold": (rmvpe.THRESHOLD, "salience up to which a frame is unvoiced"),
        }
    if isinstance(network, Fcpe):
        return {
            **_mel(FCPE_MEL),
            "norm_groups": (fcpe.GROUPS, "groups of the GroupNorm"),
            "norm_eps": (cast(nn.GroupNorm, network.input_stack["1"]).eps, "added to its variance"),
            "decoded_bins": (fcpe.NEIGHBOURS, "classes on either side of the strongest that are averaged"),
            "pitch_threshold": (fcpe.THRESHOLD, "salience up to which a frame is unvoiced"),
        }
    if isinstance(network, Crepe):
        edges = [
            (1200.0 * np.log2(hertz / crepe.REFERENCE_HZ) - crepe.FIRST_BIN) / crepe.BIN_CENTS for hertz in (crepe.F0_MIN, crepe.F0_MAX)
        ]
        return {
            "pitch_window": (crepe.WINDOW, "samples of a frame"),
            "least_deviation": (crepe.MIN_DEVIATION, "least standard deviation that a frame is divided by"),
            "lowest_bin": (int(np.floor(edges[0])), "first class of the path's range"),
            "highest_bin": (int(np.ceil(edges[1])), "one past its last"),
            "path_reach": (viterbi.REACH, "classes at which a step's likelihood has fallen to 0"),
            "path_floor": (viterbi.FLOOR, "added to a probability before its logarithm"),
            "cents_step": (crepe.BIN_CENTS, "cents of a class"),
            "cents_offset": (crepe.FIRST_BIN, "cents above 10 Hz of class 0"),
            "decoded_bins": (crepe.NEIGHBOURS, "classes on either side that are averaged"),
            "pitch_threshold": (crepe.PERIODICITY_THRESHOLD, "periodicity below which a frame is unvoiced"),
        }
    if isinstance(network, SwiftF0):
        return {
            "pitch_hop": (network.hop, "samples between the pitch model's frames"),
            **{f"pitch_windows_{index}": (size, "samples of a spectrum") for index, size in enumerate(swiftf0.SIZES, 1)},
            "pitch_bands": (swiftf0.BANDS, "bands of each spectrum"),
            "log_floor": (swiftf0.LOG_FLOOR, "added to each band's magnitude"),
            "pitch_classes": (swiftf0.CLASSES, "pitch classes; the score after them is voicing's"),
            "pitch_threshold": (swiftf0.THRESHOLD, "confidence from which a frame is voiced"),
            "silence_peak": (swiftf0.SILENCE_PEAK, "a frame whose samples stay below it is unvoiced"),
            "joined_ratio": (swiftf0.NEAR, "pitches of neighbouring frames that are this far apart are not joined"),
        }
    return {}


def _mel(settings: MelSettings) -> Constants:
    return {
        "mel_window": (settings.window, "samples of the periodic Hann window"),
        "mel_pad": (settings.pad, "samples reflected on either side before it"),
        "mel_bins_count": (settings.bins, "mel bands"),
        "magnitude_floor": (settings.magnitude_floor, "added to the power before its root"),
        "log_floor": (LOG_FLOOR, "least value whose logarithm is taken"),
    }


def write_tables(capture: Capture, folder: BundleFolder) -> None:
    """Everything under `host/`."""
    synthesizer = capture.converter.synthesizer
    _content_tables(synthesizer.content_host, folder)
    folder.add_host("speakers", _array(synthesizer.voice_host.speakers), "speaker embeddings, one row a speaker: the packages' input g")
    if synthesizer.voice_host.pitch is not None:
        folder.add_host("pitch_table", _array(synthesizer.voice_host.pitch), "emb_pitch: one row for each coarse pitch 0..255")
    if capture.has_index:
        index = _index(capture)
        folder.add_host("index_centroids", _array(index.centroids), "centre of each cell")
        folder.add_host("index_offsets", _array(index.offsets), "first row of each cell, and one past the last row of the last")
        folder.add_host("index_vectors", _blocks(index), "vectors in order of their cells")
    if capture.network is not None:
        for name, values, description in _pitch_tables(capture.network):
            folder.add_host(name, values, description)


def _content_tables(host: ContentHost, folder: BundleFolder) -> None:
    folder.add_host("content_weight", _array(host.weight), "first layer of the content encoder: one row of taps a channel")
    folder.add_host("content_gamma", _array(host.gamma), "its GroupNorm: factor of each channel")
    folder.add_host("content_beta", _array(host.beta), "its GroupNorm: addend of each channel")


def _pitch_tables(network: PitchNetwork) -> Iterator[tuple[str, np.ndarray, str]]:
    if isinstance(network, (Rmvpe, Fcpe)):
        yield (
            "mel_filters",
            _array(mel_filters(RMVPE_MEL if isinstance(network, Rmvpe) else FCPE_MEL)),
            "mel bands by frequencies of the spectrum",
        )
    if isinstance(network, Rmvpe):
        gru = cast(nn.GRU, cast(nn.ModuleDict, network.fc["0"])["gru"])
        for way, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
            for part, meaning in (("ih", "of the input"), ("hh", "of the state")):
                yield (
                    f"gru_{way}_weight_{part}",
                    _array(getattr(gru, f"weight_{part}_{suffix}")),
                    f"{way} GRU, weight {meaning}: rows r, z, n",
                )
                yield f"gru_{way}_bias_{part}", _array(getattr(gru, f"bias_{part}_{suffix}")), f"{way} GRU, bias {meaning}: r, z, n"
        linear = cast(nn.Linear, network.fc["1"])
        yield "classes_weight", _array(linear.weight), "from the GRU's two states to the classes"
        yield "classes_bias", _array(linear.bias), "addend of each class"
    if isinstance(network, Fcpe):
        conv, norm = cast(nn.Conv1d, network.input_stack["0"]), cast(nn.GroupNorm, network.input_stack["1"])
        yield "first_weight", _array(conv.weight), "first convolution: channels, mel bands, taps"
        yield "first_bias", _array(conv.bias), "its addend for each channel"
        yield "group_gamma", _array(norm.weight), "GroupNorm behind it: factor of each channel"
        yield "group_beta", _array(norm.bias), "GroupNorm behind it: addend of each channel"
        yield "cents", _array(network.cent_table), "cents above 10 Hz of each class"
    if isinstance(network, SwiftF0):
        for index, size in enumerate(swiftf0.SIZES, 1):
            yield f"bands_{index}", _array(network.filters[str(size)]), f"spectrum of {size} samples: frequencies by bands"
        yield "class_hertz", _array(swiftf0.class_hertz()), "Hz of each class"


def _index(capture: Capture) -> FeatureIndex:
    path = capture.converter.voice.index
    assert path is not None  # noqa: S101 - has_index
    return load_index(path)


def _blocks(index: FeatureIndex) -> Iterator[np.ndarray]:
    return (_array(index.vectors[first : first + ROWS]) for first in range(0, index.count, ROWS))


def _array(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None  # noqa: S101 - these layers have biases
    return tensor.detach().cpu().numpy()
