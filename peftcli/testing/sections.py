"""Method sections that the contract suite runs, read from the file `cases.py` in each method's folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftcli.adapters.registry import own_method_names
from peftcli.adapters.surgery import attach
from peftcli.errors import AdapterError, RecipeError
from peftcli.testing.case import Case


def cases_of(method: str) -> Mapping[str, Mapping[str, Any]]:
    """Label -> section of one of our methods: its plain section under its own name, and the variants that have code of
    their own. Raises `ModuleNotFoundError` where the folder has no `cases.py`."""
    found: Mapping[str, Mapping[str, Any]] = importlib.import_module(f"peftcli.adapters.methods.{method}.cases").CASES
    return found


SECTIONS: Mapping[str, Mapping[str, Any]] = {
    label: section for method in own_method_names() for label, section in cases_of(method).items()
}
"""Label -> section of every method. The compatibility table is made from those under a method's own name."""


def reason_against(section: Mapping[str, Any], family: str) -> str | None:
    """Why a method does not fit a family, as `attach` says it; None where it fits."""
    case = Case(section, family)
    try:
        attach(case.fresh(), dict(section), context=case.context())
    except (AdapterError, RecipeError) as error:
        return error.faults[0].message if len(error.faults) == 1 else error.message
    return None


def write_for_methods(arguments: Sequence[str], write: Callable[[Sequence[str]], None]) -> int:
    """Calls `write` with the methods that a command line names, all of ours where it names none. Exit status: 2 for a
    name that is none of them."""
    methods = [name.replace("-", "_") for name in arguments] or list(own_method_names())
    unknown = [name for name in methods if name not in own_method_names()]
    if unknown:
        print(f"no method {', '.join(unknown)}; known: {', '.join(own_method_names())}", file=sys.stderr)
        return 2
    write(methods)
    return 0
