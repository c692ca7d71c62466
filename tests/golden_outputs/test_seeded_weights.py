from __future__ import annotations

import zlib

import pytest
import torch
from rvc_coreml.golden_outputs.seeded_weights import noise_draw, seeded_state, seeded_tensor
from torch import Tensor

SHAPES: dict[str, tuple[int, ...]] = {
    "dec.conv_pre.weight": (512, 192, 7),
    "dec.ups.0.weight_g": (512, 1, 1),
    "dec.conv_post.weight": (1, 32, 7),
    "enc_p.emb_phone.weight": (192, 768),
    "enc_p.encoder.norm_layers_1.0.gamma": (192,),
    "emb_g.weight": (109, 256),
}


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_is_the_same_each_time(name: str) -> None:
    once, again = seeded_tensor(name, SHAPES[name], 3), seeded_tensor(name, list(SHAPES[name]), 3)
    assert once.dtype == torch.float32
    assert once.shape == SHAPES[name]
    assert torch.equal(once, again)


def test_a_tensor_does_not_depend_on_what_was_made_before_or_on_torchs_seed() -> None:
    torch.manual_seed(1)
    forwards = seeded_state(SHAPES.items())
    torch.manual_seed(2)
    torch.randn(1000)
    backwards = seeded_state(reversed(SHAPES.items()))
    assert list(backwards) == list(reversed(forwards))
    for name, tensor in forwards.items():
        assert torch.equal(tensor, backwards[name])
        assert torch.equal(tensor, seeded_tensor(name, SHAPES[name]))


def test_making_tensors_leaves_torchs_seed_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.randn(5)
    torch.manual_seed(7)
    seeded_tensor("a.weight", (10, 10))
    noise_draw(0, (10,), 1)
    assert torch.equal(torch.randn(5), wanted)


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "a.weight_g", "a.weight_v", "a.gamma", "a.running_var", "emb_g.weight"])
def test_names_and_seeds_give_other_values(name: str) -> None:
    tensors = [seeded_tensor(name, (40, 5)), seeded_tensor(name, (40, 5), 1), seeded_tensor("x" + name, (40, 5))]
    assert not any(torch.equal(tensors[i], tensors[j]) for i in range(3) for j in range(i))


def test_seeded_state_passes_its_seed_on() -> None:
    assert torch.equal(seeded_state([("a.weight", (3, 3))], 5)["a.weight"], seeded_tensor("a.weight", (3, 3), 5))


SCALES = {
    "plain.weight": ((64, 32, 3), 0.0, 96**-0.5),
    "layer.weight_v": ((64, 32, 3), 0.0, 96**-0.5),
    "self_attn.q_proj.weight": ((64, 256), 0.0, 1 / 16),
    "self_attn.out_proj.weight": ((64, 256), 0.0, 0.3 / 16),
    "layers.3.fc2.weight": ((64, 256), 0.0, 0.3 / 16),
    "layers.3.fc1.weight": ((64, 256), 0.0, 1 / 16),
    "norm.weight": ((5000,), 1.0, 0.1),
    "norm.gamma": ((5000,), 1.0, 0.1),
    "norm.beta": ((5000,), 0.0, 0.02),
    "conv.bias": ((5000,), 0.0, 0.02),
    "bn.running_mean": ((5000,), 0.0, 0.1),
    "emb_g.weight": ((109, 256), 0.0, 0.3),
    "enc_p.emb_pitch.weight": ((256, 192), 0.0, 0.3),
}


@pytest.mark.parametrize("name", SCALES)
def test_kinds_have_their_mean_and_deviation(name: str) -> None:
    shape, mean, deviation = SCALES[name]
    values = seeded_tensor(name, shape)
    assert values.mean().item() == pytest.approx(mean, abs=0.1 * deviation)
    assert values.std().item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize(("name", "factor"), [("dec.ups.0.weight_g", 2.0), ("flow.flows.0.enc.in_layers.0.weight_g", 1.0)])
def test_weight_g_is_positive_and_doubled_in_the_decoder(name: str, factor: float) -> None:
    values = seeded_tensor(name, (5000, 1, 1))
    assert values.min().item() >= 0.2 * factor
    assert values.mean().item() == pytest.approx(factor * (0.2 + 0.3 * (2 / torch.pi) ** 0.5), rel=0.05)
    torch.testing.assert_close(values, factor * (0.2 + 0.3 * draw(name, (5000, 1, 1)).abs()))


def test_running_var_is_at_least_one() -> None:
    values = seeded_tensor("unet.bn.running_var", (5000,))
    assert values.min().item() >= 1
    torch.testing.assert_close(values, 1 + 0.1 * draw("unet.bn.running_var", (5000,)).abs())


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_num_batches_tracked_is_a_zero_of_integers(shape: tuple[int, ...]) -> None:
    value = seeded_tensor("unet.bn.num_batches_tracked", shape)
    assert value.dtype == torch.int64
    assert torch.equal(value, torch.zeros(shape, dtype=torch.int64))


def test_the_last_convolution_of_the_decoder_has_no_constant_part() -> None:
    values = seeded_tensor("dec.conv_post.weight", (1, 32, 7))
    assert values.mean(-1).abs().max().item() < 1e-6
    plain = draw("dec.conv_post.weight", (1, 32, 7)) / 224**0.5
    assert plain.mean(-1).abs().max().item() > 0.01
    torch.testing.assert_close(values - values[..., :1], plain - plain[..., :1])


def test_a_vector_is_a_scale_only_as_a_weight() -> None:
    assert seeded_tensor("norm.weight", (1000,)).mean().item() == pytest.approx(1, abs=0.02)
    assert seeded_tensor("final_proj.weight", (1000, 4)).mean().item() == pytest.approx(0, abs=0.05)
    assert seeded_tensor("mask_emb", (1000,)).mean().item() == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "a.gamma"])
def test_a_scalar_and_an_empty_tensor_can_be_made(name: str) -> None:
    assert seeded_tensor(name, ()).shape == ()
    assert seeded_tensor(name, (0, 3)).numel() == 0


def test_noise_draws_differ_by_index_and_seed_and_repeat() -> None:
    draws = {(index, seed): noise_draw(index, (1, 192, 50), seed) for index in range(3) for seed in range(3)}
    for (index, seed), values in draws.items():
        assert torch.equal(values, noise_draw(index, (1, 192, 50), seed))
        assert values.mean().item() == pytest.approx(0, abs=0.05)
        assert values.std().item() == pytest.approx(1, abs=0.05)
    flat = torch.stack([values.flatten() for values in draws.values()])
    assert (torch.corrcoef(flat) - torch.eye(9)).abs().max().item() < 0.06
