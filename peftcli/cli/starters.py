"""Starter recipes: package data, copied out, never over a file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peftcli
from peftcli import files
from peftcli.errors import PeftcliError, RecipeError
from peftcli.ownership import write_new
from peftcli.recipe import load_recipe
from peftcli.recipe.json_schema import recipe_schema
from peftcli.tasks.registry import DEFAULT_TASK
from peftcli.yaml_writing import flow

_FOLDER = Path(__file__).parent / "templates"
_SUMMARY_MARK = "# "
SCHEMA_NAME = "peft-recipe.schema.json"
"""The name that the first line of a starter gives to editors."""
CI_PATHS = {"github": ".github/workflows/recipes.yml", "gitlab": ".gitlab-ci.yml"}
"""Service -> where it looks for its jobs."""


def starter_names() -> list[str]:
    """Names of the starters; quickstart first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: (name != "quickstart", name))


def starter_summaries() -> dict[str, str]:
    """Name -> the sentence at the top of the starter."""
    found = {}
    for name in starter_names():
        lines = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = next(line for line in lines if line.startswith(_SUMMARY_MARK) and "yaml-language-server" not in line)
        found[name] = comment.removeprefix(_SUMMARY_MARK)
    return found


def starter_tasks() -> dict[str, str]:
    """Name -> the task that the starter's recipe learns."""
    found = {}
    for name in starter_names():
        lines = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        stated = (line.removeprefix("task:").strip() for line in lines if line.startswith("task:"))
        found[name] = next(stated, DEFAULT_TASK)
    return found


def starter_text(name: str, *, model: str | None = None, data: Mapping[str, Any] | None = None) -> str:
    """A starter, with another base and other data where they are given. Raises `RecipeError` for an unknown one."""
    lines = (_FOLDER / f"{starter_named(name)}.yaml").read_text(encoding="utf-8").splitlines()
    replaced = {"model": None if model is None else flow(model), "data": None if data is None else flow(data)}
    if data is not None:
        # the number of steps suits the rows that ship; of other rows three passes are a beginning
        replaced["training"] = flow({"epochs": 3, "batch_size": 16})
    kept = [
        f"{key}: {new}" if (new := replaced.get(key := line.partition(":")[0])) is not None else line for line in lines
    ]
    return "\n".join(kept) + "\n"


def starter_named(name: str) -> str:
    """A starter's own name. Raises `RecipeError` for an unknown one."""
    key = name.strip().lower().replace("_", "-")
    if key not in starter_names():
        near = difflib.get_close_matches(key, starter_names(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(starter_names())}"
        raise RecipeError(f"no starter {name!r}", fix=hint)
    return key


def write_starter(
    name: str, output: Path | None, *, model: str | None = None, data: Mapping[str, Any] | None = None
) -> Path:
    """Writes a starter to `output` (default `./NAME.yaml`), and beside it the schema that editors find by it.

    Raises `RecipeError` for an unknown one, `StorageError` when the file exists.
    """
    text = starter_text(name, model=model, data=data)
    path = output if output is not None else Path(f"{starter_named(name)}.yaml")
    write_new(path, text)
    schema = path.parent / SCHEMA_NAME
    # any schema that is there stays, also one that somebody has edited
    if not os.path.lexists(schema):
        files.write_text(schema, files.to_json(recipe_schema()))
    return path


def write_ci_job(service: str, output: Path | None, recipes: Sequence[Path] = ()) -> Path:
    """Writes a CI job that validates, plans, smoke-trains and reproduces recipes.

    `recipes`: default, those in the working directory and in `recipes/`, else `quickstart.yaml`. Raises `RecipeError`
    for an unknown service, `StorageError` when the file exists.
    """
    if service not in CI_PATHS:
        near = difflib.get_close_matches(service.lower(), CI_PATHS, n=1)
        raise RecipeError(f"no CI job for {service!r}", fix=f"--ci {near[0] if near else ' or '.join(CI_PATHS)}")
    path = output if output is not None else Path(CI_PATHS[service])
    names = [str(found) for found in recipes or _recipes_here() or [Path("quickstart.yaml")]]
    template = (_FOLDER / "ci" / f"{service}.yaml").read_text(encoding="utf-8")
    write_new(path, template.replace("@RECIPES@", " ".join(names)).replace("@VERSION@", peftcli.__version__))
    return path


def _recipes_here() -> list[Path]:
    """Files that load as recipes, in the working directory and in `recipes/`."""
    found = []
    for path in (*sorted(Path().glob("*.y*ml")), *sorted(Path("recipes").glob("*.y*ml"))):
        # names go into a line of shell, parted by spaces
        if " " in str(path) or path.name.startswith("."):
            continue
        try:
            load_recipe(path)
        except PeftcliError:
            continue  # another kind of file
        found.append(path)
    return found
