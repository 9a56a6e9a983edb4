"""The settings of runs beside each other: in what they differ, and in what they are alike."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.reports import numbers
from peftcli.reports.folder import RunFacts
from peftcli.reports.sections.parts import flatten
from peftcli.reports.visible import short_path

_NOT_SETTINGS = ("name", "output", "seed", "version")

Lines = list[tuple[str, list[str]]]
"""A setting's dotted name, and its value in each run."""


def parted_settings(runs: Sequence[RunFacts]) -> tuple[Lines, Lines]:
    """Settings that differ between runs, and those that do not, in the order of the recipe."""
    columns = [dict(_settings(run)) for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    # as text: 1 and 1.0 are one setting, and what is missing differs from what is null
    lines = [(key, [column.get(key, numbers.MISSING) for column in columns]) for key in keys]
    return [line for line in lines if len(set(line[1])) > 1], [line for line in lines if len(set(line[1])) == 1]


def _settings(run: RunFacts) -> list[tuple[str, str]]:
    record = run.record
    own = {
        "method": record.method,
        "base": short_path(record.base),
        "seed": str(record.seed),
        "peftcli": record.version,
    }
    if record.learning_rate is not None:
        own["learning_rate"] = f"{record.learning_rate:.3g}"
    # what the recipe says, with how the rest was resolved after it
    recipe = {key: value for key, value in record.recipe.items() if key not in _NOT_SETTINGS}
    return [*own.items(), *flatten(recipe), *flatten(record.settings), *flatten(record.environment, "environment.")]
