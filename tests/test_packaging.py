"""The wheel: works in an environment of its own and installs nothing but `rvc_coreml`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from rvc_coreml.models.embedded import read_embedded

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "runtime", "converters", "golden_outputs", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "demo", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, source], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_folders_modules_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"rvc_coreml/{path.name}" for path in ROOT.glob("*.py")} | {"rvc_coreml/py.typed"}
    for folder in FOLDERS:
        expected |= {f"rvc_coreml/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    expected |= {f"rvc_coreml/golden_outputs/{name}" for name in ("speech.wav", "reports/page.css", "reports/page.js")}
    expected |= {f"rvc_coreml/converters/placement/{name}" for name in ("page.css", "page.js")}
    embedded = ROOT / "models" / "embedded"
    expected |= {f"rvc_coreml/models/embedded/{name}" for name in ("manifest.json", *read_embedded(embedded).files)}
    assert names == expected
    assert not any(name.startswith(("rvc_coreml/tests", "rvc_coreml/tools", "rvc_coreml/build")) for name in names)


def test_the_wheels_metadata_names_script_licence_and_ranges(wheel):
    archive = zipfile.ZipFile(wheel)
    read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "rvc-coreml = rvc_coreml.cli:main" in read["entry_points.txt"]
    assert "License-Expression: MIT" in read["METADATA"]
    assert "MIT License" in read["LICENSE"]
    assert re.search(r"Requires-Dist: numpy.*<2\.4", read["METADATA"])
    assert re.search(r"Requires-Python: .*>=3\.10", read["METADATA"])
    assert read["top_level.txt"].split() == ["rvc_coreml"]


def test_an_installed_wheel_works_away_from_the_checkout(wheel, tmp_path):
    """The dependencies come from this environment; rvc_coreml comes from the wheel alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    assert {path.name for path in site.iterdir() if "rvc" in path.name} == {
        "rvc_coreml",
        f"rvc_coreml-{wheel.name.split('-')[1]}.dist-info",
    }
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    code = "import rvc_coreml; print(rvc_coreml.__file__)"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert found.startswith(str(site))
    script = tmp_path / "venv" / "bin" / "rvc-coreml"
    result = subprocess.run([script, "doctor"], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Core ML conversion: yes" in result.stdout
    result = subprocess.run([script, "embedded", "try"], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "try" / "hubert" / "model.safetensors").is_file()
