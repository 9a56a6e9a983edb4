"""What a run takes of this machine: device, threads, arithmetic."""

from __future__ import annotations

import torch

from peftcli import system
from peftcli.errors import DeviceError, RecipeError
from peftcli.launching.places import place
from peftcli.models.device import before_start, has_bf16
from peftcli.recipe import Recipe


def resolve_device(wanted: str) -> str:
    """`auto` is the first GPU, else the CPU. Raises `DeviceError` for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_there in there.items() if is_there)
    if not there.get(wanted, False):
        raise DeviceError(
            f"device {wanted} is not available on this machine",
            fix="use `device: auto`; `peft doctor` shows what is there",
        )
    before_start(wanted)
    return wanted


def resolve_threads(wanted: int | str, processes: int = 1) -> int:
    """`auto` is the number of CPUs that this process may use, never the load; `processes` of a machine share them."""
    return max(1, system.usable_cpus() // processes) if wanted == "auto" else int(wanted)


def processes_here(recipe: Recipe) -> int:
    """How many processes of the run are on this machine: as its launcher says, else all of them."""
    found = place()
    return found.local_size if found.size > 1 else recipe.training.processes


def resolve_precision(precision: str, dtype: str, device: str) -> tuple[str, str]:
    """Precision of the arithmetic and type of the frozen base. `auto` is bf16 on a GPU that has it, else fp32."""
    if precision == "auto":
        if dtype in ("bfloat16", "float16"):
            precision = {"bfloat16": "bf16", "float16": "fp16"}[dtype]
        elif dtype == "float32" or device != "cuda":
            precision = "fp32"
        else:
            precision = "bf16" if has_bf16(device) else "fp16"
    if dtype == "auto":
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    if precision == "fp16" and device == "cpu":
        raise DeviceError("fp16 does not train on a CPU", fix="use `precision: bf16` or fp32")
    if precision == "fp32" and dtype != "float32":
        raise RecipeError(
            f"`precision: fp32` with `dtype: {dtype}` computes in {dtype}", fix="leave one of the two at auto"
        )
    return precision, dtype
