"""`validate` looks at the first row of each file: what `plan` would refuse of its format is told before."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.entry import run as peft

RECIPE = "model: builtin:tiny\ndata: {train: ./ROWS, validation: 2, max_length: 128}\nmethod: lora\n"
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}
GOOD = {"prompt": "a", "completion": "b"}


def lines(row: dict[str, Any]) -> str:
    return (json.dumps(row) + "\n") * 8


def written(folder: Path, name: str, content: str | bytes, recipe: str = RECIPE) -> list[str]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "r.yaml").write_text(recipe.replace("ROWS", name))
    return ["validate", str(folder / "r.yaml")]


REFUSED: list[tuple[str, str | bytes, int, tuple[str, ...]]] = [
    ("rows.jsonl", lines(PREFERENCE), 2, ("causal-lm cannot train on rows of the format preference", "rows.jsonl:1")),
    ("rows.jsonl", lines({**GOOD, "label": True}), 2, ("format preference", "true or false", "prompt-completion")),
    ("rows.json", json.dumps([{"tokens": ["a"], "tags": ["O"]}] * 4), 2, ("token-classification", "row 1")),
    ("rows.csv", "source,target\na,b\nc,d\n", 2, ("seq2seq", "rows.csv")),
    ("rows.jsonl", lines({"query": "a", "reply": "b"}), 3, ("columns", "query", "reply")),
    ("rows.jsonl", "<html>\n" * 9, 3, ("rows.jsonl:1", "JSON")),
    ("rows.jsonl", "", 3, ("rows.jsonl",)),
    ("rows.jsonl", lines({"messages": [{"role": "usr", "content": "a"}]}), 3, ("usr", "rows.jsonl:1")),
]


@pytest.mark.parametrize(("name", "content", "code", "told"), REFUSED)
def test_validate_and_plan_refuse_alike(
    name: str,
    content: str | bytes,
    code: int,
    told: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = written(tmp_path, name, content)
    assert peft(arguments) == code
    shown = capsys.readouterr().err
    assert [part for part in told if part not in shown] == [], shown
    assert "r.yaml:2" in shown, "the line that names the rows"
    assert len(shown.strip().splitlines()) <= 5
    assert peft(["plan", *arguments[1:]]) == code


def test_rows_that_are_fine_or_not_looked_into_are_not_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compressed and columnar files, and files that are large and have to be read whole, are left to `plan`."""
    padded = json.dumps([PREFERENCE, {"filler": " " * (9 << 20)}])
    for name, content in (
        ("rows.jsonl", lines(GOOD).encode()),
        ("rows.jsonl.gz", gzip.compress(lines(PREFERENCE).encode())),
        ("rows.parquet", b"PAR1 is not looked into"),
        ("rows.json", padded.encode()),
        ("rows.txt", b"chosen, rejected\n"),
    ):
        assert peft(written(tmp_path, name, content)) == 0, (name, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("max_length: 128", "max_length: 128, format: text, columns: {text: chosen}", 0),
        ("max_length: 128", "format: preference", 2),
        ("train: ./ROWS", "train: [{path: ./ROWS, format: prompt-completion, columns: {completion: chosen}}]", 0),
        ("validation: 2", "validation: ./ROWS", 2),
    ],
)
def test_what_the_recipe_says_of_the_rows_counts(
    old: str, new: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peft(written(tmp_path, "rows.jsonl", lines(PREFERENCE), RECIPE.replace(old, new))) == code
    # train and validation of one fault each
    assert capsys.readouterr().err.count("format preference") == {0: 0, 2: 2 if "validation: ./" in new else 1}[code]


def test_it_is_told_with_everything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPE.replace("builtin:tiny", "./nowhere") + "training: {optimizer: lion}\n"
    assert peft(written(tmp_path, "rows.jsonl", lines(PREFERENCE), recipe)) == 2
    shown = capsys.readouterr().err
    assert "format preference" in shown
    assert "nowhere" in shown


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("checkpoint: {every: 100}\n", [], ["checkpoint.every 100 is more than the 3 steps"]),
        ("evaluation: {every: 100}\n", [], ["evaluation.every 100 is more than the 3 steps"]),
        ("checkpoint: {every: 50}\n", [], ["checkpoint.every 50"]),
        ("", ["--set", "checkpoint.every=100"], ["checkpoint.every 100"]),
        ("", [], []),
        ("checkpoint: {every: null}\n", [], []),
        ("checkpoint: {keep: 3}\n", [], []),
    ],
)
def test_a_wish_that_a_short_run_disappoints_is_told_a_default_is_not(
    text: str, arguments: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPE + "training: {max_steps: 3, batch_size: 2}\n" + text
    _, path = written(tmp_path, "rows.jsonl", lines(GOOD), recipe)
    assert peft(["plan", path, *arguments, "--json"]) == 0
    found = [each for each in json.loads(capsys.readouterr().out)["warnings"] if "more than" in each]
    assert len(found) == len(told)
    assert all(part in each for part, each in zip(told, found, strict=True))


def test_the_copies_of_defaults_in_a_runs_recipe_are_no_wishes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluation.every` of 100 for a run of 6 steps stands in its recipe, and nobody wrote it."""
    assert "every: 100" in (work / "run" / "recipe.yaml").read_text()
    assert peft(["plan", "run/recipe.yaml", "--json"]) == 0
    assert not [each for each in json.loads(capsys.readouterr().out)["warnings"] if "more than" in each]
