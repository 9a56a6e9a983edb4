"""The packages that a recipe computes with, and their versions: they are inputs of its run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata

import peftcli
from peftcli.evaluation.registry import get_metric
from peftcli.models.storage_names import PACKAGES as STORAGE_PACKAGES
from peftcli.recipe import Recipe

PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "jinja2", "pydantic",
)  # fmt: skip
"""Packages whose behaviour reaches the numbers of every run, beside peftcli itself."""
_ENTRY_POINT_GROUPS = ("peftcli.methods", "peftcli.tasks", "peftcli.formats", "peftcli.metrics")


def package_versions(recipe: Recipe) -> dict[str, str]:
    """Versions of what computes. A package that this recipe does not use is no input of it, installed or not."""
    return {"peftcli": peftcli.__version__, **versions((*PACKAGES, *sorted(_of_choices(recipe))))}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed, in order."""
    found = {}
    for name in dict.fromkeys(packages):
        # `dict.fromkeys`: a package may be asked for by several choices
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _of_choices(recipe: Recipe) -> Iterator[str]:
    """What the recipe's optimizer, metrics and parts of other packages bring in."""
    if (package := recipe.training.optimizer.package) is not None:
        yield package
    if (storage := recipe.model.quantization) is not None:
        yield STORAGE_PACKAGES[storage]
    for metric in recipe.evaluation.metrics:
        yield from get_metric(metric).packages
    chosen = {
        _plain(name) for name in (recipe.method.name, recipe.task, recipe.data.format, *recipe.evaluation.metrics)
    }
    for group in _ENTRY_POINT_GROUPS:
        for point in metadata.entry_points(group=group):
            if point.dist is not None and _plain(point.name) in chosen:
                yield point.dist.name


def _plain(name: str) -> str:
    return name.replace("-", "_")
