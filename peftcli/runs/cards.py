"""The card of a run's adapter: what the record holds, and what task and method say of their files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from peftcli.recipe import Recipe
from peftcli.reports.card import model_card
from peftcli.reports.card_usage import CardPlace
from peftcli.reports.folder import RunFacts
from peftcli.tasks.registry import task as find_task


def run_card(
    facts: RunFacts,
    recipe: Recipe,
    *,
    licence: Mapping[str, str] = MappingProxyType({}),
    place: CardPlace | None = None,
) -> str:
    """The text of README.md, beside the run or for a repository (`place`), under the base's licence."""
    task = find_task(recipe.task)
    return model_card(
        facts,
        auto_class=task.auto_class,
        pipeline=task.pipeline_tag,
        loads_with_peft=recipe.method.in_peft,
        served_as_lora=recipe.method.served_as_lora,
        licence=licence,
        place=place,
    )
