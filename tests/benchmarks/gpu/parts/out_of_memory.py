"""A cap on memory: the micro-batch is halved as often as needed, told, and the run is the one that this size gives."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from setting import Setting, events, gib, memory_cap, require, require_same_run, train

WORTH = 68
SECONDS = 120
OUT_OF_MEMORY = 9
WHOLE = 32
HOST_CAP_BYTES = 120 << 20


def run(setting: Setting) -> str:
    cap = _cap_between(setting)
    setting.note(cap_bytes=cap)
    capped = setting.folder / "capped"
    with memory_cap(setting, cap):
        record = train(_recipe(setting, WHOLE), capped)
    halved, micro = events(capped, "out_of_memory"), int(record["settings"]["micro_batch_size"])
    warned = [line for line in record["warnings"] if "out of memory" in line]
    setting.note(warnings=record["warnings"], peak_memory_bytes=record["peak_memory_bytes"])
    require(bool(halved) and bool(warned), f"nothing was halved under a cap of {gib(cap)} (micro-batch {micro})")
    went_on_with = int(warned[-1].rsplit(" ", 1)[-1])
    plain = setting.folder / "plain"
    train(_recipe(setting, went_on_with), plain)
    require_same_run(capped, plain, f"halved to {went_on_with} and begun with it")
    told = f"under {gib(cap)} from {WHOLE} rows to {went_on_with}, the same bytes as begun so"
    if not setting.on_gpu:
        return told  # what a process on a CPU has once had it keeps, so that it cannot be left without any
    hopeless = setting.folder / "hopeless"
    with memory_cap(setting, 1 << 20):
        record = train(_recipe(setting, WHOLE), hopeless, code=OUT_OF_MEMORY)
    require(record.get("status") == "failed", f"run.json says {record.get('status')}")
    return f"{told}; without room for the base: exit 9"


def _recipe(setting: Setting, micro: int) -> Path:
    sections: dict[str, Any] = {
        "data": {"train": {"path": "builtin:text", "rows": 60 if setting.tiny else 500},
                 "max_length": 128 if setting.tiny else 1024},
        "training": {"precision": "fp32" if setting.tiny else "bf16", "max_steps": 2 if setting.tiny else 4,
                     "batch_size": WHOLE, "micro_batch_size": micro,
                     # on a CPU the cap is a number, which suits what plain layers hold
                     **({"kernels": "off"} if setting.tiny else {})},
        "evaluation": {"every": None, "rows": 2, "samples": 0, "batch_size": 1},
        "checkpoint": {"every": None, "best": None},
        "method": {"type": "lora", "r": 8, "target_modules": "all-linear"},
    }  # fmt: skip
    return setting.recipe(f"micro-{micro}", **sections)


def _cap_between(setting: Setting) -> int:
    """More than a quarter of the rows needs, and less than all of them do, as the device has measured both."""
    peaks = {}
    for micro in (WHOLE // 4, WHOLE) if setting.on_gpu else (WHOLE // 4,):
        record = train(_recipe(setting, micro), setting.folder / f"measured-{micro}")
        peaks[micro] = record["peak_memory_bytes"]
        gc.collect()
    setting.note(measured_peaks={str(micro): peak for micro, peak in peaks.items()})
    if not setting.on_gpu:
        return HOST_CAP_BYTES  # a process does not measure itself so; all that it imports is here by now, and stays
    require(peaks[WHOLE // 4] < 0.7 * peaks[WHOLE], f"the peak does not follow the micro-batch: {peaks}")
    return sum(peaks.values()) // 2
