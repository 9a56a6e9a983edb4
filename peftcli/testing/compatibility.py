"""Makes the compatibility table from the contract suite: `python -m peftcli.testing.compatibility` writes it anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftcli import files
from peftcli.adapters.compatibility import TABLE_PATH, YES
from peftcli.adapters.registry import method_names
from peftcli.testing.case import Case
from peftcli.testing.contract import run_contract
from peftcli.testing.families import FAMILIES, tiny_model
from peftcli.testing.sections import SECTIONS, reason_against


def family_facts(family: str) -> dict[str, Any]:
    """What a base's `config.json` says of this family: its type, and which of its biases are switched on."""
    config = tiny_model(family).config.to_dict()  # type: ignore[operator, union-attr]
    biases = {key: value for key, value in sorted(config.items()) if "bias" in key and isinstance(value, bool)}
    return {"model_type": config["model_type"], "biases": biases}


def verdict(method: str, family: str) -> str:
    """`yes`, or why the method does not work on the family: as `attach` says it, or the checks that it fails."""
    section = SECTIONS[method]
    reason = reason_against(section, family)
    if reason is not None:
        return reason
    failed = [outcome.check for outcome in run_contract(Case(section, family)) if not outcome.passed]
    return f"fails {', '.join(failed)}" if failed else YES


def make_table(report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The whole table: every method of this package on every family. Minutes."""
    methods = {}
    for method in method_names():
        if method in SECTIONS:
            methods[method] = {family: verdict(method, family) for family in FAMILIES}
            report(f"{method}: {sum(found == YES for found in methods[method].values())} of {len(FAMILIES)}")
    return {"families": {family: family_facts(family) for family in FAMILIES}, "methods": methods}


if __name__ == "__main__":
    files.write_json(TABLE_PATH, make_table(print))
