"""Makes the compatibility table from the contract suite, a method's part in its own folder.

python -m peftcli.testing.compatibility             every method: minutes
python -m peftcli.testing.compatibility hra oft     these methods alone: seconds each
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from peftcli import files
from peftcli.adapters.compatibility import FAMILIES_PATH, YES, row_path
from peftcli.testing.case import Case
from peftcli.testing.contract import run_contract
from peftcli.testing.families import FAMILIES, tiny_model
from peftcli.testing.sections import cases_of, reason_against, write_for_methods


def facts_of(family: str) -> dict[str, Any]:
    """What a base's `config.json` says of this family: its type, and which of its biases are switched on."""
    config = tiny_model(family).config.to_dict()  # type: ignore[operator, union-attr]
    biases = {key: value for key, value in sorted(config.items()) if "bias" in key and isinstance(value, bool)}
    return {"model_type": config["model_type"], "biases": biases}


def verdict(method: str, family: str) -> str:
    """`yes`, or why the method does not work on the family: as `attach` says it, or the checks that it fails."""
    section = cases_of(method)[method]
    reason = reason_against(section, family)
    if reason is not None:
        return reason
    failed = [outcome.check for outcome in run_contract(Case(section, family)) if not outcome.passed]
    return f"fails {', '.join(failed)}" if failed else YES


def write_table(methods: Sequence[str]) -> None:
    """Writes the facts of the families, and the part of each of these methods again; a line for each on stdout."""
    files.write_json(FAMILIES_PATH, {family: facts_of(family) for family in FAMILIES})
    for method in methods:
        row = {family: verdict(method, family) for family in FAMILIES}
        files.write_json(row_path(method), row)
        print(f"{method}: {sum(found == YES for found in row.values())} of {len(FAMILIES)}")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 2 for a name that is none of our methods."""
    return write_for_methods(arguments, write_table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
