"""What the reference takes from an `adapter_config.json` although no recipe of ours may say it; free of torch.

A recipe that asks for a scale of zero or a dropout of one is a mistake, and gets an error. A file that holds one was trained
like that: it loads with the same answer as in the reference, and a warning says what is odd.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

Bounds = tuple[float, float]
"""Least and greatest number that a file may hold, both included."""

_BOUND_FAULTS = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})


def as_switches(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, bool]:
    """Fields that are switches and hold null, 0 or 1 in the file -> what the reference takes them for."""
    return {
        name: bool(value)
        for name, value in values.items()
        # `type(...) is int`: True is 1 to `==`, and a switch already
        if (value is None or (type(value) is int and value in (0, 1))) and _takes(fields[name], bool, value)
    }


def _takes(field: FieldInfo, kind: type, value: Any) -> bool:
    """Whether a field takes values of a kind, and neither null nor whole numbers beside."""
    kinds = _kinds(field.annotation)
    # null or a number may be what the field itself takes: then it is no switch
    return kind in kinds and (type(None) if value is None else int) not in kinds


def _kinds(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {Literal} if origin is Literal else {origin or annotation}


def beyond_bounds(error: ValidationError, values: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> dict[str, Any]:
    """Fields whose numbers break a bound of ours and keep those of a file; empty where anything else is wrong too."""
    faulty = {str(item["loc"][0]) if item["loc"] else "" for item in error.errors()}
    fits = all(name in bounds and _within(values[name], bounds[name]) for name in faulty)
    # a field of two types gives one fault for each
    numbers = all(item["type"] in _BOUND_FAULTS for item in error.errors())
    return {name: values[name] for name in sorted(faulty)} if fits and numbers else {}


def _within(value: Any, bounds: Bounds) -> bool:
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    return all(
        # NaN lies outside every bound, though no comparison with it says so
        type(number) in (int, float) and math.isfinite(number) and bounds[0] <= number <= bounds[1]
        for number in numbers
    )


ANY_NUMBER: Bounds = (-math.inf, math.inf)
"""Bounds of a number that may have any size, as long as it is finite."""
SHARE: Bounds = (0.0, 1.0)
"""Bounds of a part of a whole, such as a dropout."""
