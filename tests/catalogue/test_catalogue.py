"""The catalogue of bad inputs: each gives the contract's exit code, its place and a remedy in a few lines.

What is to be accepted, or accepted with a warning, is asserted as such. Nothing ever shows a traceback.
"""

from __future__ import annotations

import os
import shlex

import pytest
from entries_data import DATA
from entries_model import ADAPTERS, MODELS
from entries_recipe import ARGUMENTS, RECIPES
from entries_run import CHECKPOINTS, ENVIRONMENT
from entry import Entry, Place

from peftcli.cli.entry import run as peft

CATALOGUE = [*RECIPES, *ARGUMENTS, *DATA, *MODELS, *ADAPTERS, *ENVIRONMENT, *CHECKPOINTS]
NOBODY = 65534


def test_the_catalogue_is_large_and_its_numbers_are_unique() -> None:
    numbers = [entry.number for entry in CATALOGUE]
    assert len(set(numbers)) == len(numbers) >= 150


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.number)
def test_entry(entry: Entry, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    if entry.recipe is not None:
        place.write("r.yaml", entry.recipe)
    for name, content in entry.files.items():
        place.write(name, content)
    entry.prepare(place)
    capfd.readouterr()
    code = as_nobody(entry) if entry.as_nobody else peft(shlex.split(entry.command))
    out, err = capfd.readouterr()
    text = out + err
    assert "Traceback" not in text
    assert [part for part in entry.says if part not in text] == [], text
    assert code == entry.code, text
    if entry.code == 0:
        assert "error:" not in err
        return
    assert "error: " in err
    assert "  fix: " in err or "wanted" in err or "must be" in err, err
    assert len(err[err.index("error: ") :].splitlines()) <= entry.lines, err


def as_nobody(entry: Entry) -> int:
    """The command in a fork without the rights of root, which no permission stops."""
    if os.geteuid() != 0:
        return peft(shlex.split(entry.command))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.seteuid(NOBODY)
            code = peft(shlex.split(entry.command))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
