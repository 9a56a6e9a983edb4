"""The run folder: where it is, and the small files written into it before training starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files
from peftcli.data.doctor.base import Finding
from peftcli.data.doctor.run import findings_lines
from peftcli.errors import CheckpointError
from peftcli.kernels.names import OFF
from peftcli.planning.resolved import Resolved
from peftcli.recipe import LoadedRecipe, resolved_yaml
from peftcli.redaction import redacted, redacted_name
from peftcli.runs.own_files import BATCH_PREFIX, FINDINGS_NAME, RECIPE_NAME, is_run


def choose_output(loaded: LoadedRecipe, output: str | Path | None) -> Path:
    """The run folder: `--output`, the recipe's `output`, or the next free `runs/<name>-001`."""
    wanted = output if output is not None else loaded.recipe.output
    if wanted is not None:
        return Path(wanted).expanduser().absolute()
    number = 1
    # from 1 each time: the number of a run that was removed is free again
    while (folder := Path("runs").absolute() / f"{loaded.name}-{number:03d}").exists():
        number += 1
    return folder


def existing_run(path: str | Path) -> Path:
    """The folder of a run to resume. Raises `CheckpointError` where there is none: a recipe alone is not yet a run."""
    folder = Path(path).expanduser().absolute()
    if not (folder / RECIPE_NAME).is_file() or not is_run(folder):
        raise CheckpointError("there is no run to resume here", where=str(folder), fix="name the folder of a run")
    return folder


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """`data/findings.jsonl`: what the doctor found, one object a line; empty when it found nothing."""
    masked = [
        dataclasses.replace(found, file=redacted_name(found.file), message=redacted(found.message))
        for found in findings
    ]
    files.write_text(folder / "data" / FINDINGS_NAME, "".join(line + "\n" for line in findings_lines(masked)))


def keep_batch(folder: Path, step: int, indices: Sequence[int], rows: Sequence[Any]) -> str:
    """Keeps the rows of a batch that broke the numbers, for `peft data`; returns the file's path within the run."""
    lines = [
        {
            "step": step,
            "row": int(index),
            "file": getattr(row.origin, "file", None),
            "line": getattr(row.origin, "line", None),
            "input_ids": np.asarray(row.input_ids).tolist(),
            "weights": np.asarray(row.weights).tolist(),
        }
        for index, row in zip(indices, rows, strict=True)
    ]
    name = f"data/{BATCH_PREFIX}{step:08d}.jsonl"
    files.write_text(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
    return name


def resolved_values(resolved: Resolved) -> dict[str, Any]:
    """Dotted recipe keys and the values that their `auto` took."""
    recomputed = resolved.gradient_checkpointing
    return {
        **({} if recomputed is None else {"training.gradient_checkpointing": recomputed}),
        "device": resolved.device,
        "threads": resolved.threads,
        "model.dtype": resolved.dtype,
        "training.precision": resolved.precision,
        "training.micro_batch_size": resolved.micro_batch_size,
        "training.learning_rate": resolved.learning_rate,
        "training.kernels": list(resolved.kernels) or OFF,
    }


def write_recipe(folder: Path, loaded: LoadedRecipe, resolved: Resolved) -> None:
    """`recipe.yaml`: the resolved recipe with every `auto` as the value that this run takes, so that it repeats."""
    files.write_text(folder / RECIPE_NAME, resolved_yaml(loaded, resolved_values(resolved)))
