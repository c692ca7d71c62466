"""A graph's layers as the synthesizer's: taken one after another, each by what reaches it.

Exporters keep, lose or merge the names of weights, so a weight is known by its place in the graph; where the file has
the layer's own name too, both have to agree. Strides, dilations and kernels give the config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ...errors import IncompleteCheckpoint
from ..flow import COUPLING_LAYERS, WAVENET_LAYERS
from ..text_encoder import RELATIVE_WINDOW
from .onnx_file import Array, OnnxFile, OnnxInput
from .onnx_layers import Layer, Layers, Sources, UnknownGraph

BAND = 2 * RELATIVE_WINDOW + 1
SEGMENT, SPECTRUM = 32, 1025  # training's entries of a config, which a graph does not hold
MAX_LAYERS = 64  # of an encoder, and levels of a decoder
_BLOCK_NAME = re.compile(r"\bdec\.resblocks\.(\d{1,3})\.")


class Network:
    """The layers of a graph, taken one after another as the synthesizer has them."""

    def __init__(self, file: OnnxFile, roles: dict[str, OnnxInput]) -> None:
        self.file, self.has_f0 = file, "pitch" in roles
        self.tensors: dict[str, torch.Tensor] = {}
        self.places: dict[str, set[str]] = {}  # entry -> the stored tensors that it is made of
        self.rates: list[int] = []
        self._settings: dict[str, Any] = {}
        self._layers = Layers(file, roles)
        self._used: set[Layer] = set()
        self._by_sources: dict[Sources, list[Layer]] = {}
        for layer in self._layers.found:
            self._by_sources.setdefault(layer.sources, []).append(layer)

    # What is taken is marked, so that whatever is left over at the end is noticed.

    def _all(self, kind: str, sources: Iterable[Layer | str]) -> list[Layer]:
        return [layer for layer in self._by_sources.get(frozenset(sources), []) if layer.kind == kind and layer not in self._used]

    def _one(self, kind: str, sources: Iterable[Layer | str], name: str) -> Layer:
        found = self._all(kind, sources)
        if len(found) != 1:
            raise UnknownGraph(f"{len(found) or 'nothing'} in the place of {name}")
        return self._take(found[0], name)

    def _take(self, layer: Layer, name: str) -> Layer:
        """Keep a layer's parameters under the name of its place."""
        self._used.add(layer)
        names = {"norm": ("gamma", "beta")}.get(layer.kind, ("weight", "bias"))
        weight = self._value(layer.weight, name)
        if layer.kind == "linear":
            weight = self._linear(layer, weight, name)
        elif layer.kind == "norm":
            weight = weight.reshape(-1)
        self._keep(f"{name}.{names[0]}", weight, layer.weight)
        if layer.bias is not None:
            self._keep(f"{name}.{names[1]}", self._value(layer.bias, name).reshape(-1), layer.bias)
        if layer.kind in ("conv", "upsample"):
            self._check_conv(layer, weight, name)
        return layer

    def _value(self, name: str, place: str) -> Array:
        value = self.file.constant(name)
        if value is None:
            raise UnknownGraph(f"the weights of {place} are computed in a way that is not known")
        return value

    def _linear(self, layer: Layer, weight: Array, name: str) -> Array:
        """(out, in), as torch keeps it."""
        weight = weight.reshape(weight.shape[-2:]) if weight.ndim >= 2 else weight.reshape(1, -1)
        if layer.node.op_type == "Gemm":
            if any(layer.settings.get(key, 1.0) != 1.0 for key in ("alpha", "beta")) or layer.settings.get("transA"):
                raise UnknownGraph(f"{name} is scaled")
            return weight if layer.settings.get("transB") else weight.T
        return weight.T

    def _keep(self, name: str, array: Array, value: str) -> None:
        self.tensors[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).copy())
        self.places[name] = self.file.leaves(value)

    def _check_conv(self, layer: Layer, weight: Array, name: str) -> None:
        if weight.ndim != 3:
            raise UnknownGraph(f"{name} has a kernel of shape {weight.shape}")
        if layer.settings.get("group", 1) != 1 or layer.settings.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise UnknownGraph(f"{name} is grouped or pads by itself")
        strided = layer.kind == "upsample" or name.startswith("dec.noise_convs.")
        if not strided and self._stride(layer) != 1:
            raise UnknownGraph(f"{name} has a stride of {self._stride(layer)}")

    def _stride(self, layer: Layer) -> int:
        return int(layer.settings.get("strides", [1])[0])

    def _dilation(self, layer: Layer) -> int:
        return int(layer.settings.get("dilations", [1])[0])

    def walk(self) -> None:
        """Take every layer in its place. Raises UnknownGraph at the first that is missing, and where some are left over."""
        features = self._one("linear", {"features"}, "enc_p.emb_phone")
        start: set[Layer | str] = {features}
        if self.has_f0:
            start.add(self._one("table", {"pitch"}, "enc_p.emb_pitch"))
        else:
            self._unscale(features, "enc_p.emb_phone")
        speaker = self._one("table", {"speaker"}, "emb_g")
        encoded = self._encoder(start)
        proj = self._one("conv", encoded, "enc_p.proj")
        latent: set[Layer | str] = {proj} if self._all("conv", {proj}) else {proj, "noise"}
        for index in reversed(range(0, 2 * COUPLING_LAYERS, 2)):
            latent.add(self._coupling(latent, speaker, f"flow.flows.{index}"))
        last = self._decoder(latent, speaker)
        if self._layers.last != {last}:
            raise UnknownGraph("the output is not the decoder's")
        left = [layer for layer in self._layers.found if layer not in self._used]
        if left:
            raise UnknownGraph(f"{len(left)} more layers than a synthesizer has, {left[0].node.name or left[0].node.op_type} among them")

    def _unscale(self, layer: Layer, name: str) -> None:
        """Features are multiplied by the root of their width; where no pitch is added first, optimisers merge that into the layer."""
        passed, value = 1.0, layer.node.output[0]
        for _ in range(MAX_LAYERS):
            following = list(self.file.following(value))
            if len(following) != 1 or following[0].op_type == "LeakyRelu":
                break
            if following[0].op_type == "Mul":
                factors = [found for given in following[0].input if (found := self.file.constant(given)) is not None and found.size == 1]
                passed *= float(factors[0].reshape(())) if factors else 1.0
            value = following[0].output[0]
        scale = math.sqrt(self.tensors[f"{name}.weight"].shape[0])
        if not math.isclose(passed, scale, rel_tol=1e-4):
            for entry in (f"{name}.weight", f"{name}.bias"):
                self.tensors[entry] = self.tensors[entry] * (passed / scale)

    def _encoder(self, x: set[Layer | str]) -> set[Layer | str]:
        count = 0
        while len(self._all("conv", x)) == 3:
            if count == MAX_LAYERS:
                raise UnknownGraph("the text encoder does not end")
            name = f"enc_p.encoder.attn_layers.{count}"
            heads = self._attention(x, name)
            norm: set[Layer | str] = {self._one("norm", x | heads, f"enc_p.encoder.norm_layers_1.{count}")}
            first = self._one("conv", norm, f"enc_p.encoder.ffn_layers.{count}.conv_1")
            second = self._one("conv", {first}, f"enc_p.encoder.ffn_layers.{count}.conv_2")
            x = {self._one("norm", norm | {second}, f"enc_p.encoder.norm_layers_2.{count}")}
            count += 1
        if not count:
            raise UnknownGraph(f"{len(self._all('conv', x)) or 'nothing'} in the place of the first attention")
        self._settings["layers"] = count
        return x

    def _attention(self, x: set[Layer | str], name: str) -> set[Layer | str]:
        """Query, key and value look the same; what they are multiplied with tells them apart."""
        three = self._all("conv", x)
        queries = [(conv, bands[0]) for conv in three if len(bands := self._all("band", {conv})) == 1]
        if len(queries) != 1:
            raise UnknownGraph(f"{len(queries) or 'nothing'} in the place of {name}.conv_q with its relative positions")
        query, near_keys = queries[0]
        keys = [(conv, bands[0]) for conv in three if conv is not query and len(bands := self._all("band", {query, conv, near_keys})) == 1]
        if len(keys) != 1:
            raise UnknownGraph(f"{len(keys) or 'nothing'} in the place of {name}.conv_k with its relative positions")
        key, near_values = keys[0]
        value = next(conv for conv in three if conv is not query and conv is not key)
        for letter, conv in (("q", query), ("k", key), ("v", value)):
            self._take(conv, f"{name}.conv_{letter}")
        hidden = self.tensors[f"{name}.conv_q.weight"].shape[0]
        for entry, band, keyed in ((f"{name}.emb_rel_k", near_keys, True), (f"{name}.emb_rel_v", near_values, False)):
            self._used.add(band)
            self._keep(entry, self._band(band, keyed, entry), band.weight)
            width = self.tensors[entry].shape[2]
            if hidden % width or self._settings.setdefault("heads", hidden // width) != hidden // width:
                raise UnknownGraph(f"{entry} is {width} wide in a layer of {hidden}")
        return {self._one("conv", {query, key, value, near_keys, near_values}, f"{name}.conv_o")}

    def _band(self, layer: Layer, keyed: bool, name: str) -> Array:
        """Relative positions as (1, 21, width): turned for keys, and padded to a clip's length in exports of one length."""
        found = self.file.leaf(layer.weight)
        if found is None or found[0].ndim < 2 or int(np.prod(found[0].shape[:-2])) != 1:
            raise UnknownGraph(f"{name} is computed in a way that is not known")
        table, turned = found
        table = table.reshape(table.shape[-2:])
        if turned != keyed:
            table = table.T
        rows = len(table)
        if rows < BAND or rows % 2 == 0:
            frames = (rows + 1) // 2
            raise UnknownGraph(f"{name} was cut to a clip of {frames} frames, which loses what is further apart")
        edge = (rows - BAND) // 2
        if np.any(table[:edge]) or np.any(table[rows - edge :]):
            raise UnknownGraph(f"{name} has values for more than {RELATIVE_WINDOW} frames on either side")
        return table[edge : edge + BAND][None]

    def _coupling(self, latent: set[Layer | str], speaker: Layer, name: str) -> Layer:
        pre = self._one("conv", latent, f"{name}.pre")
        state: set[Layer | str] = {pre}
        skipped: set[Layer | str] = set()
        condition: Layer | None = None
        for index in range(WAVENET_LAYERS):
            gates = self._one("conv", state, f"{name}.enc.in_layers.{index}")
            if condition is None:
                condition = self._condition(gates, speaker, f"{name}.enc.cond_layer")
            both = self._one("conv", {gates, condition}, f"{name}.enc.res_skip_layers.{index}")
            state.add(both)
            skipped.add(both)
        return self._one("conv", skipped, f"{name}.post")

    def _condition(self, gates: Layer, speaker: Layer, name: str) -> Layer:
        """The layer of the speaker's whose output meets the gates."""
        found = [layer for layer in self._all("conv", {speaker}) if self._all("conv", {gates, layer})]
        if len(found) != 1:
            raise UnknownGraph(f"{len(found) or 'nothing'} in the place of {name}")
        return self._take(found[0], name)

    def _decoder(self, latent: set[Layer | str], speaker: Layer) -> Layer:
        pre = self._one("conv", latent, "dec.conv_pre")
        x: set[Layer | str] = {pre, self._one("conv", {speaker}, "dec.cond")}
        source = self._source() if self.has_f0 else None
        blocks: list[tuple[int, tuple[int, ...], int]] = []
        while self._all("upsample", x):
            level = len(self.rates)
            if level == MAX_LAYERS:
                raise UnknownGraph("the decoder does not end")
            up = self._one("upsample", x, f"dec.ups.{level}")
            self.rates.append(self._stride(up))
            self._settings.setdefault("kernels", []).append(int(self.tensors[f"dec.ups.{level}.weight"].shape[2]))
            x = {up} if source is None else {up, self._noise(up, source, level)}
            found = self._blocks(x, level, blocks)
            x = x | found
        if not self.rates:
            raise UnknownGraph("nothing in the place of dec.ups.0")
        self._settings["blocks"] = blocks
        return self._one("conv", x, "dec.conv_post")

    def _source(self) -> Layer:
        """`l_linear`, whatever the sine before it is made of."""
        found = [layer for layer in self._layers.found if layer.kind == "linear" and "pitchf" in layer.sources]
        if len(found) != 1 or not found[0].sources <= {"pitchf", "noise"}:
            raise UnknownGraph(f"{len(found) or 'nothing'} in the place of dec.m_source.l_linear")
        return self._take(found[0], "dec.m_source.l_linear")

    def _noise(self, up: Layer, source: Layer, level: int) -> Layer:
        found = [layer for layer in self._all("conv", {source}) if self._all("conv", {up, layer})]
        if len(found) != 1:
            raise UnknownGraph(f"{len(found) or 'nothing'} in the place of dec.noise_convs.{level}")
        return self._take(found[0], f"dec.noise_convs.{level}")

    def _blocks(self, x: set[Layer | str], level: int, blocks: list[tuple[int, tuple[int, ...], int]]) -> set[Layer | str]:
        """The residual blocks of a level; those of the first level set the order, which the sum does not mind."""
        chains = sorted((self._chain(x, first) for first in self._all("conv", x)), key=self._block_order)
        kinds = [self._block_kind(chain) for chain in chains]
        if not blocks:
            blocks += kinds
        if sorted(kinds) != sorted(blocks):
            raise UnknownGraph(f"the residual blocks of level {level} differ from those of level 0")
        reached: set[Layer | str] = set()
        for position, kind in enumerate(blocks):
            chosen = kinds.index(kind)
            chain = chains.pop(chosen)
            kinds.pop(chosen)
            name = f"dec.resblocks.{level * len(blocks) + position}"
            for index, (dilated, plain) in enumerate(chain):
                self._take(dilated, f"{name}.{'convs' if plain is None else 'convs1'}.{index}")
                if plain is not None:
                    self._take(plain, f"{name}.convs2.{index}")
                reached.add(plain or dilated)
        return reached

    def _chain(self, x: set[Layer | str], first: Layer) -> list[tuple[Layer, Layer | None]]:
        """A block's convolutions in order: pairs, or single ones in a block of the second kind."""
        chain: list[tuple[Layer, Layer | None]] = []
        state, dilated = set(x), first
        while True:
            after = self._all("conv", {dilated})
            if len(after) > 1 or (chain and (len(after) == 1) != (chain[0][1] is not None)):
                raise UnknownGraph("a residual block of another make")
            chain.append((dilated, after[0] if after else None))
            state.add(after[0] if after else dilated)
            following = self._all("conv", state)
            if not following or len(chain) == MAX_LAYERS:
                return chain
            if len(following) > 1:
                raise UnknownGraph("a residual block of another make")
            dilated = following[0]

    def _block_order(self, chain: list[tuple[Layer, Layer | None]]) -> tuple[int, tuple[int, tuple[int, ...], int]]:
        """By the names that the file has, else as RVC's configs have them, small kernels first."""
        found = (_BLOCK_NAME.search(name) for name in self.file.leaves(chain[0][0].weight))
        return min((int(match[1]) for match in found if match), default=0), self._block_kind(chain)

    def _block_kind(self, chain: list[tuple[Layer, Layer | None]]) -> tuple[int, tuple[int, ...], int]:
        """Kernel size, dilations, and 1 or 2 for the kind of block."""
        sizes = {self._value(layer.weight, "a residual block").shape[-1] for pair in chain for layer in pair if layer is not None}
        expected, kind = (3, 1) if chain[0][1] is not None else (2, 2)
        if len(sizes) != 1 or len(chain) != expected:
            raise UnknownGraph(f"a residual block of {len(chain)} parts and kernels {sorted(sizes)}")
        return int(sizes.pop()), tuple(self._dilation(dilated) for dilated, _ in chain), kind

    def config(self) -> list[Any]:
        """The 18 entries; what only training reads is filled in, and the rate is the caller's."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        blocks = self._settings["blocks"]
        kinds = {kind for _, _, kind in blocks}
        if len(kinds) != 1:
            raise UnknownGraph("residual blocks of both kinds")
        first = shapes["enc_p.encoder.ffn_layers.0.conv_1.weight"]
        return [
            SPECTRUM,
            SEGMENT,
            shapes["enc_p.proj.weight"][0] // 2,
            shapes["enc_p.emb_phone.weight"][0],
            first[0],
            self._settings["heads"],
            self._settings["layers"],
            first[2],
            0,
            str(kinds.pop()),
            [size for size, _, _ in blocks],
            [list(dilations) for _, dilations, _ in blocks],
            self.rates,
            shapes["dec.ups.0.weight"][0],
            self._settings["kernels"],
            shapes["emb_g.weight"][0],
            shapes["emb_g.weight"][1],
            0,
        ]

    def check_names(self) -> None:
        """Where the file names a weight as torch does, it has to be in that weight's place. Raises IncompleteCheckpoint."""
        stored = self.file.initializers
        for name, leaves in self.places.items():
            base = name.removesuffix(".weight")
            forms = {
                name,
                f"{name}_g",
                f"{name}_v",
                f"{base}.parametrizations.weight.original0",
                f"{base}.parametrizations.weight.original1",
            }
            named = forms & stored
            if named and not named & leaves:
                raise IncompleteCheckpoint(
                    f"{self.file.path} contradicts itself: {sorted(named)[0]} is not where the graph uses {name};"
                    " convert the voice's .pth instead"
                )
