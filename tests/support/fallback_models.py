"""Small networks, each with something that no package can hold, and what exactly has to stay in PyTorch of it.

`planted` is what was put in, `forced` what a named rule leaves there besides: both as "operation rule", once for each time.
`fp32` is what stays there in single precision, where that is not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A network to build, what it is called with, and what stays in PyTorch."""

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    planted: tuple[str, ...]
    forced: tuple[str, ...] = ()
    fp32: tuple[str, ...] | None = None
    kwargs: Callable[[], dict[str, Any]] = dict
    training: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """With the same weights every time."""
        torch.manual_seed(11)
        network = self.network()
        return network.train() if self.training else network.eval()

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same numbers every time."""
        torch.manual_seed(7)
        return self.inputs(), self.kwargs()

    def left(self, precision: str) -> list[str]:
        """Everything that stays in PyTorch, sorted."""
        return sorted((*self.planted, *self.forced) if precision == "fp16" or self.fp32 is None else self.fp32)


CASES: dict[str, Case] = {}
LGAMMA = "aten.lgamma.default unsupported"
DIGAMMA = "aten.digamma.default unsupported"
ERFINV = "aten.erfinv.default unsupported"


def case(*planted: str, inputs: Callable[[], tuple[Any, ...]], **options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(network: type[nn.Module]) -> type[nn.Module]:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in network.__name__).lstrip("_")
        CASES[name] = Case(name, network, inputs, planted, **options)
        return network

    return add


def one(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape),)


def positive(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.rand(*shape) * 3 + 0.5,)


class Block(nn.Module):
    """Some work before or after: two linear layers."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(x)))


class Around(nn.Module):
    """Something between two blocks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.before, self.after = Block(width), Block(width)

    def between(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.after(self.between(self.before(x)))


# ------------------------------------------------------------ where it stands


@case(LGAMMA, inputs=positive(3, 12))
class AtTheStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.lgamma(x))


@case(DIGAMMA, inputs=one(3, 12))
class InTheMiddle(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.digamma(F.softplus(x) + 1)


@case(ERFINV, inputs=one(3, 12))
class AtTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(0.8 * torch.tanh(self.block(x)))


@case(DIGAMMA, inputs=one(2, 12))
class InABranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.after = Block(), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.left(x) + torch.digamma(F.softplus(self.right(x)) + 1))


@case(LGAMMA, LGAMMA, LGAMMA, inputs=one(2, 12))
class InALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.lgamma(F.softplus(block(x)) + 2)
        return x


@case("higher_order.cond control_flow", inputs=one(2, 12))
class UnderCond(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2.0, lambda y: y - 1.0, (x,))


@case("higher_order.while_loop control_flow", inputs=one(2, 12))
class UnderWhileLoop(Around):
    def between(self, x: Tensor) -> Tensor:
        def smaller(y: Tensor) -> Tensor:
            return y.abs().max() > 0.25

        return torch._higher_order_ops.while_loop(smaller, lambda y: (y * 0.5,), (x,))[0]


@case(LGAMMA, DIGAMMA, inputs=one(2, 12))
class TwoInADiamond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.before(x)) + 2
        return self.after(torch.lgamma(x) * torch.digamma(x))


@case(LGAMMA, DIGAMMA, inputs=one(2, 12))
class OneAfterTheOther(Around):
    def between(self, x: Tensor) -> Tensor:
        return torch.digamma(1 + self.after(torch.lgamma(F.softplus(x) + 3)).abs())


# ------------------------------------------------------------ what goes in and comes out


@case(LGAMMA, inputs=lambda: (torch.randn(2, 12), torch.rand(2, 12) + 2.5))
class SeveralInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.after = Block(), Block()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.after(self.block(x) * torch.lgamma(y))


@case(DIGAMMA, inputs=one(2, 12))
class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Block(), Block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.before(x)
        y = torch.digamma(F.softplus(x) + 1)
        return x, y, self.after(y)


@case(DIGAMMA, inputs=one(2, 12))
class DictOutputs(Around):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.before(x)
        return {"hidden": hidden, "out": self.after(torch.digamma(F.softplus(hidden) + 1))}


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@case(DIGAMMA, inputs=one(2, 12))
class NestedOutputs(Around):
    def forward(self, x: Tensor) -> Any:
        hidden = self.before(x)
        return [hidden, {"pair": Pair(self.after(torch.digamma(F.softplus(hidden) + 1)), x), "number": 3}, (hidden, None)]


@case(LGAMMA, inputs=lambda: ({"a": torch.randn(2, 12), "b": [torch.rand(2, 12) + 2.5]},))
class NestedInputs(Around):
    def forward(self, x: dict[str, Any]) -> Tensor:
        return self.after(self.before(x["a"]) * torch.lgamma(x["b"][0]))


@case(LGAMMA, inputs=one(2, 12), kwargs=lambda: {"scale": torch.full((1, 12), 1.5), "factor": 2.0})
class KeywordArguments(Around):
    def forward(self, x: Tensor, *, scale: Tensor, factor: float = 1.0) -> Tensor:
        return self.after(torch.lgamma(F.softplus(self.before(x)) * scale + 2) * factor)


@case(DIGAMMA, inputs=one(2, 12))
class AnInputAsOutput(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.after(torch.digamma(F.softplus(self.before(x)) + 1))


@case(DIGAMMA, inputs=one(2, 12))
class AParameterAsOutput(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.after(torch.digamma(F.softplus(self.before(x)) + 1)), self.before.wide.bias


@case(LGAMMA, inputs=lambda: (torch.randint(0, 30, (2, 9)),))
class IntegerInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.block = nn.Embedding(30, 12), Block()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.block(self.embedding(tokens))
        return torch.lgamma(F.softplus(x) + 2), x.argmax(-1)


@case(DIGAMMA, inputs=lambda: (torch.randn(2, 9, 12), torch.arange(9).repeat(2, 1) < torch.tensor([[9], [6]])))
class BooleanInput(Around):
    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.before(x).masked_fill(~mask.unsqueeze(-1), 0.5)
        return self.after(torch.digamma(F.softplus(x) + 1)), mask & (x.sum(-1) > 0)


@case(LGAMMA, inputs=lambda: (torch.randn(2, 12), 3, 0.5, True, None))
class ScalarInputs(Around):
    def forward(self, x: Tensor, times: int, scale: float, twice: bool, nothing: Any) -> Tensor:
        for _ in range(times):
            x = self.before(x) * scale
        x = torch.lgamma(F.softplus(x) + 2)
        return self.after(self.after(x) if twice and nothing is None else x)


@case(LGAMMA, inputs=lambda: (torch.randn(12), torch.tensor(2.5)))
class NumberOutputs(Around):
    """Tensors without axes, in and out."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.lgamma(F.softplus(self.before(x)) * scale + 2)
        return self.after(x) * scale, (self.after(x) * x).sum()


# ------------------------------------------------------------ shared, viewed, written to


@case(DIGAMMA, inputs=one(2, 12))
class SharedTensor(Around):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(x)
        return self.after(torch.digamma(F.softplus(hidden) + 1) + hidden) * hidden


@case(DIGAMMA, inputs=one(2, 12))
class SharedParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.digamma(F.softplus(self.block(x)) + 1))


@case(LGAMMA, inputs=one(2, 6, 12))
class Views(Around):
    def between(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2).reshape(2, 3, 4, 6).permute(0, 2, 1, 3)[:, 1:3, ::2]
        y = torch.lgamma(F.softplus(y) + 2)
        return y.expand(2, 2, 2, 6).flatten(1).view(2, 4, 6).repeat(1, 3, 1).transpose(1, 2)


@case(DIGAMMA, inputs=one(2, 12))
class AddedInPlace(Around):
    def between(self, x: Tensor) -> Tensor:
        y = x * 2
        y += 1
        x.mul_(0.5)
        return torch.digamma(F.softplus(y).add_(1)).sub_(x)


@case(LGAMMA, inputs=one(2, 6, 12), forced=("aten.slice_scatter.default island",))
class SliceAssignment(Around):
    def between(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :2] = torch.lgamma(F.softplus(x[:, 2:4]) + 2)
        y[:, 4, 3:6] *= 3
        return y


@case(DIGAMMA, inputs=one(4, 12), forced=("aten.index_put.default island",))
class IndexPut(Around):
    def between(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[torch.tensor([0, 2])] = torch.digamma(F.softplus(x[1:3]) + 1)
        return y


@case(DIGAMMA, inputs=one(4, 12))
class MaskedFill(Around):
    def between(self, x: Tensor) -> Tensor:
        y = torch.digamma(F.softplus(x) + 1)
        return y.masked_fill_(torch.ones(12).cumsum(0) > 9, 0.25)


@case(LGAMMA, inputs=one(2, 12), forced=("aten.add.Tensor island",))
class ChangingBuffer(Around):
    """A running mean and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def between(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.calls += 1
        return torch.lgamma(F.softplus(x - self.mean) + 2)


@case(LGAMMA, inputs=one(2, 12))
class WrittenInput(Around):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.lgamma(F.softplus(self.before(x)) + 2)
        x.copy_(y * 0.5)
        return self.after(y)


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
