"""`peft diff`: two runs or adapters side by side: recipe, lock, data, metrics, per-layer updates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.documents import read_config
from peftcli.jobs.diff_layers import LayerPair, layer_pairs
from peftcli.lock.differences import Difference, environment_differences, input_differences
from peftcli.lock.document import LOCK_NAME
from peftcli.lock.lock_file import read_lock
from peftcli.lock.places import without_places
from peftcli.recipe import flat_recipe, load_recipe
from peftcli.recipe.schema import Recipe
from peftcli.reports.tables import text_table
from peftcli.runs.locating import Location, locate
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.yaml_writing import flow

_NOT_COMPARED = ("name", "output")
_DATA_FACTS = ("rows_read", "rows_kept", "rows", "tokens", "trained_tokens", "order_sha256", "stream_sha256")
_SHOWN_LAYERS = 24
_WIDTH = 110


@dataclass(frozen=True)
class ItemDifference:
    """One thing that differs."""

    item: str
    a: Any
    b: Any


@dataclass(frozen=True)
class MetricRow:
    """One metric of both tuned models, and of their bases."""

    metric: str
    base_a: float | None
    a: float | None
    base_b: float | None
    b: float | None


@dataclass(frozen=True)
class DiffReport:
    """What differs; an empty part is equal, None where one side has no such part (a bare adapter)."""

    a: str
    b: str
    recipe: tuple[ItemDifference, ...]
    recipe_kind: str
    """`recipe` of two runs, else `adapter_config`."""
    lock: tuple[Difference, ...] | None
    data: tuple[ItemDifference, ...] | None
    metrics: tuple[MetricRow, ...] | None
    layers: tuple[LayerPair, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {
            **asdict(self),
            "lock": None if self.lock is None else [item.to_dict() for item in self.lock],
            "summary": self.summary(),
        }

    def summary(self) -> dict[str, float | None]:
        """Means over the layers that both have."""
        # `is not None`, for a ratio of 0.0 is a value
        return {
            name: statistics.fmean(values)
            if (values := [value for pair in self.layers if (value := getattr(pair, name)) is not None])
            else None
            for name in ("ratio", "cosine", "overlap")
        }


def diff(a: str | Path, b: str | Path, *, base: str | None = None) -> DiffReport:
    """Compares two run or adapter folders. Raises `AdapterError` or `CheckpointError` where one of them is neither."""
    one, other = locate(a, base=base), locate(b, base=base)
    layers, notes = layer_pairs(one.adapter, other.adapter, base=base)
    both_runs = one.run is not None and other.run is not None and one.record and other.record
    recipe, kind = _recipes(one, other)
    lock = _locks(one, other)
    # equal hashes of base and data: then only paths can differ
    if lock is not None and not any(item.kind in ("base", "data") for item in lock):
        # the same files in other places
        recipe = tuple(row for row in recipe if without_places(row.a) != without_places(row.b))
    return DiffReport(
        a=str(a),
        b=str(b),
        recipe=recipe,
        recipe_kind=kind,
        lock=lock,
        data=_data(one.record, other.record) if both_runs else None,
        metrics=_metrics(one.record, other.record) if both_runs else None,
        layers=tuple(layers),
        notes=tuple(notes),
    )


def _recipes(one: Location, other: Location) -> tuple[tuple[ItemDifference, ...], str]:
    paths = [side.run / RECIPE_NAME for side in (one, other) if side.run is not None]
    # recipes are compared by their keys where both sides have one, else what both files of the adapters hold
    if len(paths) == 2 and all(path.is_file() for path in paths):
        first, second = (_without_names(load_recipe(path).recipe) for path in paths)
        return _rows(first, second), "recipe"
    return _rows(read_config(one.adapter), read_config(other.adapter)), "adapter_config"


def _without_names(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in flat_recipe(recipe).items() if key not in _NOT_COMPARED}


def _rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[ItemDifference, ...]:
    # in the order of the first, then what the second alone has
    names = [*one, *(name for name in other if name not in one)]
    return tuple(
        ItemDifference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    )


def _locks(one: Location, other: Location) -> tuple[Difference, ...] | None:
    """Inputs and environment; recipe keys stand in their own part."""
    folders = [side.run for side in (one, other) if side.run is not None and (side.run / LOCK_NAME).is_file()]
    if len(folders) != 2:
        return None
    # checked against the files of the second: its lock may be older than its folder
    first, second = (read_lock(folder / LOCK_NAME) for folder in folders)
    inputs = [item for item in input_differences(first, second, folders[1]) if item.kind != "recipe"]
    return (*inputs, *environment_differences(first, second))


def _data(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[ItemDifference, ...]:
    return _rows(_data_facts(one), _data_facts(other))


def _data_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    data = record.get("data") or {}
    found = {f"{split} {name}": facts.get(name) for split in ("train", "validation") if (facts := data.get(split))
             for name in _DATA_FACTS}  # fmt: skip
    for split in ("train", "validation"):
        for source in (data.get(split) or {}).get("sources", []):
            found |= {f"{split} file {Path(file['path']).name}": file["sha256"] for file in source["files"]}
    return found


def _metrics(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[MetricRow, ...]:
    sides = [record.get("evaluation") or {} for record in (one, other)]
    tuned = [side.get("tuned") or {} for side in sides]
    bases = [side.get("base") or {} for side in sides]
    names = [*tuned[0], *(name for name in tuned[1] if name not in tuned[0])]
    return tuple(
        MetricRow(name, bases[0].get(name), tuned[0].get(name), bases[1].get(name), tuned[1].get(name))
        for name in names
    )


# -- text --------------------------------------------------------------------------------------------------------


def diff_text(report: DiffReport) -> str:
    """What `peft diff` prints."""
    parts = [
        f"a  {report.a}\nb  {report.b}",
        _part(report.recipe_kind, report.recipe),
        _lock_part(report.lock),
        _part("data", report.data) if report.data is not None else "data: unknown for a bare adapter",
        _metric_part(report.metrics),
        _layer_part(report),
    ]
    return "\n\n".join([*parts, *(f"note: {note}" for note in report.notes)])


def _part(name: str, rows: tuple[ItemDifference, ...]) -> str:
    if not rows:
        return f"{name}: equal"
    return text_table([name, "a", "b"], [[row.item, _value(row.a), _value(row.b)] for row in rows], width=_WIDTH)


def _lock_part(lock: tuple[Difference, ...] | None) -> str:
    if lock is None:
        return "lock: unknown for a bare adapter"
    if not lock:
        return "lock: equal inputs, versions and environment"
    return text_table(["lock", "a", "b"], [[item.item, item.locked, item.found] for item in lock], width=_WIDTH)


def _metric_part(metrics: tuple[MetricRow, ...] | None) -> str:
    if not metrics:
        return "metrics: none that both have"
    rows = [
        [row.metric, _number(row.base_a), _number(row.a), _number(row.base_b), _number(row.b), _change(row)]
        for row in metrics
    ]
    headers = ["metric", "base a", "tuned a", "base b", "tuned b", "b - a"]
    return text_table(headers, rows, numeric=(1, 2, 3, 4, 5), width=_WIDTH)


def _layer_part(report: DiffReport) -> str:
    if not report.layers:
        return "layers: none"
    # the least alike first; layers without a cosine last, which is at most 1
    ranked = sorted(report.layers, key=lambda pair: 2.0 if pair.cosine is None else pair.cosine)
    rows = [
        [pair.layer, _number(pair.norm_a), _number(pair.norm_b), *map(_number, (pair.ratio, pair.cosine, pair.overlap))]
        for pair in ranked[:_SHOWN_LAYERS]
    ]
    table = text_table(
        ["layer", "norm a", "norm b", "b / a", "cosine", "overlap"], rows, numeric=(1, 2, 3, 4, 5), width=_WIDTH
    )
    means = ", ".join(f"{name} {_number(value)}" for name, value in report.summary().items())
    more = len(ranked) - _SHOWN_LAYERS
    tail = f"mean over {len(ranked)} layers: {means}" + (f"; {more} more layers in --json" if more > 0 else "")
    return f"{table}\n{tail}"


def _change(row: MetricRow) -> str:
    return "-" if row.a is None or row.b is None else f"{row.b - row.a:+.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _value(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else flow(value)
