"""Opening what a command is given: a run folder or an adapter folder, with its base, tokenizer and recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli import files
from peftcli.adapters.storage import CONFIG_NAME, load, read_config, read_own
from peftcli.errors import AdapterError, CheckpointError, RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.models.load import DTYPES, load_model, load_tokenizer
from peftcli.models.source import BaseSource, resolve_base
from peftcli.plan import resolve_device, resolve_threads
from peftcli.recipe import LoadedRecipe, generation_from, load_recipe

RECIPE_NAME = "recipe.yaml"
RECORD_NAME = "run.json"


@dataclass(frozen=True)
class Location:
    """Where things lie: the adapter folder, and the run around it if there is one."""

    adapter: Path
    run: Path | None
    base: str
    """As recorded, or as the command was told."""
    base_folder: Path
    """What a relative base is relative to."""
    record: dict[str, Any]
    """`run.json`, empty for a bare adapter."""


@dataclass(frozen=True)
class Opened:
    """A model with its adapter attached, ready to answer."""

    location: Location
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    source: BaseSource
    dtype: torch.dtype
    device: str


def locate(path: str | Path, *, base: str | None = None) -> Location:
    """Finds the adapter in a run or adapter folder, and the base that it belongs to.

    Raises `AdapterError` (nothing there), `CheckpointError` (the run wrote no adapter).
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise AdapterError("no such run or adapter folder", where=str(path), fix="check the path")
    if not path.is_dir():
        raise AdapterError("this is a file, not a run or adapter folder", where=str(path), fix="name the folder")
    if (path / CONFIG_NAME).exists():
        run = path.parent if (path.parent / RECORD_NAME).is_file() else None
        return _located(path, run, base)
    if (path / RECORD_NAME).is_file() or (path / RECIPE_NAME).is_file():
        adapter = path / "adapter"
        if not (adapter / CONFIG_NAME).exists():
            seeds = sorted(found.name for found in path.glob("seed-*") if found.is_dir())
            if seeds:
                raise AdapterError(
                    f"this run holds an adapter for each of {len(seeds)} seeds",
                    where=str(path),
                    fix=f"name one of them, for instance {path / seeds[0]}",
                )
            raise CheckpointError(
                "the run has not written an adapter", where=str(path), fix="`peft resume` it, or train again"
            )
        return _located(adapter, path, base)
    raise AdapterError("neither a run nor an adapter lies here", where=str(path), fix="name a run or adapter folder")


def _located(adapter: Path, run: Path | None, base: str | None) -> Location:
    record = read_record(run) if run is not None else {}
    if base is not None:
        return Location(adapter, run, base, Path.cwd(), record)
    recorded = (read_own(adapter).get("base") or {}).get("name") or read_config(adapter).get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        raise AdapterError(
            "the adapter does not say which base it belongs to", where=str(adapter), fix="add --model BASE"
        )
    return Location(adapter, run, recorded, adapter, record)


def read_record(run: Path) -> dict[str, Any]:
    """`run.json` as plain JSON; empty while a run has not written one."""
    path = run / RECORD_NAME
    if not path.is_file():
        return {}
    try:
        record = json.loads(files.read_bounded(path, limit_bytes=64 << 20))
    except (ValueError, RecursionError) as error:
        raise CheckpointError("run.json is damaged", where=str(path), fix="train again") from error
    if not isinstance(record, dict) or not _is_usable(record):
        raise CheckpointError("run.json is damaged", where=str(path), fix="train again")
    return record


def _is_usable(record: dict[str, Any]) -> bool:
    """Whether the parts that are used beyond reports are what we write."""
    settings, samples = record.get("settings", {}), record.get("samples", [])
    return (
        isinstance(settings, dict)
        and str(settings.get("dtype", "float32")) in DTYPES
        and isinstance(samples, list)
        and all(isinstance(sample, dict) and isinstance(sample.get("prompt"), str) for sample in samples)
    )


def run_recipe(location: Location, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe of the run that an adapter lies in. Raises `RecipeError` for a bare adapter."""
    if location.run is None or not (location.run / RECIPE_NAME).is_file():
        raise RecipeError("a bare adapter has no recipe", where=str(location.adapter), fix="name a recipe as well")
    return load_recipe(location.run / RECIPE_NAME, overrides)


def open_adapter(
    path: str | Path, *, base: str | None = None, device: str = "auto", threads: int | str = "auto"
) -> Opened:
    """Loads base, tokenizer and adapter for use (not for training).

    The base's type is that of training where the run recorded it, else float32. Raises every error of loading.
    """
    location = locate(path, base=base)
    torch.set_num_threads(resolve_threads(threads))
    where = resolve_device(device)
    source = resolve_base(location.base, folder=location.base_folder)
    dtype = DTYPES[str(location.record.get("settings", {}).get("dtype", "float32"))]
    model = load_model(source, dtype=dtype, device=where, auto_class=auto_class_of(location))
    load(model, location.adapter)
    return Opened(location, model, adapter_tokenizer(location, source), source, dtype, where)


def auto_class_of(location: Location) -> str:
    """The auto class of the adapter's task, from `task_type` of its file."""
    task_type = read_config(location.adapter).get("task_type")
    return {
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "TOKEN_CLS": "AutoModelForTokenClassification",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    }.get(str(task_type), "AutoModelForCausalLM")


def adapter_tokenizer(location: Location, source: BaseSource) -> PreTrainedTokenizerBase:
    """The tokenizer and template frozen beside the adapter; the base's where the folder holds none."""
    _refuse_links(location.adapter)
    if (location.adapter / "tokenizer.json").is_file():
        frozen = BaseSource(str(location.adapter), str(location.adapter), None, location.adapter)
        return load_tokenizer(frozen)
    return load_tokenizer(source)


def _refuse_links(folder: Path) -> None:
    links = sorted(path.name for path in folder.iterdir() if path.is_symlink())
    if links:
        raise AdapterError(f"{links[0]} is a link", where=str(folder), fix="copy the file itself")


@dataclass(frozen=True)
class Writing:
    """How text is to be written: the recipe's `generation`, the seed of its draws, and settings without effect."""

    config: GenerationConfig
    seed: int
    warnings: tuple[str, ...]


def writing_of(location: Location, overrides: Sequence[str] = ()) -> Writing:
    """The run's `generation` section and `seed`, or the defaults for a bare adapter, with `--set` over them.

    Raises `RecipeError` for an override of any other key.
    """
    wrong = [text for text in overrides if not text.startswith(("generation.", "seed="))]
    if wrong:
        raise RecipeError(f"--set {wrong[0]} has no effect here", fix="only `seed` and generation.* keys do")
    if location.run is not None and (location.run / RECIPE_NAME).is_file():
        recipe = load_recipe(location.run / RECIPE_NAME, overrides).recipe
        config, seed = recipe.generation, recipe.seed
    else:
        config, seed = generation_from(overrides)
    return Writing(config, seed, tuple(config.idle_settings()))
