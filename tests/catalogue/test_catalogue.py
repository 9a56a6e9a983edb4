"""The catalogue of bad inputs: each gives the contract's exit code, its place and a remedy in a few lines.

What is to be accepted, or accepted with a warning, is asserted as such. Nothing ever shows a traceback.
"""

from __future__ import annotations

import shlex

import pytest
from entries_data import DATA
from entries_model import ADAPTERS, MODELS
from entries_recipe import ARGUMENTS, RECIPES
from entries_run import CHECKPOINTS, ENVIRONMENT
from entry import Entry, Place
from rights import without_privileges

from peftcli.cli.entry import run as peft

CATALOGUE = [*RECIPES, *ARGUMENTS, *DATA, *MODELS, *ADAPTERS, *ENVIRONMENT, *CHECKPOINTS]


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
    arguments = shlex.split(entry.command)
    code = without_privileges(lambda: peft(arguments)) if entry.unprivileged else peft(arguments)
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
