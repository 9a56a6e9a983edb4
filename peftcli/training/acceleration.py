"""Accelerate: the device, the fp16 scaler and mixed precision. The only file here that builds its objects."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from peftcli.errors import DeviceError
from peftcli.models.device import before_start, has_bf16, kind_of

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(*, device: str, precision: str) -> Accelerator:
    """An `Accelerator` for this process on `device` (cpu, cuda, mps) in `precision` (fp32, bf16, fp16).

    Raises `DeviceError` where this machine has not the device, or the device not the precision.
    """
    _require(device, precision)
    # before Accelerate asks for the device, which starts CUDA and reads its settings
    before_start(device)
    # Accelerate keeps one state a process; a second run in it may use another device or precision
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            # among several processes it chooses the threads itself, and says so: the run has its own number
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            return Accelerator(cpu=device == "cpu", mixed_precision=MIXED_PRECISION[precision])
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"cannot train on {device} in {precision}: {error}", fix="try precision: fp32") from error
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _require(device: str, precision: str) -> None:
    kind = kind_of(device)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise DeviceError(f"the device {device} is not available", fix="use device: auto or cpu; see `peft doctor`")
    if precision == "fp16" and kind == "cpu":
        raise DeviceError("precision fp16 needs a GPU", fix="use precision: bf16 or fp32 on a CPU")
    if precision == "bf16" and not has_bf16(device):
        raise DeviceError("this GPU has no bf16", fix="use precision: fp16 or fp32")


def forward_precision(accelerator: Accelerator, model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Autocast for a float32 base; a base that is stored in half precision already computes in it."""
    frozen_float32 = any(
        # only a frozen matrix counts: trained masters are float32 on every base, and so are norms of some
        # half-precision ones
        parameter.dtype == torch.float32 and parameter.ndim >= 2 and not parameter.requires_grad
        for parameter in model.parameters()
    )
    if accelerator.mixed_precision == "no" or not frozen_float32:
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if _is_bf16(accelerator) else torch.float16
    # no cache: a pass reads a weight once, and a loss that looks first without gradients (cached negatives) would find
    # copies without them in torch before 2.11
    return torch.autocast(accelerator.device.type, dtype=dtype, cache_enabled=False)


def _is_bf16(accelerator: Accelerator) -> bool:
    return bool(accelerator.mixed_precision == "bf16")
