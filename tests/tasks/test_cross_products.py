"""Every method under every task: what the table says is what happens, from `peft validate` to a merged model.

A few pairs by default, all of them behind `slow`; `python tests/tasks/cross_products.py` writes the table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cross_products import CASES, refused, told, write_recipe

from peftcli.adapters.compatibility import NOT_MERGED, YES, tasks_of
from peftcli.adapters.registry import own_method_names
from peftcli.cli.entry import run as peft
from peftcli.recipe.telling_methods import method_text, methods_document, methods_text
from peftcli.tasks.registry import task_names
from peftcli.testing.sections import SECTIONS, cases_of

REFRESH = "refresh it: PYTHONPATH=. python tests/tasks/cross_products.py"
PAIRS = [(method, task) for method in own_method_names() for task in CASES]
DEFAULT = {("lora", "token-classification"), ("prompt_tuning", "preference")}
"""One that is merged and one that is not, under tasks that no other default test takes through all of it."""


def pairs() -> list[object]:
    return [pytest.param(*pair, id="-".join(pair), marks=() if pair in DEFAULT else pytest.mark.slow) for pair in PAIRS]


def is_refused(found: str) -> bool:
    return found != YES and not found.startswith(NOT_MERGED)


@pytest.mark.parametrize(("method", "task"), pairs())
def test_a_pair_is_as_the_table_says(method: str, task: str) -> None:
    assert told(task, method) == tasks_of(method).get(task), REFRESH


def test_the_table_covers_every_method_and_task() -> None:
    assert set(CASES) == set(task_names())
    assert all(set(tasks_of(method)) == set(CASES) for method in own_method_names()), REFRESH


@pytest.mark.parametrize("task", CASES)
def test_what_the_table_refuses_is_refused_by_every_recipe(task: str, tmp_path: Path) -> None:
    """And nothing else is: each variant of a method as the method itself."""
    for label, section in SECTIONS.items():
        folder = tmp_path / "bases" / label
        folder.mkdir(parents=True)
        found = refused(write_recipe(task, section, folder))
        method = next(name for name in own_method_names() if label in cases_of(name))
        said = tasks_of(method)[task]
        assert found == (said if is_refused(said) else None), f"{label} under {task}"


def test_methods_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    document = methods_document()["methods"]
    assert all(document[method]["tasks"] == tasks_of(method) for method in own_method_names())
    by_task = {task: [m for m in own_method_names() if is_refused(tasks_of(m)[task])] for task in CASES}
    assert any(by_task.values()), "nothing is refused, so nothing is shown"
    text = " ".join(methods_text().split())
    for task, methods in by_task.items():
        assert not methods or f"{task} not with {', '.join(methods)}" in text
    method = next(method for methods in by_task.values() for method in methods)
    reason = next(found for found in tasks_of(method).values() if is_refused(found))
    assert reason in " ".join(method_text(method).split())
    assert peft(["methods", "lora"]) == 0
    # lines may end at a hyphen
    assert f"tasks:{','.join(CASES)}" in "".join(capsys.readouterr().out.split())
