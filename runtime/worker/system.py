"""What a compiled model depends on besides its package: chip, system and coremltools."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version


def system_facts() -> dict[str, str]:
    """`chip`, `os`, `os_build` and `coremltools`, as text; imports nothing heavy."""
    try:
        tools = version("coremltools")
    except PackageNotFoundError:
        tools = "none"
    build = _asked("sw_vers", "-buildVersion")  # a program of macOS; the build changes with every update, the version does not
    if not build:
        name = f"{platform.system()} {platform.release()}"
        return {"chip": platform.machine(), "os": name, "os_build": platform.version(), "coremltools": tools}
    chip = _asked("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return {"chip": chip, "os": f"macOS {_asked('sw_vers', '-productVersion')}", "os_build": build, "coremltools": tools}


def toolchain(facts: dict[str, str]) -> str:
    """What a compiled model is good for, as text."""
    return f"{facts['os_build']}, coremltools {facts['coremltools']}"


def _asked(*command: str) -> str:
    """What a command of the system prints; nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
