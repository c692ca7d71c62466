"""Where something stands that no package can hold, what goes in and out around it, what shares or writes to its tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import DIGAMMA, ERFINV, LGAMMA, Around, Block, case, one, positive

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
