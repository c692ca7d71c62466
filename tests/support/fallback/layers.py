"""Networks of layers of every kind around something that no package can hold, and operations that are at fault themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import DIGAMMA, LGAMMA, Around, Block, case, one

# ------------------------------------------------------------ among layers of every kind


@case(
    DIGAMMA,
    inputs=one(2, 9, 16),
    forced=("aten.ones.default island", "aten.tril.default island", "aten.scaled_dot_product_attention.default island"),
)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Block(16), Block(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.view(2, 9, 4, 4).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        mask = torch.ones(9, 9, dtype=torch.bool).tril()
        y = F.scaled_dot_product_attention(q, k, torch.digamma(F.softplus(v) + 1), attn_mask=mask)
        return self.after(self.out(y.transpose(1, 2).flatten(2)))


@case(LGAMMA, inputs=one(1, 4, 40))
class Convolution1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 5, padding=2, stride=2), nn.Conv1d(8, 6, 3, dilation=2, groups=2)
        self.third = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(torch.lgamma(F.softplus(self.first(x)) + 2))))


@case(DIGAMMA, inputs=one(1, 3, 12, 10))
class Convolution2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, (3, 1), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.second(F.max_pool2d(torch.digamma(F.softplus(self.first(x)) + 1), 2)), 0.1).mean((2, 3))


@case(LGAMMA, inputs=one(1, 6, 20))
class TransposedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1), nn.Conv1d(4, 3, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.lgamma(F.softplus(self.first(x)) + 2)))


@case(DIGAMMA, inputs=one(2, 6, 20))
class BatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 6, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.second(torch.digamma(F.softplus(self.norm(self.first(x))) + 1))))


@case(
    LGAMMA,
    "aten.gru.input unsupported",
    inputs=one(2, 10, 6),
    forced=("aten.zeros.default island", "aten.softplus.default island", "aten.add.Tensor island"),
)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.out = Block(6), Block(16)
        self.gru = nn.GRU(6, 8, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.gru(self.before(x))
        return self.out(torch.lgamma(F.softplus(y) + 2)), last


@case(DIGAMMA, inputs=one(2, 5, 6))
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) * 0.4)
        self.before, self.after = Block(6), Block(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = torch.einsum("btc,cd->bdt", x, self.weight)
        y = torch.einsum("bdt,bds->bts", torch.digamma(F.softplus(y) + 1), y)
        return self.after(torch.einsum("bts,btc->bsc", y.softmax(-1), x))


@case(LGAMMA, inputs=one(2, 5, 12))
class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.block, self.group = nn.LayerNorm(12), Block(), nn.GroupNorm(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.group(torch.lgamma(F.softplus(self.block(self.norm(x))) + 2))).softmax(-1)


# ------------------------------------------------------------ results that no package holds


@case(
    "aten._to_copy.default type:float64",
    "aten.mul.Tensor type:float64",
    "aten.sum.dim_IntList type:float64",
    "aten._to_copy.default type:float64",
    inputs=one(2, 12),
)
class Float64(Around):
    def between(self, x: Tensor) -> Tensor:
        y = x.double()
        return x * (y * y).sum(-1, keepdim=True).float()


@case(
    "aten.fft_rfft.default type:complex64",
    "aten.mul.Tensor type:complex64",
    "aten.fft_irfft.default type:complex64",
    inputs=one(2, 12),
)
class Fourier(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * 0.5, n=12)


@case("aten.polar.default type:complex64", "aten.mul.Tensor type:complex64", "aten.view_as_real.default type:complex64", inputs=one(2, 12))
class ComplexNumbers(Around):
    def between(self, x: Tensor) -> Tensor:
        z = torch.polar(x.abs(), x)
        return (z * z).real


@case("aten.randn_like.default randomness", inputs=one(2, 12))
class Noise(Around):
    def between(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.randn_like(x)


@case(
    "aten.rand.default randomness",
    "aten.bernoulli.default randomness",
    "aten.randn.default randomness",
    inputs=one(2, 12),
    forced=("aten.full.default island",),
)
class SeveralDraws(Around):
    """In the order of the network, or a seed gives other numbers."""

    def between(self, x: Tensor) -> Tensor:
        y = self.after(torch.rand(2, 12)) + self.before(x)
        kept = torch.bernoulli(torch.full((2, 12), 0.5))
        return y * kept + torch.randn(2, 12)


@case("aten.nonzero.default dynamic", inputs=one(4, 12))
class PositionsAtTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.block(x)
        return x, (x > 0).nonzero()


@case("aten.masked_select.default dynamic", inputs=one(4, 12))
class SelectedAtTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).masked_select(x > 0)


@case("aten.kthvalue.default unsupported", inputs=one(2, 12))
class SeveralResults(Around):
    def between(self, x: Tensor) -> Tensor:
        values, places = x.kthvalue(5, -1, keepdim=True)
        return x - values + places.float() * 0.1


@case("aten.cummax.default unsupported", inputs=one(2, 12))
class ResultsOnTwoSides(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = self.before(x).cummax(-1)
        return self.after(values), places


@torch.library.custom_op("rvc_coreml_tests::doubled_sine", mutates_args=())
def doubled_sine(x: Tensor) -> Tensor:
    return torch.sin(x) * 2


@doubled_sine.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@case("rvc_coreml_tests.doubled_sine.default unsupported", inputs=one(2, 12))
class CustomOperation(Around):
    def between(self, x: Tensor) -> Tensor:
        return doubled_sine(x)


# ------------------------------------------------------------ accepted by coremltools and wrong in Core ML


@case("aten.remainder.Scalar denied:remainder", inputs=one(2, 12))
class Remainder(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.remainder(x * 0.01 + 0.5, 1.0)


@case("aten.atan2.default denied:atan2", inputs=one(2, 12))
class Angle(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.atan2(x, x.flip(-1).abs() + 1)


@case("aten.upsample_linear1d.vec denied:upsample_linear1d", inputs=one(1, 4, 12))
class LinearResize(Around):
    def between(self, x: Tensor) -> Tensor:
        return F.interpolate(F.interpolate(x, scale_factor=3.0, mode="nearest"), scale_factor=1 / 3, mode="linear")


@case("aten.tanh.default unwanted", inputs=one(2, 12), options={"keep_in_pytorch": ("aten.tanh",)})
class KeptByOperation(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@case(
    "aten.linear.default unwanted",
    "aten.gelu.default unwanted",
    "aten.linear.default unwanted",
    "aten.add.Tensor unwanted",
    inputs=one(2, 12),
    options={"keep_in_pytorch": ("middle",)},
)
class KeptByModule(Around):
    def __init__(self) -> None:
        super().__init__()
        self.middle = Block()

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x)


@case("aten.permute.default rank", "aten.reshape.default rank", inputs=one(2, 2, 2, 3, 2, 4))
class SixAxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.after = Block(4), Block(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x.permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 3, 8))


@case(
    "aten.abs.default phase",
    "aten.mul.Tensor phase",
    "aten.cumsum.default phase",
    "aten.mul.Tensor phase",
    "aten.sin.default phase",
    "aten.add.Tensor phase",
    inputs=one(1, 40, 12),
    fp32=(),
)
class Phase(Around):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.sin(torch.cumsum(x.abs() * 0.1, 1) * 6.2831853)
