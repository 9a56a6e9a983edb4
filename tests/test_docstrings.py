"""Every public name says what it is: by its own docstring, or by that of the method which it overrides."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import peftcli


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(peftcli.__path__, "peftcli."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _function(member: Any) -> Any:
    """The function behind a method or property; None for what is neither."""
    if isinstance(member, (classmethod, staticmethod)):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, cached_property):
        member = member.func
    return member if inspect.isfunction(member) else None


def _silent_members(found: type) -> Iterator[str]:
    for name, member in vars(found).items():
        if name.startswith("_") or _function(member) is None:
            continue
        each = [_function(vars(owner).get(name)) for owner in found.__mro__]
        # a lambda is the default of a field, which its own text tells about
        if not any(one is not None and (one.__doc__ or one.__name__ == "<lambda>") for one in each):
            yield f"{found.__name__}.{name}"


def _silent(module: ModuleType) -> Iterator[str]:
    if not module.__doc__:
        yield "the module"
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if (inspect.isfunction(found) or inspect.isclass(found)) and not found.__doc__:
            yield name
        if inspect.isclass(found):
            yield from _silent_members(found)


def test_every_public_name_has_a_docstring() -> None:
    silent = [f"{module.__name__}: {name}" for module in _modules() for name in _silent(module)]
    assert not silent, "say what these are, in the terms of who uses them:\n" + "\n".join(silent)
