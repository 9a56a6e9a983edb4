"""Gradient checkpointing: the same losses, and less memory at its peak."""

from __future__ import annotations

from setting import Setting, losses, memory_facts, require, train

WORTH = 72
SECONDS = 120
LOSS_TOLERANCE = 1e-5
"""Relative, in float32: a block that is computed again may sum in another order."""


def run(setting: Setting) -> str:
    length = 128 if setting.tiny else 1024
    found, peaks = {}, {}
    for chosen in (False, True, 2):
        recipe = setting.recipe(
            f"checkpointing-{chosen}",
            data={"train": {"path": "builtin:text", "rows": 40 if setting.tiny else 400}, "max_length": length},
            training={"gradient_checkpointing": chosen, "precision": "fp32", "max_steps": 2 if setting.tiny else 4,
                      "batch_size": 4 if setting.tiny else 16, "micro_batch_size": 4 if setting.tiny else 16},
            evaluation={"every": None, "rows": 4, "samples": 0},
            checkpoint={"every": None},
        )  # fmt: skip
        record = train(recipe, setting.folder / f"run-{chosen}")
        found[chosen], peaks[chosen] = losses(setting.folder / f"run-{chosen}"), record["peak_memory_bytes"]
        setting.note(**{f"every {int(chosen)}": {**memory_facts(record), "losses": found[chosen]}})
    for chosen in (True, 2):
        apart = max(abs(a - b) / abs(a) for a, b in zip(found[False], found[chosen], strict=True))
        require(
            apart <= LOSS_TOLERANCE, f"with gradient_checkpointing: {chosen} a loss differs by {apart:.2g}, relative"
        )
    if setting.on_gpu:  # a process on a CPU never gives memory back, so its later peaks say nothing
        require(peaks[True] < peaks[2] < peaks[False], f"peaks: {peaks}")
    shown = ", ".join(f"{int(chosen)}: {peak / 2**20:.0f} MiB" for chosen, peak in peaks.items())
    return f"equal losses; peak by layers between checkpoints (0: none) {shown}"
