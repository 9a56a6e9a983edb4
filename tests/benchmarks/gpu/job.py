"""The main job in one precision: train, twice; evaluate, generate, merge with its proof, reproduce, resume."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from setting import Setting, gib, losses, memory_facts, peft, record_of, require, require_same_run, train

DEVICE_ERROR = 5


def main_job(setting: Setting, precision: str) -> str:
    """Runs it all; returns a line on what was found."""
    sizes = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2} if setting.tiny else {"max_steps": 20}
    training = {"precision": precision, **sizes}
    data = (
        {"train": {"path": "builtin:support", "rows": 16}, "validation": 4, "max_length": 160} if setting.tiny else {}
    )
    recipe = setting.recipe(training=training, data=data)
    if precision == "fp16" and not setting.on_gpu:
        peft("train", recipe, "--output", setting.folder / "run", "--quiet", code=DEVICE_ERROR)
        return "refused on a CPU, with exit code 5, as it should be"
    run = setting.folder / "run"
    record = train(recipe, run)
    _check_record(setting, record, run, precision)
    train(recipe, setting.folder / "twin")
    require_same_run(run, setting.folder / "twin", "two runs of one recipe")
    _check_use(setting, run, record)
    _check_repeats(setting, run)
    return f"repeats, resumes and reproduces; merge within {setting.figures['merge_difference']:.2g}; " + _numbers(
        setting
    )


def _numbers(setting: Setting) -> str:
    figures = setting.figures
    fell = f"loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f}"
    return f"{fell}, peak {gib(figures['peak_memory_bytes'])} (planned {gib(figures['planned_peak_bytes'])})"


def _check_record(setting: Setting, record: dict, run: Path, precision: str) -> None:
    found = losses(run)
    setting.note(**memory_facts(record), first_loss=found[0], last_loss=found[-1], warnings=record["warnings"],
                 tokens_per_second=record["tokens_per_second"], seconds=record["seconds"])  # fmt: skip
    require(record["status"] == "completed", f"the run is {record['status']}")
    require(all(map(math.isfinite, found)), "a loss is not finite")
    base, tuned = (record["evaluation"][which]["eval_loss"] for which in ("base", "tuned"))
    require(tuned < base, f"the evaluation loss did not fall: {base:.4f} -> {tuned:.4f}")
    settings = record["settings"]
    require(settings["device"] == setting.device, f"it ran on {settings['device']}")
    require(settings["precision"] == precision, f"it ran in {settings['precision']}")
    require(0 < record["model_memory_bytes"] <= record["peak_memory_bytes"], "the memory in run.json makes no sense")
    require(not any("deterministic" in line for line in record["warnings"]), f"warned: {record['warnings']}")
    if setting.on_gpu:
        import torch

        require(bool(record["environment"].get("gpu")), "run.json does not name the GPU")
        seen = torch.cuda.max_memory_allocated()
        require(record["peak_memory_bytes"] <= seen, f"run.json tells more than CUDA's peak, {seen:,} bytes")
        require(seen < 1.05 * record["peak_memory_bytes"], f"run.json tells less than CUDA's peak, {seen:,} bytes")


def _check_use(setting: Setting, run: Path, record: dict) -> None:
    scores = peft("evaluate", run, "--quiet")
    trained, again = record["evaluation"]["tuned"]["eval_loss"], scores["tuned"]["eval_loss"]
    setting.note(evaluated_apart=abs(trained - again))
    require(abs(trained - again) <= 1e-5 * abs(trained), f"evaluated again: {again!r}, in training {trained!r}")
    answer = peft("generate", run, "--prompt", "My lamp arrived broken.", "--quiet")
    require(bool(answer), "generate said nothing")
    merged = peft("merge", run, "--output", setting.folder / "merged", "--quiet")
    setting.note(merge_difference=merged["max_difference"], merge_tolerance=merged["tolerance"],
                 adapter_effect=merged["adapter_effect"])  # fmt: skip
    require(merged["max_difference"] <= merged["tolerance"], "the merge is beyond its tolerance")
    require(merged["adapter_effect"] > 0, "the adapter has no effect, so the merge proves nothing")


def _check_repeats(setting: Setting, run: Path) -> None:
    found = peft("reproduce", run, "--strict", "--quiet")
    setting.note(reproduced=found)
    part = setting.folder / "part"
    shutil.copytree(run, part)
    newest = max((part / "checkpoints").iterdir())
    shutil.rmtree(newest)
    shutil.rmtree(part / "adapter")
    (part / "run.json").unlink()
    peft("resume", part, "--quiet")
    require(record_of(part)["status"] == "completed", "the resumed run did not end")
    require_same_run(run, part, "resumed and uninterrupted")
