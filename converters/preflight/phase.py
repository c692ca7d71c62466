"""Phase arithmetic: a running sum that becomes the argument of a sine.

In half precision such an argument is lost twice. Its unit is a cycle, and float16 resolves 1/8 of a radian at 128 and
nothing below a radian from 2048 on; and what is summed is rounded before every step, so a frequency that is off by
2**-11 is off by a cycle after two thousand of them. What matters is everything from where the summed values begin to where the sine
ends, so the rule names all of it:

- a *cumulative* operation from which a sine or cosine can be reached through arithmetic,
- the arithmetic between the two, and the sine or cosine,
- the arithmetic that computes what is summed.

Arithmetic here is what keeps or carries a phase: sums, products and quotients, rounding and remainders, comparisons and
selections, resampling, and what only moves. A convolution, a matrix product, a reduction or an activation ends it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import torch

CUMULATIVE = frozenset({"cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"})
PERIODIC = frozenset({"sin", "cos", "tan"})
_CARRIES = """
    add sub rsub mul div true_divide floor_divide neg abs reciprocal remainder fmod frac floor ceil round trunc sign square
    lt le gt ge eq ne logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not
    where masked_fill maximum minimum clamp clamp_min clamp_max addcmul addcdiv lerp
    _to_copy to clone alias lift_fresh lift_fresh_copy detach contiguous
    view _unsafe_view reshape expand expand_as permute transpose t squeeze unsqueeze flatten unflatten select slice narrow
    select_scatter slice_scatter copy fill cat stack split split_with_sizes unbind chunk repeat tile flip roll
    pad constant_pad_nd replication_pad1d reflection_pad1d repeat_interleave getitem
    upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d
    index_select gather _unsafe_index as_strided
"""
CARRIES = frozenset(_CARRIES.split())


def phase_operations(nodes: Iterable[torch.fx.Node]) -> frozenset[str]:
    """Names of the operations of phase arithmetic: what is summed, the running sums, what is made of them, and the sines."""
    nodes = list(nodes)
    sines = [node for node in nodes if packet(node) in PERIODIC]
    sums = [node for node in nodes if packet(node) in CUMULATIVE]
    if not sines or not sums:
        return frozenset()
    carries = CARRIES | CUMULATIVE
    below = _reached(sums, lambda node: node.users, carries)
    heard = [node for node in sines if any(source in below for source in node.all_input_nodes)]
    above = _reached(heard, lambda node: node.all_input_nodes, carries)
    summed = _reached([node for node in sums if node in above], lambda node: node.all_input_nodes, CARRIES)
    return frozenset(node.name for node in (*heard, *(below & above), *summed))


def packet(node: torch.fx.Node) -> str:
    """ "cumsum" of aten.cumsum.default; "" for what is no operation."""
    if node.op != "call_function":
        return ""
    name = getattr(node.target, "overloadpacket", node.target)
    return getattr(name, "__name__", "")


def _reached(
    starts: Iterable[torch.fx.Node], neighbours: Callable[[torch.fx.Node], Iterable[torch.fx.Node]], through: frozenset[str]
) -> set[torch.fx.Node]:
    """The starts and what is reached from them through operations of these names."""
    found = set(starts)
    queue = deque(found)
    while queue:
        for other in neighbours(queue.popleft()):
            if other not in found and packet(other) in through:
                found.add(other)
                queue.append(other)
    return found
