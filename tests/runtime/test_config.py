"""Where a setting comes from, and what is said of one that cannot be used."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime import devices
from rvc_coreml.runtime.config import CONFIG_VARIABLE, DEVICES, VARIABLES, OptimizationConfig, accepted, names

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
LAYERS = st.sampled_from([None, "auto", "fp32", "fp16"])


def load(device: str = "cpu", file: Path | None = None, environ: dict[str, str] | None = None, **flags: Any) -> OptimizationConfig:
    return OptimizationConfig.load(device, file, environ or {}, **flags)


@given(file=LAYERS, environment=st.sampled_from([None, "0", "1"]), flag=LAYERS, device=st.sampled_from(DEVICES))
def test_the_last_layer_that_speaks_wins(tmp_path_factory, file, environment, flag, device) -> None:
    path = tmp_path_factory.mktemp("layers") / "config.toml"
    path.write_text("" if file is None else f'precision = "{file}"\n')
    environ = {} if environment is None else {"RVC_USE_FP16": environment}
    found = load(device, path, environ, precision=flag)
    default = OptimizationConfig.for_device(device).precision
    spoken = [(flag, "flag"), ({"0": "fp32", "1": "fp16"}.get(environment or ""), "environment"), (file, "file"), (default, "default")]
    value, source = next(item for item in spoken if item[0] is not None)
    assert found.precision == (default if value == "auto" else value)
    assert found.sources["precision"].startswith(source)
    assert found.sources["threads"].startswith("default")


@pytest.mark.parametrize(
    ("name", "text", "setting", "value"),
    [
        ("RVC_GPU_RETRIEVAL", "1", "retrieval_device", "device"),
        ("RVC_GPU_RETRIEVAL", "0", "retrieval_device", "cpu"),
        ("RVC_USE_FP16", "yes", "precision", "fp16"),
        ("RVC_USE_FP16", "False", "precision", "fp32"),
        ("RVC_GPU_FILTER", "on", "filter_device", "device"),
        ("RVC_GPU_FILTER", "0", "filter_device", "scipy"),
        ("RVC_BATCH_SIZE", " 12 ", "batch_size", 12),
        ("RVC_BATCH_SIZE", "auto", "batch_size", None),
        ("RVC_PROFILING", "TRUE", "profiling", True),
        ("RVC_PROFILING", "off", "profiling", False),
        ("RVC_COREML_LOAD_LIMIT", "90", "load_limit", 90.0),
        ("RVC_COREML_PREDICTION_FACTOR", "2.5", "prediction_factor", 2.5),
        ("RVC_COREML_FIRST_SOUND_SECONDS", "0.5", "first_sound_seconds", 0.5),
        ("RVC_COREML_WATCH_EVERY", "1", "watch_every", 1),
        ("RVC_COREML_COMPILED_CACHE_BYTES", "0", "compiled_cache_bytes", 0),
    ],
)
def test_every_variable_sets_its_setting(name: str, text: str, setting: str, value: object) -> None:
    found = load(environ={name: text})
    assert getattr(found, setting) == value
    assert name in found.sources[setting]
    assert load(environ={name: ""}) == load()


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("text", ["2x", "-1", "fp16", "1e9", "nan"])
def test_a_variable_that_cannot_be_used_is_named_with_what_it_takes(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(environ={name: text})
    assert name in str(caught.value)
    assert repr(text) in str(caught.value)
    assert VARIABLES[name].accepted in str(caught.value)


def test_a_file_sets_everything_and_the_variable_names_one(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'retrieval_device = "device"\nprecision = "fp16"\nfilter_device = "device"\nbatch_size = 3\nprofiling = true\nthreads = 2\n'
        "kept_region = false\npieces = false\npiece_frames = 64\nfused_attention = false\ncompile = true\noverlap = true\n"
        "load_limit = 60\nprediction_factor = 4.5\nfirst_sound_seconds = 2.5\nwatch_every = 7\ncompiled_cache_bytes = 0\n"
    )
    found = load(file=path)
    assert found == OptimizationConfig("device", "fp16", "device", 3, True, 2, False, False, 64, False, True, True, 60, 4.5, 2.5, 7, 0)
    assert set(found.sources.values()) == {f"file {path}"}
    assert load(environ={CONFIG_VARIABLE: str(path)}) == found
    other = tmp_path / "other.toml"
    other.write_text('batch_size = "auto"\n')
    assert load(file=other, environ={CONFIG_VARIABLE: str(path)}).batch_size is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"precison = 'fp16'", "'precison'"),
        (b"sources = {}", "'sources'"),
        (b"precision = 'fp8'", "auto, fp32, fp16"),
        (b"precision = 16", "auto, fp32, fp16"),
        (b"batch_size = 0", "1 to 4096"),
        (b"batch_size = 2.5", "1 to 4096"),
        (b"batch_size = true", "1 to 4096"),
        (b"threads = 'many'", "1 to 1024"),
        (b"piece_frames = 3", "16 to 100000"),
        (b"overlap = 1", "true or false"),
        (b"overlap = 'auto'", "true or false"),
        (b"watch_every = 0", "1 to 1000000"),
        (b"watch_every = 2.5", "1 to 1000000"),
        (b"load_limit = nan", "1 to 86400"),
        (b"load_limit = true", "1 to 86400"),
        (b"first_sound_seconds = 'long'", "0.1 to 3600"),
        (b"precision = [", "no TOML"),
        (b"\xff\xfe", "no TOML"),
        (b"#" * (1 << 21), "too large"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(file=path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("values", [{"precision": "half"}, {"batch_size": -1}, {"threads": True}, {"compile": "yes"}, {"nonsense": 1}])
def test_flags_are_checked_too(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(UsageError, match=name):
        load(**values)


@pytest.mark.parametrize("field", [item.name for item in fields(OptimizationConfig) if item.name != "sources"])
def test_no_configuration_can_be_made_with_nonsense(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        OptimizationConfig(**{field: object()})
    assert accepted(field)


@pytest.mark.parametrize("device", DEVICES)
def test_defaults_of_a_device_are_decided(device: str) -> None:
    found = OptimizationConfig().resolved(device)
    assert "auto" not in found.as_dict().values()
    assert OptimizationConfig.for_device(device).resolved(device) == OptimizationConfig.for_device(device)
    assert load(device) == OptimizationConfig.for_device(device)


def test_half_precision_is_the_default_only_where_a_gpu_gains_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for gains, precision in ((True, "fp16"), (False, "fp32")):
        monkeypatch.setattr(devices, "gains_from_half", lambda device, gains=gains: gains)
        assert OptimizationConfig.for_device("cuda:0").precision == precision
    assert OptimizationConfig.for_apple_silicon().precision == OptimizationConfig.for_cpu().precision == "fp32"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="coreml, mps, cuda, cpu"):
        OptimizationConfig.for_device("tpu")


def test_the_document_names_every_setting_variable_and_its_values() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in names():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert accepted(name) in row
    for name, variable in VARIABLES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{variable.setting}`" in row
    assert CONFIG_VARIABLE in text
