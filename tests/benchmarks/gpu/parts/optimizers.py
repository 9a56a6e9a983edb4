"""Every optimizer of a recipe: a short run, and the same run resumed midway, byte for byte."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, get_args

from setting import Setting, losses, peft, record_of, require, require_same_run

from peftcli.errors import DeviceError
from peftcli.training.config import TrainingConfig
from peftcli.training.optimizer_config import OptimizerConfig
from peftcli.training.optimizers import require_optimizer

WORTH = 64
SECONDS = 170


def names() -> list[str]:
    """The optimizers that a recipe can name."""
    return [name for section in get_args(OptimizerConfig) for name in get_args(section.model_fields["type"].annotation)]


def run(setting: Setting) -> str:
    found: dict[str, str] = {}
    faults = []
    for name in names():
        try:
            found[name] = _try(setting, name)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:300]
            faults.append(f"{name}: {found[name]}")
        setting.note(optimizers=dict(found))
    require(not faults, "; ".join(faults)[:600])
    others = [f"{name} {said}" for name, said in found.items() if said != "resumed"]
    return f"{list(found.values()).count('resumed')} of {len(found)} trained and resumed to the same bytes" + (
        f"; {', '.join(others)}" if others else ""
    )


def _try(setting: Setting, name: str) -> str:
    section: dict[str, Any] = {"type": name}
    config = TrainingConfig.model_validate({"optimizer": name, "scheduler": "constant"}).optimizer
    # whole tables, so that there are states which are quantized, and some large enough to be paged
    large = config.package == "bitsandbytes"
    if large:
        section["min_8bit_size"] = 256
    method = {"type": "full"} if large else {"type": "lora", "r": 4}
    training = {"optimizer": section, "scheduler": "constant", "precision": "bf16" if setting.on_gpu else "fp32",
                "max_steps": 2 if setting.tiny else 6, "learning_rate": 1e-3, "batch_size": 4}  # fmt: skip
    recipe = setting.recipe(
        name, training=training, method=method, checkpoint={"every": 1 if setting.tiny else 2},
        data={"train": {"path": "builtin:support", "rows": 16}, "validation": 4},
        evaluation={"every": None, "rows": 4, "samples": 0},
    )  # fmt: skip
    run = setting.folder / name
    try:
        require_optimizer(config, device=setting.device)
    except DeviceError as error:
        peft("train", recipe, "--output", run, "--quiet", code=5)
        return "not installed" if "not installed" in str(error) else "refused here, with exit code 5"
    peft("train", recipe, "--output", run, "--quiet")
    require(all(map(math.isfinite, losses(run))), "a loss is not finite")
    part = _midway(run)
    peft("resume", part, "--quiet")
    require(record_of(part)["status"] == "completed", "the resumed run did not end")
    require_same_run(run, part, "resumed and uninterrupted")
    return "resumed"


def _midway(run: Path) -> Path:
    """A copy of a run as a kill at its middle leaves it."""
    part = run.with_name(f"{run.name}-part")
    shutil.copytree(run, part)
    for checkpoint in sorted((part / "checkpoints").iterdir())[2:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(part / "adapter")
    (part / "run.json").unlink()
    return part
