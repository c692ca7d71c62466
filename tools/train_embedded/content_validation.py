"""How well the encoder reads phonemes it was not trained on, and how much of the speaker is left in its features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import FRAME_CENTRE, FRAME_HOP, SAMPLE_RATE, draw_voice, frame_positions, recorded, resample, timeline_samples
from .clips import TRAIN, UNSEEN, VALID, ClipStore, Rows
from .content_network import ContentNetwork

SECONDS = 4.0
CLIPS = 160  # of each part
LEAK_CLIPS, LEAK_SPEAKERS = 6, 40
AT_ONCE = 80  # rows that run together
SEED = 20


@torch.no_grad()
def validate(network: ContentNetwork, store: ClipStore) -> dict[str, float]:
    """Shares of frames whose phoneme is right: `valid` (held-out sentences) and `unseen` (held-out speakers), as they are and
    disguised as in training; silence counts in `*_all` alone. `speaker_accuracy`: see speaker_accuracy. Parts without clips are left out.
    """
    report: dict[str, float] = {}
    samples = int(SECONDS * SAMPLE_RATE)
    with torch.random.fork_rng(devices=[store.device] if store.device.type == "cuda" else []):
        for part in (VALID, UNSEEN):
            clips = store.chosen(part, CLIPS)
            if len(clips) == 0:
                continue
            torch.manual_seed(SEED)
            right, total = torch.zeros(2, 2), torch.zeros(2, 2)  # clean and noisy, speech and all
            for some in clips.split(AT_ONCE):
                for noisy, (waves, labels) in enumerate((_plain(store, some, samples), _disguised(store, some, samples))):
                    _, logits = _run(network, waves)
                    hits = logits.argmax(2) == labels
                    speech = labels != 0
                    right[noisy] += torch.stack([(hits & speech).sum(), hits.sum()]).float().cpu()
                    total[noisy] += torch.stack([speech.sum(), torch.tensor(hits.numel(), device=hits.device)]).float().cpu()
            share = right / total.clamp_min(1)
            for noisy, name in enumerate(("clean", "noisy")):
                report[f"{part}_{name}"], report[f"{part}_{name}_all"] = share[noisy].tolist()
    report.update(speaker_accuracy(network, store))
    return {name: round(value, 4) for name, value in report.items()}


@torch.no_grad()
def speaker_accuracy(network: ContentNetwork, store: ClipStore) -> dict[str, float]:
    """Share of training clips whose speaker's centroid (of the speaker's other clips) is the nearest, of features averaged over speech.

    `speaker_spectrum` is the same for mean log spectra, and `speaker_chance` what guessing gives; nothing where speakers are too few.
    """
    clips = store.chosen(TRAIN, LEAK_CLIPS * LEAK_SPEAKERS, LEAK_CLIPS)
    speakers = store.speakers[clips]
    count = int(speakers.unique().numel())
    if count < 2:
        return {}
    pooled, spectra = [], []
    for some in clips.split(AT_ONCE):
        waves, labels = _plain(store, some, int(SECONDS * SAMPLE_RATE))
        features, _ = _run(network, waves)
        speech = (labels != 0).unsqueeze(2).float()
        pooled.append((features * speech).sum(1) / speech.sum(1).clamp_min(1))
        frames = waves.unfold(1, 400, FRAME_HOP)[:, : labels.shape[1]] * torch.hann_window(400, device=waves.device)
        levels = torch.log(torch.fft.rfft(frames).abs().unfold(2, 4, 3).mean(3) + 1e-4)
        spectra.append((levels * speech).sum(1) / speech.sum(1).clamp_min(1))
    return {
        "speaker_accuracy": _nearest_centroid(torch.cat(pooled), speakers),
        "speaker_spectrum": _nearest_centroid(torch.cat(spectra), speakers),
        "speaker_chance": 1 / count,
    }


def _nearest_centroid(values: Tensor, speakers: Tensor) -> float:
    """Leave one out, each dimension in units of its spread."""
    values = (values - values.mean(0)) / values.std(0).clamp_min(1e-6)
    names, numbers = speakers.unique(return_inverse=True)
    belongs = F.one_hot(numbers, len(names)).float()
    sums, counts = belongs.T @ values, belongs.sum(0)
    own = belongs.unsqueeze(2)
    centroids = (sums - own * values.unsqueeze(1)) / (counts - belongs).clamp_min(1).unsqueeze(2)  # (clips, speakers, D)
    distance = (centroids - values.unsqueeze(1)).norm(dim=2)
    return float((distance.argmin(1) == numbers).float().mean())


def _run(network: ContentNetwork, waves: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(waves.device.type, torch.bfloat16, enabled=waves.device.type == "cuda"):
        features, logits, _ = network(waves)
    return features.float(), logits.float()


def _frames(network_samples: int) -> int:
    return (network_samples - 400) // FRAME_HOP + 1


def _plain(store: ClipStore, clips: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    rows: Rows = store.whole(clips, samples)
    centres = torch.arange(_frames(samples), device=store.device, dtype=torch.float64) * FRAME_HOP + FRAME_CENTRE
    return rows.waves, rows.labels_at(centres.expand(len(clips), -1).contiguous())


def _disguised(store: ClipStore, clips: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    total = timeline_samples(samples)
    rows = store.whole(clips, total, lead=(total - samples) // 2)
    speed, warp = draw_voice(rows.waves)
    waves = recorded(resample(rows.waves, speed, samples), warp)
    return waves, rows.labels_at(frame_positions(speed, total, samples, _frames(samples)))
