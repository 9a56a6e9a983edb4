"""`peft init`: starters, and recipes for somebody's own rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.entry import run as peft
from peftcli.cli.starters import starter_names
from peftcli.recipe import load_recipe
from peftcli.recipe.json_schema import recipe_schema

SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "instruction": {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    "prompt-completion": {"prompt": "2 + 2 =", "completion": " 4"},
    "text": {"text": "Once upon a time there was a fox."},
}


def write(path: Path, row: dict[str, Any], rows: int = 60) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(rows)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recipe_for_own_rows_is_valid_and_says_what_they_are(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", SHAPES[shape])
    assert peft(["init", "chat", "--data", "rows.jsonl", "--output", "mine.yaml"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"data: {shape} (")
    assert "12 of them held out" in told
    loaded = load_recipe(tmp_path / "mine.yaml")
    assert loaded.recipe.data.train_sources[0].path == str(tmp_path / "rows.jsonl")
    assert (loaded.recipe.data.format, loaded.recipe.data.max_length) == (shape, 128)
    assert loaded.warnings == ()
    assert len((tmp_path / "mine.yaml").read_text().splitlines()) <= 8


@pytest.mark.parametrize(
    ("row", "format", "columns"),
    [
        ({"question": "What?", "answer": "That."}, "prompt-completion", {"prompt": "question", "completion": "answer"}),
        (
            {"instruction": "Do.", "context": "It.", "response": "Done.", "category": "qa"},
            "instruction",
            {"output": "response", "input": "context"},
        ),
        ({"conversation": SHAPES["messages"]["messages"]}, "messages", {"messages": "conversation"}),
    ],
)
def test_columns_with_names_of_their_own_are_written_into_the_recipe(
    row: dict[str, Any],
    format: str,
    columns: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", row)
    assert peft(["init", "chat", "--data", "rows.jsonl", "--output", "mine.yaml"]) == 0
    assert "look whether that is right" in capsys.readouterr().out
    data = load_recipe(tmp_path / "mine.yaml").recipe.data
    assert (data.format, data.columns) == (format, columns)
    assert peft(["data", "mine.yaml"]) == 0
    assert "train: 48 rows" in capsys.readouterr().out


def test_lengths_come_from_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"text": "a word and another " * 120})
    for model, wanted in (("org/model", 1024), ("builtin:tiny", 512)):
        assert peft(["init", "chat", "--data", "rows.jsonl", "--model", model, "--output", f"{wanted}.yaml"]) == 0
        recipe = load_recipe(tmp_path / f"{wanted}.yaml").recipe
        assert recipe.model.base == model
        assert recipe.data.max_length == wanted, "at most the context of a base that is here"


def test_a_recipe_in_a_folder_finds_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "my data").mkdir()
    write(tmp_path / "my data" / "rows: 1.jsonl", SHAPES["text"])
    assert peft(["init", "--data", "my data/rows: 1.jsonl", "--output", "recipes/mine.yaml"]) == 0
    path = load_recipe(tmp_path / "recipes" / "mine.yaml").recipe.data.train_sources[0].path
    assert Path(path) == tmp_path / "my data" / "rows: 1.jsonl"


@pytest.mark.parametrize(
    ("row", "code", "told"),
    [
        ({"foo": "a", "bar": "b"}, 3, "columns"),
        ({"tokens": ["a", "b"], "tags": ["O", "B"]}, 3, "token-classification"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, 3, "peft init preference --data rows.jsonl"),
    ],
)
def test_rows_that_nothing_trains_on_are_told(
    row: dict[str, Any],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", row)
    assert peft(["init", "--data", "rows.jsonl"]) == code
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("*.yaml"))


def test_compared_answers_have_starters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    for name in ("preference", "reward"):
        assert peft(["init", name, "--data", "rows.jsonl", "--quiet"]) == 0
        recipe = load_recipe(tmp_path / f"{name}.yaml").recipe
        assert (recipe.task, recipe.data.format) == (name, "preference")
    write(tmp_path / "text.jsonl", {"text": "a document"})
    assert peft(["init", "preference", "--data", "text.jsonl"]) == 3


def test_the_schema_lies_where_the_first_line_of_a_starter_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in starter_names():
        assert peft(["init", name]) == 0
        first = (tmp_path / f"{name}.yaml").read_text().splitlines()[0]
        assert (tmp_path / first.partition("$schema=")[2]).is_file()
        assert load_recipe(tmp_path / f"{name}.yaml").warnings == ()
    assert json.loads((tmp_path / "peft-recipe.schema.json").read_text()) == recipe_schema()


def test_starters_measure_on_rows_of_their_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `data.train` set to something else, nothing is left that measures the task of the starter."""
    monkeypatch.chdir(tmp_path)
    for name in starter_names():
        if name != "quickstart":
            assert peft(["init", name]) == 0
            assert load_recipe(tmp_path / f"{name}.yaml").recipe.data.validation_sources == ()


def test_validation_on_shipped_rows_beside_own_ones_is_told(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", SHAPES["text"])
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: builtin:tiny\ndata: {train: ./rows.jsonl, validation: builtin:text}\nmethod: lora\n")
    assert any("rows that ship with peftcli" in warning for warning in load_recipe(recipe).warnings)
    recipe.write_text("model: builtin:tiny\ndata: {train: ./rows.jsonl, validation: 0.1}\nmethod: lora\n")
    assert load_recipe(recipe).warnings == ()
