"""Name -> metric, found by file or entry point. Importing this imports neither torch nor any metric's package."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.errors import DeviceError, Fault, RecipeError

if TYPE_CHECKING:
    from peftcli.evaluation.metric import Metric
    from peftcli.reports.metric_facts import MetricFacts

ENTRY_POINT_GROUP = "peftcli.metrics"
REPORT_PREFIX = "eval_"
"""In front of the name of a metric in records, locks and gates."""

_FOLDER = Path(__file__).parent / "metrics"
_NEEDS = {
    "losses": "losses",
    "answers": "generations",
    "labels": "labels",
    "preferences": "preferences",
    "likelihoods": "likelihoods",
    "vectors": "vectors",
}
"""Field of a metric -> what a metric that has it looks at."""


@functools.cache
def _outside_metrics() -> dict[str, metadata.EntryPoint]:
    return {point.name.replace("-", "_"): point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


@functools.cache
def metric_names() -> tuple[str, ...]:
    """All metrics, ours and those of installed packages, sorted, with underscores."""
    return tuple(sorted({module.name for module in pkgutil.iter_modules([str(_FOLDER)])} | set(_outside_metrics())))


def resolve_metric_name(name: str) -> str:
    """A name as a recipe writes it (hyphens or underscores, with or without `eval_`) -> the metric's own name.

    Raises `RecipeError` with the nearest names.
    """
    key = name.strip().lower().replace("-", "_").replace("@", "_at_").removeprefix(REPORT_PREFIX)
    if key in metric_names():
        return key
    near = difflib.get_close_matches(key, metric_names(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(f'`{other}`' for other in near)}?" if near else f"known: {_listed()}"
    raise RecipeError(f"unknown metric `{name}`", fix=hint)


def get_metric(name: str) -> Metric:
    """The metric of a name. Raises `RecipeError` as `resolve_metric_name` does."""
    key = resolve_metric_name(name)
    outside = _outside_metrics().get(key)
    metric: Metric = outside.load() if outside else importlib.import_module(f"peftcli.evaluation.metrics.{key}").METRIC
    return metric


def packages_of(name: str) -> tuple[str, ...]:
    """Packages that one of our metrics says it needs, read from its file's text: importing it would import numpy.

    Nothing for a metric of another package, whose file nobody knows; `load_metrics` asks it.
    """
    found = [word.value for word in _stated(name) if word.arg == "packages"]
    return tuple(package for value in found for package in ast.literal_eval(value))


def needs_of(name: str) -> str | None:
    """What one of our metrics looks at (`Metric.needs`), read from its file's text likewise; None for others."""
    given = {word.arg for word in _stated(name)}
    return next((needs for field, needs in _NEEDS.items() if field in given), None)


def _stated(name: str) -> list[ast.keyword]:
    """The facts that the file of one of our metrics gives to `Metric`; nothing for a metric of another package."""
    key = resolve_metric_name(name)
    path = _FOLDER / f"{key}.py"
    if key in _outside_metrics() or not path.is_file():
        return []
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return [
        word for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Metric" for word in call.keywords
    ]


def load_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Metrics by their own name, `loss` first and always there.

    Raises `DeviceError` naming every missing package and the line that installs it, so that a run can ask before it
    trains for hours.
    """
    keys = dict.fromkeys(["loss", *(resolve_metric_name(name) for name in names)])
    metrics = {key: get_metric(key) for key in keys}
    faults = [
        Fault(f"metric `{key}` needs the package {package}", fix="pip install 'peftcli[metrics]'")
        for key, metric in metrics.items()
        for package in metric.packages
        if importlib.util.find_spec(package) is None
    ]
    if faults:
        raise DeviceError("packages for metrics are missing", faults=faults)
    return metrics


def metric_facts(metric: str) -> MetricFacts:
    """What a metric says of itself, by its name or its reported `eval_<name>`."""
    return get_metric(metric).facts


def _listed() -> str:
    return ", ".join(metric_names())
