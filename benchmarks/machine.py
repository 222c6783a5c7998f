"""Everything that figures depend on: processor, system, versions, commit."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch
from memory import cores

PACKAGES = ("transfervae", "torch", "torchvision", "timm", "numpy", "pillow", "pythae", "diffusers", "transformers")


def describe_machine(device: torch.device) -> dict[str, object]:
    """Everything that the figures depend on."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": gpu.name if gpu else processor(),
        "device_memory": gpu.total_memory if gpu else None,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if gpu else None,
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, with the instructions that decide how fast it multiplies."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    names = fields.get("model name") or platform.processor()
    known = [name for name in ("amx_bf16", "avx512_bf16", "avx512f") if name in fields.get("flags", "").split()]
    return f"{names} ({known[0]})" if known else names


def version_of(name: str) -> str | None:
    """An installed package's version, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit, with "-dirty" where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - fixed words
    except (OSError, subprocess.CalledProcessError):
        return None
