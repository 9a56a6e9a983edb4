"""`peft evaluate`: metrics of base and tuned model on a recipe's evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.surgery import disabled
from peftcli.data.facts import DataFacts
from peftcli.data.prepare import prepare
from peftcli.data.store import TokenStore
from peftcli.errors import DataError, RecipeError
from peftcli.evaluation.evaluate import Evaluation, evaluate
from peftcli.jobs.opening import Opened, open_adapter, run_recipe
from peftcli.jobs.showing import source_scores
from peftcli.recipe import LoadedRecipe, load_recipe
from peftcli.reports.record import SourceScores
from peftcli.tasks.registry import task as find_task


@dataclass(frozen=True)
class Scores:
    """Base and tuned model on the same rows."""

    base: Evaluation
    tuned: Evaluation
    recipe: str
    sources: list[SourceScores]
    """Of each source, where there are several."""

    def to_dict(self) -> dict[str, Any]:
        sides = {"base": self.base, "tuned": self.tuned}
        return {
            "recipe": self.recipe,
            "rows": self.tuned.rows,
            **{name: side.metrics for name, side in sides.items()},
            "intervals": {
                name: {key: list(pair) for key, pair in side.intervals.items()} for name, side in sides.items()
            },
            "sources": [source.model_dump(mode="json") for source in self.sources],
        }


def evaluate_adapter(
    path: str | Path, recipe: str | Path | None = None, *, base: str | None = None, overrides: Sequence[str] = ()
) -> Scores:
    """Scores base and tuned model on the evaluation rows of the run's recipe, or of another one."""
    opened = open_adapter(path, base=base)
    loaded = load_recipe(Path(recipe), overrides) if recipe is not None else run_recipe(opened.location, overrides)
    store, facts = evaluation_rows(loaded, opened)
    with disabled(opened.model):
        plain = score(loaded, opened, store)
    tuned = score(loaded, opened, store)
    return Scores(plain, tuned, str(loaded.path), source_scores(plain, tuned, facts))


def evaluation_rows(loaded: LoadedRecipe, opened: Opened) -> tuple[TokenStore, DataFacts]:
    """The validation rows of a recipe, as training would see them, and the facts of its data."""
    if loaded.recipe.data.validation is None:
        raise RecipeError("the recipe has no evaluation rows", where=str(loaded.path), fix="set `data.validation`")
    data = prepare(loaded.recipe.data, tokenizer=opened.tokenizer, folder=loaded.folder, seed=loaded.recipe.seed)
    if data.validation is None or not len(data.validation):
        raise DataError("no evaluation row is left", where=str(loaded.path), fix="check `data.validation`")
    return data.validation, data.facts


def score(loaded: LoadedRecipe, opened: Opened, store: TokenStore) -> Evaluation:
    """Metrics of the model as it stands."""
    return evaluate(
        opened.model,
        find_task(loaded.recipe.task),
        store,
        opened.tokenizer,
        config=loaded.recipe.evaluation,
        generation=loaded.recipe.generation,
        pad_token_id=int(opened.tokenizer.pad_token_id or 0),
    )


def scores_text(scores: Scores) -> str:
    """What `peft evaluate` prints."""
    lines = [
        f"{scores.tuned.rows:,} rows of {scores.recipe}",
        f"{'metric':<22} {'base':>10} {'tuned':>10}  95 % of tuned",
    ]
    for name, value in scores.tuned.metrics.items():
        base = scores.base.metrics.get(name)
        low, high = scores.tuned.intervals.get(name, (value, value))
        lines.append(f"{name:<22} {_shown(base):>10} {value:>10.4f}  {low:.4f} to {high:.4f}")
    for source in scores.sources:
        lines.append(f"{source.name}: {source.rows:,} rows")
        for name, tuned in source.tuned.items():
            lines.append(f"  {name:<20} {_shown(source.base.get(name)):>10} {_shown(tuned):>10}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
