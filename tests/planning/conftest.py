"""Bases of which only `config.json` is known, as a plan needs no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import Plan, make_plan
from peftcli.recipe import load_recipe

BASES = Path(__file__).parents[1] / "recipes" / "bases"

Planned = Callable[..., Plan]


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Path]:
    """A folder with the published configuration of a base, and the built-in tokenizer."""

    def folder(name: str, **changes: Any) -> Path:
        base = tmp_path / "bases" / name
        base.mkdir(parents=True)
        config = json.loads((BASES / name / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        for part in builtin_base("tiny").glob("tokenizer*"):
            shutil.copy(part, base)
        return base

    return folder


@pytest.fixture
def planned(tmp_path: Path, published: Callable[[str], Path]) -> Planned:
    """The plan of a method on a published base, over two short rows."""
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day to you."}]}
    rows.write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")

    def plan(name: str, method: dict[str, Any], *, device_memory: int | None = None, **changes: Any) -> Plan:
        recipe = tmp_path / "recipe.yaml"
        config = changes.pop("config", {})
        section = {
            "model": {"base": str(published(name, **config)), "dtype": "bfloat16"},
            "data": {"train": str(rows), "validation": None, "checks": {"duplicates": "off"}},
            "method": method,
            "training": {"batch_size": 1, "max_steps": 1},
            "device": "cpu",
        }
        recipe.write_text(json.dumps(section), encoding="utf-8")
        return make_plan(load_recipe(recipe, changes), device_memory=device_memory)

    return plan
