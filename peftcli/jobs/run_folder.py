"""The run folder: where it is, who owns it, and the small files written into it before training starts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files
from peftcli.data.doctor.base import Finding
from peftcli.data.doctor.run import findings_lines
from peftcli.errors import CheckpointError, StorageError
from peftcli.plan import Resolved
from peftcli.recipe import LoadedRecipe, resolved_yaml
from peftcli.redaction import redacted

RECIPE_NAME = "recipe.yaml"
RECORD_NAME = "run.json"
FINDINGS_NAME = "findings.jsonl"
BATCH_PREFIX = "batch-step-"
_RUN_MARKS = (RECIPE_NAME, "adapter", "checkpoints", "metrics.jsonl")


def choose_output(loaded: LoadedRecipe, output: str | Path | None) -> Path:
    """The run folder: `--output`, the recipe's `output`, or the next free `runs/<name>-001`."""
    wanted = output if output is not None else loaded.recipe.output
    if wanted is not None:
        return Path(wanted).expanduser().absolute()
    number = 1
    while (folder := Path("runs").absolute() / f"{loaded.name}-{number:03d}").exists():
        number += 1
    return folder


def holds_a_run(folder: Path) -> bool:
    """Whether there is anything to lose: the record of a start that failed before it had a recipe does not count."""
    return any((folder / name).exists() for name in _RUN_MARKS)


@contextlib.contextmanager
def new_run_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Makes and owns the folder of a new run, before anything slow is done.

    Raises `StorageError` when a file is in the way, the folder holds a run (unless `replace`) or other files, or
    another process owns it.
    """
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise StorageError("the output path is a file, not a folder", where=str(part), fix="choose another output")
    if folder.is_dir() and not replace and holds_a_run(folder):
        raise StorageError(
            "the folder holds a run already",
            where=str(folder),
            fix="choose another --output, add --replace, or `peft resume` it",
        )
    strangers = _strangers(folder)
    if strangers:
        raise StorageError(
            f"the folder holds other files ({', '.join(strangers[:3])})", where=str(folder), fix="choose another output"
        )
    with files.owned_folder(folder):
        _require_writable(folder)
        if replace or (folder / RECORD_NAME).exists():
            _clear(folder)
        yield folder


_OURS = {
    "adapter", "checkpoints", "data", "metrics.jsonl", "recipe.lock", RECIPE_NAME, "report.html", "report.md",
    "run.json", "tracking", *files.LOCK_NAMES,
}  # fmt: skip


def _strangers(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir())
    found = [n for n in names if n not in _OURS and not n.startswith((files.TEMPORARY_PREFIX, "seed-"))]
    return found + [f"data/{path.name}" for path in sorted((folder / "data").glob("*")) if not _is_our_data(path)]


def _is_our_data(path: Path) -> bool:
    """A folder `data` may hold the user's own rows."""
    return path.name.startswith((FINDINGS_NAME, BATCH_PREFIX, files.TEMPORARY_PREFIX))


def _require_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("no permission to write here", where=str(folder), fix="choose another output")


def _clear(folder: Path) -> None:
    """Removes a run, or what a failed start left; record and recipe first, so that half of it is never read as whole."""
    with files.storage_errors(folder):
        for path in sorted(folder.iterdir(), key=lambda item: item.name not in (RECORD_NAME, RECIPE_NAME)):
            if path.name in files.LOCK_NAMES:
                continue
            files.remove_path(path)


def existing_run(path: str | Path) -> Path:
    """The folder of a run to resume. Raises `CheckpointError` where there is none."""
    folder = Path(path).expanduser().absolute()
    if not (folder / RECIPE_NAME).is_file():
        raise CheckpointError("there is no run to resume here", where=str(folder), fix="name the folder of a run")
    return folder


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """`data/findings.jsonl`: what the doctor found, one object a line; empty when it found nothing."""
    files.write_text(
        folder / "data" / FINDINGS_NAME, redacted("".join(line + "\n" for line in findings_lines(findings)))
    )


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
    return {
        "device": resolved.device,
        "threads": resolved.threads,
        "model.dtype": resolved.dtype,
        "training.precision": resolved.precision,
        "training.micro_batch_size": resolved.micro_batch_size,
        "training.learning_rate": resolved.learning_rate,
        # every operation is plain torch so far
        "training.kernels": "off",
    }


def write_recipe(folder: Path, loaded: LoadedRecipe, resolved: Resolved) -> None:
    """`recipe.yaml`: the resolved recipe with every `auto` as the value that this run takes, so that it repeats."""
    files.write_text(folder / RECIPE_NAME, resolved_yaml(loaded, resolved_values(resolved)))
