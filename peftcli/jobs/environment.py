"""What a run ran on: packages, hardware, settings. A description for the record and the report, never an input."""

from __future__ import annotations

import functools
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from peftcli import system

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "pydantic")


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour reaches the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: str) -> dict[str, str | int]:
    """Python, operating system, processor, device and packages. Names no host and no user."""
    facts: dict[str, str | int] = {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_name(),
        "cpus": torch.get_num_threads(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["cuda"] = str(torch.version.cuda)
    return {**facts, **package_versions()}


@functools.cache
def processor_name() -> str:
    """Model name of the processor, as the kernel tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: str) -> int:
    """Peak so far: of the device on CUDA, else of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return system.peak_memory_bytes()
