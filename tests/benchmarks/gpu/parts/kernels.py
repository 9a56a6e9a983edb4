"""Each fast path against its plain form: the same losses, and what it costs in time and memory; recomputed and not."""

from __future__ import annotations

from typing import Any

from setting import Setting, events, losses, memory_facts, require, train

from peftcli.kernels.names import KERNELS

WORTH = 78
SECONDS = 200
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative, over the whole run."""


def run(setting: Setting) -> str:
    told = []
    for precision in LOSS_TOLERANCE:
        plain = _arm(setting, precision, "off", checkpointing=False)
        for label, names in {**{name: [name] for name in KERNELS}, "all": list(KERNELS)}.items():
            found = _arm(setting, precision, names, checkpointing=False)
            _require_alike(plain, found, precision, label)
            _require_taken(found, names)
        again = _arm(setting, precision, list(KERNELS), checkpointing=True)
        _require_alike(plain, again, precision, "all, recomputed")
        speed = found["tokens_per_second"] / max(plain["tokens_per_second"], 1e-9)
        peak = found["peak_memory_bytes"] / plain["peak_memory_bytes"]
        told.append(f"{precision} {speed:.2f} x the tokens/s and {peak:.2f} x the peak of the plain forms")
    return f"equal losses of {', '.join(KERNELS)}; all together: {'; '.join(told)}"


def _arm(setting: Setting, precision: str, kernels: Any, *, checkpointing: bool) -> dict[str, Any]:
    label = f"{precision} {kernels if isinstance(kernels, str) else '+'.join(kernels)}{' recomputed' * checkpointing}"
    steps, rows = (3, 4) if setting.tiny else (20, 32)
    recipe = setting.recipe(
        label.replace(" ", "-"),
        data={"train": {"path": "builtin:text", "rows": 40 if setting.tiny else 640}, "validation": 4,
              "max_length": 128 if setting.tiny else 1024},
        method={"type": "lora", "r": 16, "target_modules": "all-linear"},
        training={"precision": precision, "kernels": kernels, "max_steps": steps, "batch_size": rows,
                  "micro_batch_size": rows, "gradient_checkpointing": checkpointing},
        evaluation={"every": None, "rows": 4, "samples": 0},
        checkpoint={"every": None},
    )  # fmt: skip
    folder = setting.folder / recipe.stem
    record = train(recipe, folder)
    found = {
        **memory_facts(record),
        "tokens_per_second": record["tokens_per_second"],
        "kernels": record["settings"]["kernels"],
        "losses": losses(folder),
        "norms": [line["grad_norm"] for line in events(folder, "train")],
    }
    setting.note(**{label: found})
    return found


def _require_alike(plain: dict[str, Any], found: dict[str, Any], precision: str, label: str) -> None:
    apart = max(abs(a - b) / abs(a) for a, b in zip(plain["losses"], found["losses"], strict=True))
    require(apart <= LOSS_TOLERANCE[precision], f"{precision}, {label}: a loss differs by {apart:.2g}, relative")
    require(all(norm > 0 for norm in found["norms"]), f"{precision}, {label}: a gradient is zero")


def _require_taken(found: dict[str, Any], names: list[str]) -> None:
    missing = [name for name in names if found["kernels"].get(name) != "taken"]
    require(not missing, f"not taken: {', '.join(missing)}: {found['kernels']}")
