"""What a run ran on. Packages are inputs; hardware and system are description, which warns and never blocks."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from peftcli.lock.used_packages import PACKAGES, versions

# units that change which kernel runs, and so the last bits; the rest of the flags vary between kernels of Linux
_COMPUTE_FLAGS = re.compile(r"(sse|ssse|avx|amx|fma|f16c|bmi|asimd|sve|neon|bf16|i8mm)\w*")
# variables by which libraries choose or are told their kernels
_DISPATCH_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DYNAMIC", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
_SHOWN = ("python", "system", "processor", "gpu", "cuda")
_SAME_MACHINE = {
    "cuda": ("gpu", "cuda", "cudnn", "variables"),
    "cpu": ("processor", "cpu_flags", "cpu_capability", "variables"),
}


def describe(device: str) -> dict[str, str]:
    """Python, system, processor with its vector units, GPU. Names no host and no user."""
    facts = {
        "python": platform.python_version(),
        # the patch level of the kernel changes with every update and computes nothing
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "processor": processor_name(),
        "cpu_flags": cpu_flags(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "variables": " ".join(f"{name}={os.environ[name]}" for name in _DISPATCH_VARIABLES if name in os.environ),
    }
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(0),
            "driver": _driver(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return {name: value for name, value in facts.items() if value}


def summary_of_machine(device: str) -> dict[str, str | int]:
    """What a person reads of it: the description without its long lines, the threads, and the packages that compute."""
    facts = describe(device)
    shown: dict[str, str | int] = {name: facts[name] for name in _SHOWN if name in facts}
    threads = torch.get_num_threads()
    return {**shown, "cpus": threads, "threads": threads, "device": device, **versions(PACKAGES)}


def can_equal_bytes(one: Mapping[str, str], other: Mapping[str, str], device: str) -> bool:
    """Whether two environments compute the same bits: one processor with its vector units, or one GPU and CUDA."""
    return all(one.get(name) == other.get(name) for name in _SAME_MACHINE.get(device, ("processor",)))


def _cpu_info(field: str) -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            # the first processor stands for all: machines with unlike ones are not told apart here
            if line.split(":")[0].strip() == field:
                return line.split(":", 1)[1].strip()
    return ""


def processor_name() -> str:
    """Model name of the processor, as the kernel reports it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The vector units that compute kernels choose by, sorted; empty where the kernel does not tell."""
    # `flags` on x86, `Features` on ARM
    words = (_cpu_info("flags") or _cpu_info("Features")).split()
    return " ".join(sorted(word for word in words if _COMPUTE_FLAGS.fullmatch(word)))


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", path.read_text(errors="replace")) if path.is_file() else None
    return found.group() if found else ""
