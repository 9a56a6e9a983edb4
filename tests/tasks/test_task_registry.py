from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from peftcli.errors import RecipeError
from peftcli.tasks import registry


def test_a_task_is_found_by_its_file_in_either_spelling() -> None:
    assert registry.DEFAULT_TASK == "causal-lm"
    assert all(registry.task(name).name == name for name in registry.task_names())
    assert registry.task("causal-lm") is registry.task("Causal_LM")
    assert registry.task("causal-lm").auto_class == "AutoModelForCausalLM"


@pytest.mark.parametrize(
    ("name", "near"), [("causal", "causal-lm"), ("casual_lm", "causal-lm"), ("seq2seq", "seq2seq-lm")]
)
def test_unknown_tasks_name_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown task `{name}`") as caught:
        registry.resolve_task_name(name)
    assert near in caught.value.fix


def test_an_installed_package_adds_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("reverse_lm", "collections:OrderedDict", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_outside_tasks", lambda: {"reverse-lm": point})
    monkeypatch.setattr(registry, "task_names", lambda: ("causal-lm", "reverse-lm"))
    from collections import OrderedDict

    assert registry.task("reverse_lm") is OrderedDict


def test_names_cost_no_torch() -> None:
    code = "import sys; from peftcli.tasks import registry; registry.resolve_task_name('causal_lm'); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
