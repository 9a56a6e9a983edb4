"""What of a folder a run of ours wrote, by its own list: the only files that a new run may take away.

A name alone proves nothing, a project may have a `recipe.yaml` and a `report.md` of its own. A folder is that of a run
where it holds a record, a checkpoint, or a resolved recipe after a run's lock; there every file must be one that runs
write. All else is somebody's own, and what holds anything of somebody's own is never touched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli import files, folders
from peftcli.errors import StorageError
from peftcli.models.companions import is_tokenizer_name
from peftcli.models.sentences import files_of_shape
from peftcli.models.snapshot import TEMPLATES_FOLDER
from peftcli.recipe.hub_recipe import RECIPE_NAME as RECIPE_NAME
from peftcli.runs.folder_lock import LOCK_NAMES
from peftcli.yaml import parse, plain
from peftcli.yaml_writing import dump

RECORD_NAME = "run.json"
"""The record of a run: what it was, did and measured."""
PREDICTIONS_NAME = "predictions.jsonl"
"""What the tuned model says of validation rows that have labels."""
HARNESS_NAME = "harness.json"
"""What base and tuned model last scored on tasks of lm-evaluation-harness."""
FINDINGS_NAME = "findings.jsonl"
"""What the data doctor found, one finding a line, in the run's `data/`."""
SCORES_NAME = "scores.safetensors"
"""What each validation row scored, in the run's `data/`."""
BATCH_PREFIX = "batch-step-"
"""How the files of batches that broke a run's numbers begin."""
_STATUS = ("completed", "interrupted", "failed")
_BEGUN = (RECIPE_NAME, "adapter", "checkpoints", "metrics.jsonl")
_SEED = re.compile(r"seed-\d+")
_LIMIT_BYTES = 64 << 20
_RESOLVED_START = "version: "
_RESOLVED_KEYS = frozenset(
    {"name", "seed", "seeds", "task", "device", "threads", "model", "data", "method", "training", "checkpoint"}
)
"""Sections that a recipe has once it is resolved, whoever wrote it and whatever it says."""

_TEMPORARY = rf"{re.escape(files.TEMPORARY_PREFIX)}[^/]+-\d+-[0-9a-f]{{8}}"
_BY_RUNS = re.compile(
    r"recipe\.(yaml|lock)|run\.json|metrics\.jsonl|predictions\.jsonl|harness\.json|report\.(html|md)|report-users\.html"
    r"|figures/[a-z0-9-]+\.svg"
    rf"|data/({re.escape(FINDINGS_NAME)}|{re.escape(SCORES_NAME)}|stream\.jsonl|{BATCH_PREFIX}\d{{8}}\.jsonl)"
    r"|checkpoints/step-\d{8}/((adapter|optimizer|best)\.safetensors|state\.json|manifest\.json)"
    rf"|((adapter|data|checkpoints)/)?{_TEMPORARY}(/.+)?"
)
_ADAPTER_NAMES = frozenset(
    {"adapter_config.json", "adapter_model.safetensors", "peftcli.json", "generation_config.json", "README.md"}
)
_BY_TRACKERS = re.compile(
    r"tracking/(mlflow\.db.*|(wandb|trackio|mlruns|mlartifacts|\.aim|\.clearml|dvclive|comet|swanlog)/.+"
    r"|([^/]+/)*(events\.out\.tfevents\.[^/]+|hparams\.yml))"
)
_FOLDERS = re.compile(rf"adapter(/[^/]+)?|data|figures|checkpoints(/step-\d{{8}})?|tracking(/.+)?|{_SEED.pattern}")


def holds_a_run(folder: Path) -> bool:
    """Whether there is anything to lose: the record of a start that failed before it had a recipe does not count."""
    if any(os.path.lexists(folder / name) for name in _BEGUN):
        # `lexists`: a link counts, wherever it leads
        return True
    return folder.is_dir() and any(_SEED.fullmatch(path.name) for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a run of ours was here."""
    return (
        is_record(_document(folder / RECORD_NAME))
        or any(_is_checkpoint(path) for path in _subfolders(folder / "checkpoints"))
        or ((folder / LOCK_NAMES[0]).is_file() and (_is_resolved(folder / RECIPE_NAME) or _is_runs_lock(folder)))
    )


def can_go_on(folder: Path) -> bool:
    """Whether a run was begun here that has not come to its end."""
    record = _document(folder / RECORD_NAME)
    ended = is_record(record) and record["status"] == "completed"
    return not ended and (folder / RECIPE_NAME).is_file() and is_run(folder)


def is_record(document: Any) -> bool:
    """Whether a JSON document is the record of a run."""
    return isinstance(document, dict) and document.get("status") in _STATUS and {"method", "base"} <= set(document)


def strangers(folder: Path) -> list[str]:
    """Names within a folder that no run of ours wrote, sorted; a folder that was not a run's is all strange."""
    return sorted(name for name, ours in _told_apart(folder) if not ours)


def others_in_adapter(folder: Path) -> list[str]:
    """Regular files in a run's `adapter/` that it did not write, as named there."""
    adapter = folder / "adapter"
    names = [name.removeprefix("adapter/") for name in strangers(folder) if name.startswith("adapter/")]
    return [name for name in names if (adapter / name).is_file() and not (adapter / name).is_symlink()]


def remove_run(folder: Path) -> list[str]:
    """Removes what runs wrote. Locks stay, and so does what somebody put there: the names of that are returned."""
    found = list(_told_apart(folder))
    with files.storage_errors(folder):
        for path in (*_seed_folders(folder), folder):
            ours = {name for name, mine in _told_apart(path) if mine}
            # record and recipe prove that the rest is ours: whatever stops us before the end, the next start goes on
            proofs = [name for name in (RECORD_NAME, RECIPE_NAME) if name in ours]
            for name in sorted(ours.difference(proofs)):
                files.disk.remove_file(path / name)
            # deepest first: a folder is empty only when those in it are gone
            for below in sorted(_folders_of(path), key=lambda below: -len(below.parts)):
                _remove_if_empty(below)
            for name in proofs:
                files.disk.remove_file(path / name)
            if path != folder:
                remove_locks(path)
                _remove_if_empty(path)
    return sorted(name for name, mine in found if not mine)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        files.disk.remove_empty(folder)


def remove_locks(folder: Path) -> None:
    """Removes the locks of a folder that holds nothing else."""
    left = list(folder.iterdir())
    if all(path.name in LOCK_NAMES for path in left):
        for path in left:
            files.disk.remove_file(path)


def _told_apart(folder: Path) -> Iterator[tuple[str, bool]]:
    """Every name in a folder but its locks, and whether a run of ours wrote it."""
    if not folder.is_dir():
        return
    ours, adapter = is_run(folder), written_adapter(folder)
    for name, path in _names(folder):
        seed = name.split("/")[0]
        if name in LOCK_NAMES or (_SEED.fullmatch(seed) and not path.is_symlink() and (folder / seed).is_dir()):
            continue
        if path.is_dir() and not path.is_symlink():
            # an empty folder of somebody's own has no file that could speak for it
            if not _FOLDERS.fullmatch(name) and not any(path.iterdir()):
                yield f"{name}/", False
            continue
        yield name, _is_ours(name, path, adapter) if ours else re.fullmatch(_TEMPORARY, name) is not None
    for path in _seed_folders(folder):
        yield from ((f"{path.name}/{name}", mine) for name, mine in _told_apart(path))


def _is_ours(name: str, path: Path, adapter: set[str]) -> bool:
    if _BY_TRACKERS.fullmatch(name):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    if name == RECIPE_NAME:
        return _is_resolved(path)
    if name.startswith("adapter/") and not name.startswith(f"adapter/{files.TEMPORARY_PREFIX}"):
        return name.removeprefix("adapter/") in adapter
    return _BY_RUNS.fullmatch(name) is not None


def written_adapter(folder: Path) -> set[str]:
    """Names in `adapter/` as its run has written them down; before it could, those that an adapter may have."""
    record = _document(folder / RECORD_NAME)
    listed = record.get("adapter_files") if isinstance(record, dict) else None
    names = {name for name, _ in _names(folder / "adapter")}
    templates = {name for name in names if name.startswith(f"{TEMPLATES_FOLDER}/") and is_tokenizer_name(name)}
    # the record lists files, and none in a folder below
    shape = {name for name in files_of_shape(folder / "adapter") if name in names}
    if isinstance(listed, dict) and listed:
        return {*map(str, listed), *_ADAPTER_NAMES, *templates, *shape}
    return {name for name in names if name in _ADAPTER_NAMES or is_tokenizer_name(name)} | shape


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file, link and folder below a folder; links are not followed."""
    for place, inner, names in os.walk(folder):
        for name in (*inner, *names):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _folders_of(folder: Path) -> list[Path]:
    known = (path for name, path in _names(folder) if _FOLDERS.fullmatch(re.sub(rf"^{_SEED.pattern}/", "", name)))
    return [path for path in known if path.is_dir() and not path.is_symlink()]


def _seed_folders(folder: Path) -> list[Path]:
    return [path for path in _subfolders(folder) if _SEED.fullmatch(path.name)]


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


# -- what proves a run -------------------------------------------------------------------------------------------


def _document(path: Path) -> Any:
    try:
        return None if path.is_symlink() else json.loads(files.read_bounded(path, limit_bytes=_LIMIT_BYTES))
    except (StorageError, ValueError, RecursionError):
        return None


def _is_checkpoint(folder: Path) -> bool:
    manifest = _document(folder / folders.MANIFEST_NAME)
    return isinstance(manifest, dict) and manifest.get("kind") == "checkpoint" and "run_id" in manifest


def _is_runs_lock(folder: Path) -> bool:
    """A lock that a run began with; the lock of a recipe that lies beside it is the recipe's."""
    lock = _document(folder / "recipe.lock")
    return isinstance(lock, dict) and {"format", "recipe", "source"} <= set(lock) and lock["source"] != RECIPE_NAME


def _is_resolved(path: Path) -> bool:
    """A recipe as runs write theirs: every section there, in our own form; nobody's hand writes that."""
    try:
        data = b"" if path.is_symlink() else files.read_bounded(path, limit_bytes=_LIMIT_BYTES)
        text = data.decode("utf-8")
        root = parse(data, path.name).node if text.startswith(_RESOLVED_START) else None
    except (StorageError, UnicodeDecodeError):
        return False
    document = None if root is None else plain(root)
    # written again and compared: a single comment or other spelling shows that a person edited it
    return isinstance(document, dict) and set(document) >= _RESOLVED_KEYS and dump(document) == text
