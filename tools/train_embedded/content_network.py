"""The content encoder as it is trained: HuBERT, two heads that are thrown away afterwards, and what is asked of its features.

Cross-entropy makes the features say which phoneme a frame belongs to; the contrastive term asks that the same frame read from
two differently disguised copies be nearer than the row's other phonemes, so that what a disguise changes has no place in them.
Negatives come from the row itself: they share its speaker, so knowing the speaker tells none of them apart.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from rvc_coreml.models.hubert import Hubert, HubertConfig
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG = HubertConfig(conv_channels=(256,) * 7, hidden=256, layers=9, heads=4, feed_forward=1024, projection=256)
TINY = HubertConfig(
    conv_channels=(32,) * 7, hidden=32, layers=2, heads=2, feed_forward=64, position_kernel=16, position_groups=4, projection=32
)
HEAD_FILE = "head.pt"  # the phoneme head, beside hf/
MIDDLE_LAYER = 5
DROPOUT = 0.1  # after attention and after feed-forward, as in HuBERT-base
SPAN, SPAN_STARTS = 6, 0.025  # frames hidden at a time, and the share of frames at which it begins: about 14% hidden
SMOOTHING = 0.05  # labels are a frame off here and there
TEMPERATURE = 0.1  # ContentVec's
MIDDLE_WEIGHT, AGREEMENT_WEIGHT = 0.3, 0.3
NEAR = 2  # frames that a frame is not told apart from
FAR = -1e4


class ContentNetwork(nn.Module):
    """HuBERT with a phoneme head on final_proj's output and another on a layer in the middle, which speeds up the start."""

    def __init__(self, config: HubertConfig, phonemes: int) -> None:
        super().__init__()
        if config.projection is None:
            raise ValueError("v1 voices read final_proj, so the encoder needs a projection")
        self.hubert = Hubert(config)
        self.head = nn.Linear(config.projection, phonemes)
        self.middle_head = nn.Linear(config.hidden, phonemes)
        self.middle = min(MIDDLE_LAYER, (config.v1_layer + 1) // 2)
        self.reset()
        for layer in self.hubert.encoder.layers:
            for part in (layer.get_submodule("self_attn.out_proj"), layer.get_submodule("fc2")):
                part.register_forward_hook(_dropped)

    def reset(self) -> None:
        """HuBERT's start: Kaiming for convolutions, which have no norm between them that would make up for less."""
        for layer in self.hubert.feature_extractor.conv_layers:
            nn.init.kaiming_normal_(layer.get_submodule("0").weight)  # pyright: ignore[reportArgumentType]
        position = self.hubert.encoder.pos_conv[0]
        nn.init.normal_(position.weight, std=math.sqrt(4.0 / (self.hubert.config.position_kernel * self.hubert.config.hidden)))  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(position.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, waves: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """waves (B, N), hidden frames (B, F, 1) bool -> features (B, F, projection), logits and the middle's (B, F, phonemes)."""
        x = self.hubert.project(self.hubert.feature_extractor(waves))
        if hidden is not None:
            x = x.masked_fill(hidden, 0.0)
        middle, last = self.hubert.encoder(x, (self.middle, self.hubert.config.v1_layer))
        features = self.hubert.final_proj(last)
        return features, self.head(features), self.middle_head(middle)


def _dropped(module: nn.Module, _: object, output: Tensor) -> Tensor:
    return F.dropout(output, DROPOUT, module.training)


def averaged_copy(network: ContentNetwork) -> ContentNetwork:
    """The network that is kept: a running average of the trained one's weights."""
    return deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def average(kept: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move `kept` towards the network, faster in the first steps, whose weights nobody wants to remember."""
    share = 1.0 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(kept.parameters()), list(network.parameters()), share)  # as torch's own EMA does


def hidden_frames(rows: int, frames: int, device: torch.device) -> Tensor:
    """Spans of frames to hide, (rows, frames, 1) bool: a lost frame has to be read from its neighbours, as in a noisy recording."""
    begins = (torch.rand(rows, 1, frames, device=device) < SPAN_STARTS).float()
    return F.max_pool1d(F.pad(begins, (SPAN - 1, 0)), SPAN, stride=1).transpose(1, 2) > 0


@dataclass(frozen=True)
class Losses:
    total: Tensor
    phonemes: Tensor
    middle: Tensor
    agreement: Tensor
    accuracy: Tensor
    agreeing: Tensor  # share of frames whose nearest in the other view is themselves

    def as_tensor(self) -> Tensor:
        return torch.stack([self.total, self.phonemes, self.middle, self.agreement, self.accuracy, self.agreeing]).detach()


LOSS_NAMES = ("loss", "phonemes", "middle", "agreement", "accuracy", "agreeing")


def content_losses(outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor, positions: Tensor, share: float) -> Losses:
    """Of 2B rows, the first views before the second ones: labels (2B, F) and the frames' places in the row (2B, F).

    `share` of AGREEMENT_WEIGHT counts: features that know nothing yet agree best by being equal.
    """
    features, logits, middle = (output.float() for output in outputs)
    phonemes = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING)
    middle_loss = F.cross_entropy(middle.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING)
    first, second = features.chunk(2)
    here, there = positions.chunk(2)
    agreement, agreeing = agreement_loss(first, second, labels.chunk(2)[0], here, there)
    total = phonemes + MIDDLE_WEIGHT * middle_loss + AGREEMENT_WEIGHT * share * agreement
    accuracy = (logits.argmax(2) == labels).float().mean()
    return Losses(total, phonemes, middle_loss, agreement, accuracy, agreeing)


def agreement_loss(first: Tensor, second: Tensor, labels: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of two views (B, F, D), both ways: the loss, and the share of spoken frames that find themselves.

    labels (B, F) and places here (B, F) are the first view's, places there the second's; places are evenly spaced. The second
    view is read between its frames at the first one's places. Frames of the same phoneme, and neighbours, are no negatives.
    """
    frames = first.shape[1]
    spacing = there[:, 1:2] - there[:, :1]
    place = (here - there[:, :1]) / spacing
    known = (place >= 0) & (place <= frames - 1) & (labels != 0)
    low = place.floor().clamp(0, frames - 2).long()
    part = (place - low).clamp(0, 1).to(first.dtype).unsqueeze(2)
    index = low.unsqueeze(2).expand(-1, -1, second.shape[2])
    matched = second.gather(1, index) * (1 - part) + second.gather(1, index + 1) * part
    scores = torch.matmul(F.normalize(first, dim=2), F.normalize(matched, dim=2).transpose(1, 2)) / TEMPERATURE
    number = torch.arange(frames, device=first.device)
    itself = number.unsqueeze(0) == number.unsqueeze(1)
    near = (number.unsqueeze(0) - number.unsqueeze(1)).abs() <= NEAR
    same = labels.unsqueeze(1) == labels.unsqueeze(2)
    outside = ((place < 0) | (place > frames - 1)).unsqueeze(1)  # matched by nothing, so no negative either
    scores = scores.masked_fill((near | same | outside | outside.transpose(1, 2)) & ~itself, FAR)
    target = number.expand(len(first), -1)
    losses = F.cross_entropy(scores, target, reduction="none") + F.cross_entropy(scores.transpose(1, 2), target, reduction="none")
    weight = known.float() / known.sum().clamp_min(1)
    return (losses * weight).sum() / 2, ((scores.argmax(2) == target) * weight).sum()
