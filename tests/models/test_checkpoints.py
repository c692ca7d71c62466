"""Checkpoints: every form in the wild loads to the same network, everything else is refused with its reason."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rvc_coreml.errors import CheckpointError, IncompleteCheckpoint, UnreadableCheckpoint, UnsafeCheckpoint, WrongCheckpointKind
from rvc_coreml.models import Voice, load_hubert, load_voice, read_hubert
from rvc_coreml.runtime.memory import peak_memory
from safetensors.torch import save_file
from support.checkpoints import (
    BARE_HUBERT,
    SMALL_HUBERT,
    change_form,
    hubert_state,
    small_config,
    voice_content,
    voice_state,
    write_small_hubert,
    write_voice,
)

FORMS = ("weight_g", "parametrizations", "folded")
APPLIO = {
    "epoch": 300,
    "step": 12000,
    "creation_date": "2026-01-31T12:00:00",
    "model_hash": "0123abcd",
    "dataset_length": "00:12:34",
    "model_name": "singer",
    "author": None,
    "embedder_model": "contentvec",
    "speakers_id": 1,
    "vocoder": "HiFi-GAN",
}
Loader = Callable[[Path], Any]
LOADERS: list[Loader] = [load_voice, load_hubert]


def voice_audio(voice: Voice) -> torch.Tensor:
    """Two frames of a voice from fixed inputs."""
    synthesizer = voice.synthesizer
    generator = torch.Generator().manual_seed(1)
    phone = torch.randn(1, 2, synthesizer.phone_channels, generator=generator)
    noise = torch.randn(1, synthesizer.config.inter_channels, 2, generator=generator)
    if not voice.has_f0:
        return synthesizer.infer(phone, None, None, 0, noise, None)
    source = torch.randn(1, 2 * synthesizer.config.samples_per_frame, 1, generator=generator)
    return synthesizer.infer(phone, torch.tensor([[80, 90]]), torch.tensor([[220.0, 230.0]]), 0, noise, source)


def same_weights(one: torch.nn.Module, other: torch.nn.Module, tolerance: float = 0.0) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.allclose(ours[name], theirs[name], rtol=0, atol=tolerance) for name in ours)


def refusal(load: Loader, path: Path, kind: type[CheckpointError], *parts: str) -> str:
    """The message of the refusal, which is one line, names the file, and contains `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.strip()
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message
    return message


# ---------------------------------------------------------------- voices that load


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_norm_gives_the_same_voice(tmp_path: Path, form: str, suffix: str) -> None:
    plain = load_voice(write_voice(tmp_path / "plain.pth", half=False))
    other = load_voice(write_voice(tmp_path / f"other{suffix}", half=False, form=form))
    assert same_weights(plain.synthesizer, other.synthesizer, 1e-6)
    assert torch.allclose(voice_audio(plain), voice_audio(other), atol=1e-6)
    assert (other.config, other.version, other.has_f0, other.metadata) == (plain.config, plain.version, plain.has_f0, plain.metadata)


def test_half_precision_is_raised_to_float32_and_kept_as_the_source(tmp_path: Path) -> None:
    content = voice_content(half=True)
    raised = voice_content(half=False, tensors={name: tensor.float() for name, tensor in content["weight"].items()})
    torch.save(content, tmp_path / "half.pth")
    torch.save(raised, tmp_path / "full.pth")
    half, full = load_voice(tmp_path / "half.pth"), load_voice(tmp_path / "full.pth")
    assert same_weights(half.synthesizer, full.synthesizer)
    assert {tensor.dtype for tensor in half.synthesizer.state_dict().values()} == {torch.float32}
    assert {tensor.dtype for tensor in half.source_state.values()} == {torch.float16}
    assert set(half.source_state) == set(content["weight"])


def test_bfloat16_safetensors_load(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in voice_state(small_config()).items()}
    voice = load_voice(write_voice(tmp_path / "voice.safetensors", tensors=state))
    assert torch.equal(voice.synthesizer.emb_g.weight, state["emb_g.weight"].float())


def test_posterior_encoder_is_ignored(tmp_path: Path) -> None:
    extra = {"enc_q.pre.weight": torch.randn(4, 4).half(), "enc_q.proj.bias": torch.full((3,), float("nan"))}
    voice = load_voice(write_voice(tmp_path / "voice.pth", tensors=extra))
    assert same_weights(voice.synthesizer, load_voice(write_voice(tmp_path / "plain.pth")).synthesizer)
    assert not any(name.startswith("enc_q") for name in voice.source_state)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("f0", [True, False])
@pytest.mark.parametrize("missing", [("version",), ("f0",), ("version", "f0", "sr", "info")])
def test_missing_fields_are_told_from_the_weights(tmp_path: Path, version: str, f0: bool, missing: tuple[str, ...]) -> None:
    stated = load_voice(write_voice(tmp_path / "stated.pth", version=version, f0=f0))
    silent = load_voice(write_voice(tmp_path / "silent.pth", version=version, f0=f0, drop=missing))
    assert (silent.version, silent.has_f0) == (version, f0)
    assert same_weights(stated.synthesizer, silent.synthesizer)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("stated", "f0"), [(1, True), (True, True), ("1", True), ("true", True), (0, False), (False, False), ("0", False), ("False", False)]
)
def test_f0_is_understood_as_number_bool_or_word(tmp_path: Path, stated: object, f0: bool, suffix: str) -> None:
    assert load_voice(write_voice(tmp_path / f"voice{suffix}", f0=f0, extra={"f0": stated})).has_f0 is f0


@pytest.mark.parametrize("rate", [40000, "40000", "40k", "40K"])
@pytest.mark.parametrize("stated", ["40k", 40000, None])
def test_rate_is_understood_as_number_or_word(tmp_path: Path, rate: object, stated: object) -> None:
    voice = load_voice(write_voice(tmp_path / "voice.pth", config=small_config(sr=40000), extra={"sr": stated}))
    content = voice_content(extra={"sr": stated})
    content["config"][17] = rate
    torch.save(content, tmp_path / "other.pth")
    other = load_voice(tmp_path / "other.pth")
    assert other.sample_rate == voice.sample_rate == 40000
    assert other.config == voice.config


def test_resblock_as_number_means_the_same_as_the_word(tmp_path: Path) -> None:
    word = load_voice(write_voice(tmp_path / "word.pth"))
    number = load_voice(write_voice(tmp_path / "number.pth", config=changed_config(9, 1)))
    assert word.config == number.config


def test_speaker_count_is_the_tables_and_not_the_configs(tmp_path: Path) -> None:
    content = voice_content(config=small_config(speakers=5))
    content["config"][15] = 109
    torch.save(content, tmp_path / "voice.pth")
    voice = load_voice(tmp_path / "voice.pth")
    assert voice.speakers == voice.config.spk_embed_dim == 5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_applios_fields_are_kept_as_metadata(tmp_path: Path, suffix: str) -> None:
    voice = load_voice(write_voice(tmp_path / f"voice{suffix}", extra=APPLIO))
    assert {name: voice.metadata[name] for name in APPLIO} == APPLIO
    assert voice.metadata["info"] == "200epoch"


def test_voice_written_as_a_library_keeps_it_loads_the_same(tmp_path: Path) -> None:
    first = load_voice(write_voice(tmp_path / "voice.pth", extra=APPLIO))
    save_file(first.source_state, tmp_path / "voice.safetensors", first.file_metadata())
    again = load_voice(tmp_path / "voice.safetensors")
    assert same_weights(first.synthesizer, again.synthesizer)
    assert (again.config, again.version, again.has_f0, again.metadata) == (first.config, first.version, first.has_f0, first.metadata)
    assert torch.equal(voice_audio(first), voice_audio(again))


def test_legacy_torch_file_loads(tmp_path: Path) -> None:
    torch.save(voice_content(), tmp_path / "voice.pth", _use_new_zipfile_serialization=False)
    assert same_weights(load_voice(tmp_path / "voice.pth").synthesizer, load_voice(write_voice(tmp_path / "zip.pth")).synthesizer)


def test_recompressed_torch_zip_loads(tmp_path: Path) -> None:
    write_voice(tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(tmp_path / "voice.pth", "w") as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert same_weights(load_voice(tmp_path / "voice.pth").synthesizer, load_voice(tmp_path / "stored.pth").synthesizer)


# ---------------------------------------------------------------- content encoders that load


@pytest.mark.parametrize("kind", ["hf", "bin"])
def test_hugging_face_encoder_is_found_by_directory_config_and_weight_file(tmp_path: Path, kind: str) -> None:
    folder = write_small_hubert(tmp_path / "encoder", kind)
    weights = next(path for path in folder.iterdir() if path.name != "config.json")
    networks = [load_hubert(path) for path in (folder, folder / "config.json", weights)]
    assert all(network.config == SMALL_HUBERT for network in networks)
    assert all(same_weights(networks[0], network, 0) for network in networks[1:])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["hf", "bin"])
def test_hugging_face_directories_give_the_same_network(tmp_path: Path, kind: str, half: bool) -> None:
    wanted = read_hubert(write_small_hubert(tmp_path / "plain"))
    other = read_hubert(write_small_hubert(tmp_path / "other", kind, half=half))
    assert other.network.config == SMALL_HUBERT
    assert same_weights(wanted.network, other.network, 2e-3 if half else 0.0)
    assert {tensor.dtype for tensor in other.source_state.values()} == {torch.float16 if half else torch.float32}


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("kind", ["fairseq", "bare"])
def test_single_files_give_the_same_network(tmp_path: Path, kind: str, zip_format: bool) -> None:
    wanted = load_hubert(write_small_hubert(tmp_path / "wanted", "hf", config=BARE_HUBERT))
    network = load_hubert(write_small_hubert(tmp_path / "hubert_base.pt", kind, zip_format=zip_format))
    assert network.config == BARE_HUBERT
    assert same_weights(wanted, network)


@pytest.mark.parametrize("name", ["model.safetensors", "encoder.safetensors"])
def test_hugging_face_file_by_itself_loads(tmp_path: Path, name: str) -> None:
    folder = write_small_hubert(tmp_path / "folder", config=BARE_HUBERT)
    file = tmp_path / name
    file.write_bytes((folder / "model.safetensors").read_bytes())
    assert same_weights(load_hubert(file), load_hubert(folder))


def test_file_inside_a_hugging_face_directory_takes_its_config(tmp_path: Path) -> None:
    folder = write_small_hubert(tmp_path / "folder")
    assert load_hubert(folder / "model.safetensors").config == load_hubert(folder).config == SMALL_HUBERT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "hubert.", "module."])
def test_encoder_entries_load_in_every_form_and_under_every_prefix(tmp_path: Path, form: str, prefix: str) -> None:
    wanted = load_hubert(write_small_hubert(tmp_path / "wanted", "hf", config=BARE_HUBERT))
    state = change_form(hubert_state(BARE_HUBERT), form)
    torch.save({"model": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "hubert.pt")
    assert same_weights(wanted, load_hubert(tmp_path / "hubert.pt"), 1e-6)


def test_encoder_without_final_projection_serves_v2_only(tmp_path: Path) -> None:
    network = load_hubert(write_small_hubert(tmp_path / "hubert", drop=("final_proj.weight", "final_proj.bias")))
    assert network.versions == ("v2",)
    assert network.features(torch.randn(1, 800)).shape == (1, 2, SMALL_HUBERT.hidden)
    with pytest.raises(ValueError, match="v1"):
        network.features(torch.randn(1, 800), "v1")


def test_encoder_written_as_a_library_keeps_it_loads_the_same(tmp_path: Path) -> None:
    first = read_hubert(write_small_hubert(tmp_path / "hubert"))
    save_file(first.source_state, tmp_path / "weights.safetensors", first.file_metadata())
    again = load_hubert(tmp_path / "weights.safetensors")
    assert again.config == first.network.config
    assert same_weights(first.network, again)


def test_transformers_own_encoder_gives_transformers_own_features(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.HubertConfig(
        hidden_size=32,
        num_hidden_layers=11,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    theirs = transformers.HubertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    ours = load_hubert(tmp_path)
    for samples in (400, 1000, 16000):
        waveform = 0.3 * torch.randn(1, samples)
        with torch.inference_mode():
            wanted = theirs(waveform, output_hidden_states=True)
            middle = ours.encoder(ours.project(ours.feature_extractor(waveform)), (9, 11))
        assert torch.allclose(middle[0], wanted.hidden_states[9], atol=1e-5)
        assert torch.allclose(middle[1], wanted.last_hidden_state, atol=1e-5)
        assert torch.equal(ours.features(waveform), middle[1])


# ---------------------------------------------------------------- files that are no checkpoint at all


def compressed(value: Any, path: Path) -> None:
    """A torch zip whose entries are deflated."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))


def zip_without_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights here")


def zip_with_two_pickles(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("b/data.pkl", pickle.dumps({}))


def zip_with_lying_size(path: Path) -> None:
    """A directory entry that claims four gigabytes for a few bytes."""
    write_voice(path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bytes(data))


NOT_CHECKPOINTS: dict[str, tuple[type[CheckpointError], Callable[[Path], object]]] = {
    "empty": (UnreadableCheckpoint, lambda path: path.write_bytes(b"")),
    "one byte": (UnreadableCheckpoint, lambda path: path.write_bytes(b"\x80")),
    "random bytes": (UnreadableCheckpoint, lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000))),
    "random bytes after a zip's magic": (
        UnreadableCheckpoint,
        lambda path: path.write_bytes(b"PK\x03\x04" + np.random.default_rng(2).bytes(5000)),
    ),
    "random bytes after a pickle's magic": (
        UnreadableCheckpoint,
        lambda path: path.write_bytes(b"\x80\x02" + np.random.default_rng(3).bytes(5000)),
    ),
    "text": (UnreadableCheckpoint, lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
    "web page": (UnreadableCheckpoint, lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>")),
    "zip without data.pkl": (UnreadableCheckpoint, zip_without_pickle),
    "zip with two data.pkl": (UnreadableCheckpoint, zip_with_two_pickles),
    "zip with a lying size": (UnsafeCheckpoint, zip_with_lying_size),
    "zip bomb": (UnsafeCheckpoint, lambda path: compressed({"weight": {"a": torch.zeros(2_000_000)}, "model": {}}, path)),
    "safetensors with a damaged header": (UnreadableCheckpoint, lambda path: path.write_bytes(struct.pack("<Q", 40) + b"{" + b"x" * 60)),
    "safetensors with a header beyond its end": (
        UnreadableCheckpoint,
        lambda path: path.write_bytes(struct.pack("<Q", 90_000_000) + b"{}"),
    ),
    "pickled number": (WrongCheckpointKind, lambda path: torch.save(5, path)),
    "pickled list": (WrongCheckpointKind, lambda path: torch.save([torch.zeros(2)], path)),
    "one tensor": (WrongCheckpointKind, lambda path: torch.save(torch.zeros(3), path)),
    "empty dictionary": (WrongCheckpointKind, lambda path: torch.save({}, path)),
    "foreign tensors": (WrongCheckpointKind, lambda path: torch.save({"layer.weight": torch.zeros(3, 3)}, path)),
}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, kind: str, load: Loader) -> None:
    error, write = NOT_CHECKPOINTS[kind]
    path = tmp_path / "file.pth"
    write(path)
    refusal(load, path, error)


@pytest.mark.parametrize("load", LOADERS)
def test_missing_file_is_named(tmp_path: Path, load: Loader) -> None:
    refusal(load, tmp_path / "absent.pth", UnreadableCheckpoint, "does not exist")


def test_directory_is_no_voice_and_an_empty_one_no_encoder(tmp_path: Path) -> None:
    refusal(load_voice, tmp_path, UnreadableCheckpoint, "not a file")
    refusal(load_hubert, tmp_path, UnreadableCheckpoint, "model.safetensors", "pytorch_model.bin")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("load", LOADERS)
def test_unreadable_file_is_named(tmp_path: Path, load: Loader) -> None:
    path = write_voice(tmp_path / "voice.pth")
    path.chmod(0)
    refusal(load, path, UnreadableCheckpoint, "cannot be opened")


WRITERS: dict[str, tuple[Loader, Callable[[Path], object]]] = {
    "voice.pth": (load_voice, lambda path: write_voice(path)),
    "legacy voice.pth": (load_voice, lambda path: torch.save(voice_content(), path, _use_new_zipfile_serialization=False)),
    "voice.safetensors": (load_voice, lambda path: write_voice(path)),
    "hubert.pt": (load_hubert, lambda path: write_small_hubert(path, "fairseq")),
    "legacy hubert.pt": (load_hubert, lambda path: write_small_hubert(path, "fairseq", zip_format=False)),
}


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", WRITERS)
def test_truncated_file_is_unreadable(tmp_path: Path, name: str, share: float) -> None:
    load, write = WRITERS[name]
    path = tmp_path / name
    write(path)
    load(path)
    size = path.stat().st_size
    os.truncate(path, max(16, int(size * share)))
    refusal(load, path, UnreadableCheckpoint)


# ---------------------------------------------------------------- files that want to run code


class Reduces:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


ATTACKS: dict[str, Callable[[Path], Reduces]] = {
    "os.system": lambda mark: Reduces(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Reduces(builtins.eval, f"open({str(mark)!r}, 'w').close()"),
    "builtins.exec": lambda mark: Reduces(builtins.exec, f"open({str(mark)!r}, 'w').close()"),
    "subprocess.Popen": lambda mark: Reduces(subprocess.Popen, ["touch", str(mark)]),
    "importlib.import_module": lambda mark: Reduces(importlib.import_module, "antigravity"),
    "builtins.open": lambda mark: Reduces(builtins.open, str(mark), "w"),
}


def harmful(load: Loader, attack: Reduces, place: str) -> Any:
    content: dict[str, Any] = voice_content() if load is load_voice else {"model": dict(hubert_state(BARE_HUBERT)), "args": None}
    if place == "root":
        return attack
    if place == "beside the weights":
        content["info"] = attack
    else:
        content["weight" if load is load_voice else "model"]["enc_q.pre.weight"] = attack
    return content


@pytest.mark.parametrize("place", ["root", "beside the weights", "among the weights"])
@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_voice_that_calls_code_is_unsafe_and_nothing_is_called(tmp_path: Path, attack: str, zip_format: bool, place: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "voice.pth"
    torch.save(harmful(load_voice, ATTACKS[attack](mark), place), path, _use_new_zipfile_serialization=zip_format)
    refusal(load_voice, path, UnsafeCheckpoint, attack.rpartition(".")[2])
    assert not mark.exists()


@pytest.mark.parametrize("place", ["root", "beside the weights", "among the weights"])
@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_encoder_that_calls_code_is_unsafe_and_nothing_is_called(
    tmp_path: Path, attack: str, zip_format: bool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hubert.pt"
    torch.save(harmful(load_hubert, ATTACKS[attack](mark), place), path, _use_new_zipfile_serialization=zip_format)
    called: list[object] = []
    monkeypatch.setattr(os, "system", lambda *given: called.append(given))
    monkeypatch.setattr(subprocess, "Popen", lambda *given: called.append(given))
    refusal(load_hubert, path, UnsafeCheckpoint, attack.rpartition(".")[2])
    assert not called
    assert not mark.exists()


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_call_in_a_newer_pickle_protocol_is_refused(tmp_path: Path, protocol: int, load: Loader) -> None:
    """From protocol 4 on a class is named by another opcode, which torch's restricted unpickler does not know at all."""
    mark, path = tmp_path / "mark", tmp_path / "file.pth"
    torch.save({"weight": ATTACKS["os.system"](mark)}, path, pickle_protocol=protocol)
    refusal(load, path, UnsafeCheckpoint if protocol < 4 else UnreadableCheckpoint)
    assert not mark.exists()


# ---------------------------------------------------------------- other kinds of file


def test_voice_and_encoder_are_told_apart(tmp_path: Path) -> None:
    refusal(load_hubert, write_voice(tmp_path / "voice.pth"), WrongCheckpointKind, "convert voice")
    refusal(load_hubert, write_voice(tmp_path / "voice.safetensors"), WrongCheckpointKind, "convert voice")
    refusal(load_voice, write_small_hubert(tmp_path / "bare.pt", "bare"), WrongCheckpointKind, "HuBERT", "convert hubert")
    refusal(load_voice, write_small_hubert(tmp_path / "hf") / "model.safetensors", WrongCheckpointKind)


def test_fairseqs_file_given_as_voice_is_called_an_encoder(tmp_path: Path) -> None:
    refusal(load_voice, write_small_hubert(tmp_path / "hubert_base.pt", "fairseq"), WrongCheckpointKind, "HuBERT", "convert hubert")


def test_plain_encoder_file_given_as_voice_is_called_one(tmp_path: Path) -> None:
    torch.save({"model": hubert_state(BARE_HUBERT), "args": None}, tmp_path / "hubert.pt")
    refusal(load_voice, tmp_path / "hubert.pt", WrongCheckpointKind, "HuBERT", "convert hubert")


def training_file() -> dict[str, Any]:
    return {"model": voice_state(small_config()), "iteration": 400, "optimizer": None, "learning_rate": 1e-4}


DISCRIMINATOR = {"discriminators.0.convs.0.weight_v": torch.zeros(2, 1, 5)}
OTHER_KINDS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "discriminator": (lambda: {"model": dict(DISCRIMINATOR), "iteration": 1, "optimizer": None, "learning_rate": 1e-4}, "discriminator"),
    "bare discriminator": (lambda: dict(DISCRIMINATOR), "discriminator"),
    "training file": (training_file, "training file"),
    "RMVPE": (lambda: {"unet.encoder.bn.weight": torch.zeros(1), "fc.1.weight": torch.zeros(360, 512)}, "RMVPE"),
    "nested RMVPE": (lambda: {"model": {"unet.encoder.bn.weight": torch.zeros(1)}}, "RMVPE"),
    "VoRAS": (lambda: voice_content(extra={"version": "voras_beta"}), "VoRAS"),
    "DDPN": (lambda: voice_content(extra={"params": {"inter_channels": 192}, "embedder_name": "hubert"}), "DDPN"),
    "DDPN by its embedder": (lambda: voice_content(extra={"embedder_output_layer": 12}), "DDPN"),
    "longer config": (lambda: voice_content(extra={"config": [*small_config()[:17], 768, 40000]}), "19 entries"),
    "shorter config": (lambda: voice_content(extra={"config": small_config()[:12]}), "12 entries"),
    "config of another type": (lambda: voice_content(extra={"config": {"sr": 40000}}), "dict"),
    "MRF vocoder": (lambda: voice_content(extra={"vocoder": "MRF HiFi-GAN"}), "MRF HiFi-GAN"),
    "RefineGAN vocoder": (lambda: voice_content(extra={"vocoder": "RefineGAN"}), "RefineGAN"),
    "unknown version": (lambda: voice_content(extra={"version": "v3"}), "v3"),
    "no config": (lambda: voice_content(drop=("config",)), "'config'"),
    "no weights": (lambda: voice_content(drop=("weight",)), "'weight'"),
    "weights as a list": (lambda: voice_content(extra={"weight": [1, 2]}), "list"),
    "none of the entries": (lambda: voice_content(extra={"weight": {"decoder.weight": torch.zeros(2)}}), "none of its"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_file_are_named_when_given_as_voice(tmp_path: Path, kind: str) -> None:
    make, reason = OTHER_KINDS[kind]
    torch.save(make(), tmp_path / "file.pth")
    refusal(load_voice, tmp_path / "file.pth", WrongCheckpointKind, reason)


@pytest.mark.parametrize("field", [{"vocoder": "RefineGAN"}, {"version": "voras_beta"}])
def test_other_kinds_of_safetensors_are_named_too(tmp_path: Path, field: dict[str, str]) -> None:
    path = write_voice(tmp_path / "voice.safetensors", extra=field)
    refusal(load_voice, path, WrongCheckpointKind, "RefineGAN" if "vocoder" in field else "VoRAS")


@pytest.mark.parametrize(("kind", "reason"), [("discriminator", "discriminator"), ("training file", "convert voice"), ("RMVPE", "RMVPE")])
def test_other_kinds_of_file_are_named_when_given_as_encoder(tmp_path: Path, kind: str, reason: str) -> None:
    torch.save(OTHER_KINDS[kind][0](), tmp_path / "file.pt")
    refusal(load_hubert, tmp_path / "file.pt", WrongCheckpointKind, reason)


def test_encoder_of_the_large_kind_is_named(tmp_path: Path) -> None:
    path = write_small_hubert(tmp_path / "hubert.pt", "bare", tensors={"feature_extractor.conv_layers.1.2.weight": torch.zeros(512)})
    refusal(load_hubert, path, WrongCheckpointKind, "large kind")


CONFIG_CHANGES = [
    ({"model_type": "wav2vec2"}, WrongCheckpointKind, "wav2vec2"),
    ({"do_stable_layer_norm": True}, WrongCheckpointKind, "do_stable_layer_norm"),
    ({"feat_extract_norm": "layer"}, WrongCheckpointKind, "feat_extract_norm"),
    ({"hidden_act": "relu"}, WrongCheckpointKind, "hidden_act"),
    ({"hidden_size": "768"}, IncompleteCheckpoint, "configuration"),
    ({"num_hidden_layers": 10**9}, IncompleteCheckpoint, "configuration"),
    ({"hidden_size": 10**12}, IncompleteCheckpoint, "configuration"),
    ({"num_attention_heads": 5}, IncompleteCheckpoint, "configuration"),
    ({"conv_stride": [5, 2]}, IncompleteCheckpoint, "configuration"),
    ({"conv_dim": 512}, IncompleteCheckpoint, "no network"),
    ({"layer_norm_eps": 0}, IncompleteCheckpoint, "configuration"),
    ({"intermediate_size": 50}, IncompleteCheckpoint, "fc1.weight"),
]


@pytest.mark.parametrize(("change", "kind", "reason"), CONFIG_CHANGES)
def test_hugging_face_config_that_fits_no_encoder_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[CheckpointError], reason: str
) -> None:
    folder = write_small_hubert(tmp_path / "hubert")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(kind, match=reason) as caught:
        load_hubert(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_damaged_hugging_face_config_is_unreadable(tmp_path: Path, text: str) -> None:
    folder = write_small_hubert(tmp_path / "hubert")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnreadableCheckpoint, match=r"config\.json") as caught:
        load_hubert(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden": 32, "unknown": 1}', '{"hidden": {}}', "5"])
def test_damaged_metadata_of_a_librarys_encoder_is_refused(tmp_path: Path, text: str) -> None:
    checkpoint = read_hubert(write_small_hubert(tmp_path / "hubert"))
    save_file(checkpoint.source_state, tmp_path / "weights.safetensors", {"hubert_config": text})
    refusal(load_hubert, tmp_path / "weights.safetensors", IncompleteCheckpoint)


# ---------------------------------------------------------------- entries that do not fit


@pytest.mark.parametrize("name", ["emb_g.weight", "dec.conv_pre.bias", "enc_p.encoder.attn_layers.1.emb_rel_v", "flow.flows.6.post.weight"])
def test_missing_entry_of_a_voice_is_named(tmp_path: Path, name: str) -> None:
    refusal(load_voice, write_voice(tmp_path / "voice.pth", drop=(name,)), IncompleteCheckpoint, "1 entry missing", name)


def test_many_missing_entries_are_counted_and_the_first_named(tmp_path: Path) -> None:
    names = [name for name in voice_state(small_config()) if name.startswith("enc_p.encoder.norm_layers")]
    path = write_voice(tmp_path / "voice.pth", drop=names)
    message = refusal(load_voice, path, IncompleteCheckpoint, f"{len(names)} entries missing", names[0], f"and {len(names) - 6} more")
    assert names[-1] not in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dec.conv_pre.weight", (32, 16, 5)),
        ("enc_p.emb_phone.weight", (16, 256)),
        ("emb_g.weight", (3, 9)),
        ("emb_g.weight", (24,)),
        ("enc_p.proj.bias", ()),
    ],
)
def test_entry_of_another_shape_is_named_with_both_shapes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = write_voice(tmp_path / "voice.pth", tensors={name: torch.zeros(shape)})
    wanted = tuple(voice_state(small_config())[name].shape)
    refusal(load_voice, path, IncompleteCheckpoint, f"{name} is {shape} and should be {wanted}")


def test_missing_and_misshapen_entries_of_an_encoder_are_named(tmp_path: Path) -> None:
    tensors = {"layer_norm.bias": torch.zeros(3)}
    path = write_small_hubert(tmp_path / "hubert.pt", "fairseq", tensors=tensors, drop=("encoder.layers.1.fc2.weight",))
    refusal(load_hubert, path, IncompleteCheckpoint, "encoder.layers.1.fc2.weight", "layer_norm.bias is (3,) and should be (512,)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["emb_g.weight", "dec.ups.0.weight_v", "dec.ups.0.weight_g", "enc_p.emb_pitch.weight"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    tensor = voice_state(small_config())[name]
    tensor.view(-1)[-1] = value
    path = write_voice(tmp_path / "voice.pth", tensors={name: tensor})
    refusal(load_voice, path, IncompleteCheckpoint, "NaN or infinity", re.sub("_[gv]$", "", name))


def test_values_of_an_encoder_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path = write_small_hubert(tmp_path / "hubert.pt", "fairseq", tensors={"final_proj.bias": torch.full((12,), float("nan"))})
    refusal(load_hubert, path, IncompleteCheckpoint, "NaN or infinity", "final_proj.bias")


def test_zero_vector_under_weight_norm_is_not_finite(tmp_path: Path) -> None:
    tensor = voice_state(small_config())["dec.ups.0.weight_v"]
    tensor[3] = 0
    path = write_voice(tmp_path / "voice.pth", tensors={"dec.ups.0.weight_v": tensor})
    refusal(load_voice, path, IncompleteCheckpoint, "NaN or infinity", "dec.ups.0.weight")


@pytest.mark.parametrize("form", ["weight_g", "parametrizations"])
@pytest.mark.parametrize("half", ["g", "v"])
def test_half_of_a_weight_norm_is_named(tmp_path: Path, form: str, half: str) -> None:
    state = change_form(voice_state(small_config()), form)
    name = f"dec.ups.1.weight_{half}" if form == "weight_g" else f"dec.ups.1.parametrizations.weight.original{'gv'.index(half)}"
    assert name in state
    refusal(
        load_voice, write_voice(tmp_path / "voice.pth", form=form, drop=(name,)), IncompleteCheckpoint, name, "weight norm of dec.ups.1"
    )


@pytest.mark.parametrize("shape", [(32,), (31, 1, 1), (32, 16, 2), (1, 1, 1, 1)])
def test_weight_norm_of_shapes_that_do_not_fit_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_voice(tmp_path / "voice.pth", tensors={"dec.ups.0.weight_g": torch.ones(shape)})
    refusal(load_voice, path, IncompleteCheckpoint, "dec.ups.0", str(shape))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 1)])
def test_weight_norm_over_other_axes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A g that broadcasts but is not one factor for each first axis is no weight norm of RVC's."""
    path = write_voice(tmp_path / "voice.pth", tensors={"dec.ups.0.weight_g": torch.ones(shape)})
    refusal(load_voice, path, IncompleteCheckpoint, "dec.ups.0")


def test_weight_norm_of_a_single_channel_loads(tmp_path: Path) -> None:
    """The last level of a narrow decoder has one channel, so that g is (1, 1, 1)."""
    config = small_config("v2", 40000, upsample_initial_channel=16)
    voice = load_voice(write_voice(tmp_path / "voice.pth", config=config, half=False))
    folded = load_voice(write_voice(tmp_path / "folded.pth", config=config, half=False, form="folded"))
    assert same_weights(voice.synthesizer, folded.synthesizer, 1e-6)


@pytest.mark.parametrize("load", LOADERS)
def test_expanded_tensor_claims_more_than_the_file_holds_and_is_refused(tmp_path: Path, load: Loader) -> None:
    expanded = torch.zeros(1).expand(4000, 4000)
    if load is load_voice:
        path = write_voice(tmp_path / "voice.pth", tensors={"emb_g.weight": expanded})
    else:
        path = write_small_hubert(tmp_path / "hubert.pt", "fairseq", tensors={"encoder.layer_norm.weight": expanded})
    refusal(load, path, IncompleteCheckpoint, "not stored as plain values")


def test_sparse_tensor_is_refused(tmp_path: Path) -> None:
    path = write_voice(tmp_path / "voice.pth", tensors={"emb_g.weight": torch.zeros(3, 8).to_sparse()})
    refusal(load_voice, path, IncompleteCheckpoint, "emb_g.weight")


def test_integer_tensors_do_not_count_as_weights(tmp_path: Path) -> None:
    path = write_voice(tmp_path / "voice.pth", tensors={"emb_g.weight": torch.zeros(3, 8, dtype=torch.int64)})
    refusal(load_voice, path, IncompleteCheckpoint, "emb_g.weight")


# ---------------------------------------------------------------- configs that cannot be


def changed_config(index: int, value: Any) -> list[Any]:
    config = small_config()
    config[index] = value
    return config


BAD_CONFIGS: dict[str, tuple[list[Any], str]] = {
    "negative": (changed_config(3, -16), "hidden_channels"),
    "zero heads": (changed_config(5, 0), "n_heads"),
    "text": (changed_config(2, "sixteen"), "inter_channels"),
    "bool": (changed_config(6, True), "n_layers"),
    "fraction": (changed_config(13, 32.5), "upsample_initial_channel"),
    "not a number": (changed_config(4, float("nan")), "filter_channels"),
    "table of text": (changed_config(12, "10,10,2,2"), "upsample_rates"),
    "empty table": (changed_config(10, []), "resblock_kernel_sizes"),
    "long table": (changed_config(12, [1] * 1000), "upsample_rates"),
    "flat dilations": (changed_config(11, [1, 3, 5]), "resblock_dilation_sizes"),
    "too few dilations": (changed_config(11, [[1, 3]] * 3), "dilations"),
    "no rate": (changed_config(17, None), "sr"),
    "rate as a fraction": (changed_config(17, 40000.0), "sr"),
    "rate of the wrong product": (changed_config(17, 48000), "40000"),
    "kernels fewer than rates": (changed_config(14, [16, 16, 4]), "differ in length"),
    "kernel below its rate": (changed_config(14, [8, 16, 4, 4]), "upsampling kernel"),
    "odd difference": (changed_config(14, [15, 16, 4, 4]), "upsampling kernel"),
    "even resblock kernel": (changed_config(10, [3, 7, 10]), "even"),
    "indivisible heads": (changed_config(5, 3), "n_heads"),
    "odd inter": (changed_config(2, 15), "inter_channels"),
    "unhalvable initial": (changed_config(13, 40), "halved"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_contradictory_config_is_refused_by_the_entrys_name(tmp_path: Path, case: str) -> None:
    config, reason = BAD_CONFIGS[case]
    content = voice_content(extra={"config": config})
    torch.save(content, tmp_path / "voice.pth")
    refusal(load_voice, tmp_path / "voice.pth", IncompleteCheckpoint, "config", reason)


@pytest.mark.parametrize(
    ("index", "value"),
    [(2, 10**15), (3, 65536), (4, 65536), (6, 64), (6, 10**6), (13, 65536), (7, 65535), (16, 65536), (12, [2**40, 10, 2, 2])],
)
def test_config_of_absurd_size_is_refused_without_memory(tmp_path: Path, index: int, value: Any) -> None:
    path = tmp_path / "voice.pth"
    torch.save(voice_content(extra={"config": changed_config(index, value)}), path)
    before = peak_memory()
    refusal(load_voice, path, IncompleteCheckpoint)
    assert peak_memory() - before < 200 << 20


@pytest.mark.parametrize("stated", ["yes", "v2", 1.5, [1], {"f0": 1}])
def test_f0_of_another_kind_is_refused(tmp_path: Path, stated: object) -> None:
    refusal(load_voice, write_voice(tmp_path / "voice.pth", extra={"f0": stated}), IncompleteCheckpoint, "f0", repr(stated))


def test_stated_f0_that_the_weights_contradict_names_what_is_missing(tmp_path: Path) -> None:
    path = write_voice(tmp_path / "voice.pth", f0=False, extra={"f0": 1})
    refusal(load_voice, path, IncompleteCheckpoint, "enc_p.emb_pitch.weight")


def test_stated_version_that_the_weights_contradict_names_the_shape(tmp_path: Path) -> None:
    path = write_voice(tmp_path / "voice.pth", version="v1", extra={"version": "v2"}, config=small_config("v1"))
    refusal(load_voice, path, IncompleteCheckpoint, "enc_p.emb_phone.weight is (16, 256) and should be (16, 768)")


def test_safetensors_voice_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in voice_state(small_config()).items()}, tmp_path / "voice.safetensors")
    refusal(load_voice, tmp_path / "voice.safetensors", WrongCheckpointKind, "config")


@pytest.mark.parametrize("text", ["nonsense", "[1, 2", "__import__('os').system('true')", "(" * 5000])
def test_safetensors_voice_with_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    path = write_voice(tmp_path / "voice.safetensors", extra={"config": text})
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_voice(path)
    assert "\n" not in str(caught.value)


def test_encoder_leaves_no_class_allowed_for_the_next_file(tmp_path: Path) -> None:
    """The stubs of hubert_base.pt's classes must not outlive its reading, or a voice could use them."""
    before = set(torch.serialization.get_safe_globals())
    load_hubert(write_small_hubert(tmp_path / "hubert.pt", "fairseq"))
    assert set(torch.serialization.get_safe_globals()) == before
    path = tmp_path / "voice.pth"
    torch.save(OrderedDict(a=Reduces(os.system, "true")), path)
    refusal(load_voice, path, UnsafeCheckpoint, "system")


def test_loading_changes_no_file(tmp_path: Path) -> None:
    voice, folder = write_voice(tmp_path / "voice.safetensors"), write_small_hubert(tmp_path / "hubert")
    before = voice.read_bytes(), (folder / "model.safetensors").read_bytes()
    load_voice(voice)
    load_hubert(folder)
    assert (voice.read_bytes(), (folder / "model.safetensors").read_bytes()) == before
