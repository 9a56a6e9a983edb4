"""Makes the table of quantized bases from the contract suite, a method's part in its own folder.

python -m peftcli.testing.storages             every method; needs the extra `quant`
python -m peftcli.testing.storages lora oft    these methods alone
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from peftcli import files
from peftcli.adapters.compatibility import YES, storages_path
from peftcli.adapters.surgery import attach
from peftcli.errors import AdapterError, RecipeError
from peftcli.models.load import load_model
from peftcli.models.source import BaseSource
from peftcli.models.storage_names import PACKAGES
from peftcli.testing.case import Case
from peftcli.testing.contract import CHECKS, run_contract
from peftcli.testing.families import tiny_model
from peftcli.testing.sections import cases_of, write_for_methods

STORAGES = tuple(PACKAGES)
"""Storages that we make."""
FAMILIES = ("llama", "gpt2")
"""What methods are tried on, quantized: one without biases, and one with them whose layers are transposed."""
_CASTS = ("half_precision_works", "checkpointed_gradients_are_the_same", "counts_agree")
"""Checks that cast the whole model or empty it, which a packed one cannot be."""


def quantized_model(family: str, storage: str) -> nn.Module:
    """The tiny model of a family, its linear layers packed; the same weights each time."""
    folder = _saved(family).name
    return load_model(BaseSource(family, folder, None, Path(folder)), quantization=storage)


@functools.cache
def _saved(family: str) -> tempfile.TemporaryDirectory[str]:
    # kept by the cache, and removed as the process ends
    folder = tempfile.TemporaryDirectory(prefix=f"{family}-")
    tiny_model(family).save_pretrained(folder.name)  # type: ignore[operator]
    return folder


def verdict(method: str, storage: str) -> str:
    """`yes`, or why the method does not work on a base that is stored so: as `attach` says it on every family that it
    works with, or the checks that it fails."""
    reasons = []
    for family in FAMILIES:
        case = Case(cases_of(method)[method], family, model=lambda family=family: quantized_model(family, storage))  # type: ignore[misc]
        try:
            attach(case.fresh(), dict(case.section), context=case.context())
        except (AdapterError, RecipeError) as error:
            reasons.append(error.faults[0].message if len(error.faults) == 1 else error.message)
            continue
        checks = [name for name in CHECKS if name not in _CASTS]
        failed = [f"{found.check} ({found.error})" for found in run_contract(case, checks) if not found.passed]
        if failed:
            return f"fails on {family}: {', '.join(failed)}"
    return reasons[0] if len(reasons) == len(FAMILIES) else YES


def write_table(methods: Sequence[str]) -> None:
    """Writes the part of each of these methods again; a line for each on stdout."""
    for method in methods:
        row = {storage: verdict(method, storage) for storage in STORAGES}
        files.write_json(storages_path(method), row)
        print(f"{method}: {', '.join(f'{storage} {found}' for storage, found in row.items())}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 2 for a name that is none of our methods."""
    return write_for_methods(arguments, write_table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
