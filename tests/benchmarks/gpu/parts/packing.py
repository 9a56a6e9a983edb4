"""Packed rows: the same losses as rows alone, and how much faster on this device."""

from __future__ import annotations

from setting import Setting, losses, memory_facts, require, train

WORTH = 70
SECONDS = 120
LOSS_TOLERANCE = 1e-4
"""Relative, in float32: attention over several rows sums in another order, and so does each step after the first."""


def run(setting: Setting) -> str:
    found, speeds = {}, {}
    for packed in (False, True):
        recipe = setting.recipe(
            f"packing-{packed}",
            data={"train": {"path": "builtin:instruct"}, "validation": 4, "max_length": 512, "packing": packed},
            method={"type": "lora", "r": 8, "target_modules": "all-linear"},
            training={"max_steps": 3 if setting.tiny else 12, "precision": "fp32", "learning_rate": 2e-3,
                      "batch_size": 16 if setting.tiny else 128, "micro_batch_size": 4 if setting.tiny else 16},
            evaluation={"every": None, "rows": 4, "samples": 0},
            checkpoint={"every": None},
        )  # fmt: skip
        record = train(recipe, setting.folder / f"run-{packed}")
        require(record.get("status") == "completed", f"packing: {packed} ended as {record.get('status')}")
        found[packed], speeds[packed] = losses(setting.folder / f"run-{packed}"), record["tokens_per_second"]
        figures = {"padding": record["plan"]["padding"], "tokens_per_second": speeds[packed]}
        setting.note(**{"packed" if packed else "padded": {**memory_facts(record), **figures, "losses": found[packed]}})
    apart = max(abs(a - b) / abs(a) for a, b in zip(found[False], found[True], strict=True))
    require(apart <= LOSS_TOLERANCE, f"packed, a loss differs by {apart:.2g}, relative")
    return f"losses within {apart:.1g}; {speeds[True]:,.0f} tokens/s packed, {speeds[False]:,.0f} padded"
