"""The state of any torch optimizer as named tensors and plain numbers, and back; nothing is pickled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from peftcli.errors import CheckpointError

SEPARATOR = "::"
ATTRIBUTE = "->"
KEPT_OBJECTS = "kept_objects"
"""Attribute of an optimizer: what makes each object that it keeps beside the tensors of its state, by name."""
_GROUP_NAME = re.compile(r"group (\d+)")


def parameter_names(optimizer: Optimizer, named: Mapping[str, torch.nn.Parameter]) -> dict[int, str]:
    """The name of each parameter of the optimizer, by `id`: the adapter's, or its place in the groups."""
    known = {id(parameter): name for name, parameter in named.items()}
    return {
        id(parameter): known.get(id(parameter), f"group {number}.{place}")
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
    }


def flatten(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns tensors (on the CPU, by `parameter::key`) and scalars (JSON): those of parameters and of groups."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    on_host: list[str] = []
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{names[id(parameter)]}{SEPARATOR}{key}"
            for inner, part in _parts_of(name, value, getattr(optimizer, KEPT_OBJECTS, {})):
                if isinstance(part, Tensor):
                    tensors[inner] = part.detach().cpu().contiguous()
                    # counts of steps may live on the host: put back on the device, they would be waited for at each step
                    if part.device != parameter.device:
                        on_host.append(inner)
                else:
                    numbers[inner] = part
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        groups.append({key: value for key, value in group.items() if key != "params" and _is_plain(value)})
        for key, value in group.items():
            if isinstance(value, Tensor):
                # groups may share one tensor, which a file cannot
                tensors[f"group {number}{SEPARATOR}{key}"] = value.detach().cpu().clone()
    scalars = {
        "type": type(optimizer).__name__,
        "num_tensors": len(tensors),
        "on_host": on_host,
        "numbers": numbers,
        "groups": groups,
    }
    return tensors, scalars


def _is_plain(value: Any) -> bool:
    # NaN and infinity have no JSON; a group never holds them on purpose
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _parts_of(name: str, value: Any, objects: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A value of the state by its name; of an object that an optimizer keeps there, each of its attributes.

    Raises `CheckpointError` for what has no such form: a state that is only half kept would go on otherwise, silently.
    """
    if isinstance(value, Tensor) or value is None or isinstance(value, bool | int | float | str):
        yield name, value
    elif name.rpartition(SEPARATOR)[2] in objects:
        for attribute, part in vars(value).items():
            yield from _parts_of(f"{name}{ATTRIBUTE}{attribute}", part, {})
    else:
        raise CheckpointError(
            f"the optimizer keeps {name.rpartition(SEPARATOR)[2]}, a {type(value).__name__}, which no checkpoint holds",
            fix="use another optimizer",
        )


def unflatten(
    optimizer: Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Puts a flattened state back, in place. `ValueError` names what is missing or belongs to another optimizer."""
    _require_same_kind(optimizer, tensors, scalars)
    parameters = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    on_host = frozenset(scalars["on_host"])
    paged = _paged_buffers(optimizer, parameters, tensors)
    restored: dict[str, dict[str, Any]] = {}
    for name, value in {**scalars["numbers"], **tensors}.items():
        parameter_name, _, key = name.rpartition(SEPARATOR)
        # a parameter may itself be called `group 0.1`, where the adapter has no name for it
        if (number := _GROUP_NAME.fullmatch(parameter_name)) and parameter_name not in parameters:
            group = optimizer.param_groups[int(number[1])]
            # beside the group's tensors, and a copy: the snapshot may be put back again
            group[key] = value.to(group["params"][0].device, copy=True)
            continue
        if parameter_name not in parameters:
            raise ValueError(f"the optimizer has no parameter {parameter_name}")
        if isinstance(value, Tensor):
            if (buffer := paged.get(name)) is not None and buffer.shape == value.shape and buffer.dtype == value.dtype:
                value = buffer.copy_(value)
            else:
                device = "cpu" if name in on_host else parameters[parameter_name].device
                value = value.to(device, copy=True)
        restored.setdefault(parameter_name, {})[key] = value
    # emptied first: a state of a step that is taken back must not stay beside the saved one
    optimizer.state.clear()
    for parameter_name, state in restored.items():
        optimizer.state[parameters[parameter_name]] = _with_objects(state, getattr(optimizer, KEPT_OBJECTS, {}))
    for group, saved in zip(optimizer.param_groups, scalars["groups"], strict=True):
        group.update(saved)  # also what an optimizer adds at its first step


def _with_objects(state: Mapping[str, Any], objects: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The state of one parameter, objects made anew of their attributes."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        key, _, attribute = name.partition(ATTRIBUTE)
        if not attribute:
            found[key] = value
        elif key in objects:
            if key not in found:
                found[key] = objects[key]()
            setattr(found[key], attribute, value)
        else:
            raise ValueError(f"this optimizer keeps no {key}")
    return found


def _paged_buffers(
    optimizer: Optimizer, parameters: Mapping[str, torch.nn.Parameter], saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of state that bitsandbytes pages between host and device, by name; empty for every other optimizer.

    Such memory is the library's own: a plain tensor in its place would be on one side only, where the kernels of a
    running optimizer do not look. So the library allocates, and what was saved is copied in.
    """
    if not getattr(optimizer, "is_paged", False):
        return {}
    wanted = {name.rpartition(SEPARATOR)[0] for name in saved}
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            name = names[id(parameter)]
            if name in wanted and not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, number, place)  # type: ignore[attr-defined]
            found |= {
                f"{name}{SEPARATOR}{key}": value
                for key, value in optimizer.state[parameter].items()
                if getattr(value, "is_paged", False)
            }
    return found


def _require_same_kind(optimizer: Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    if scalars["type"] != type(optimizer).__name__:
        raise ValueError(f"it is the state of {scalars['type']}, not of {type(optimizer).__name__}")
    if scalars["num_tensors"] != len(tensors):
        raise ValueError(f"{len(tensors)} tensors, not {scalars['num_tensors']}")
    if len(scalars["groups"]) != len(optimizer.param_groups):
        raise ValueError(f"{len(scalars['groups'])} parameter groups, not {len(optimizer.param_groups)}")
