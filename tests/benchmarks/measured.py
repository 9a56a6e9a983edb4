"""What `peft methods` knows of the methods by measurement: compares them on each recipe of recipes/measured.

    python tests/benchmarks/measured.py [FOLDER]      (or `make measured`)

A comparison goes on in FOLDER (build/measured) where it was stopped. Writes, beside each recipe, NAME.json with what was
found and NAME.recommended.yaml, ready to train; and peftcli/adapters/measured.json, which `peft methods` quotes. Times are
not kept: they say more of the machine and what else it did than of the methods.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from peftcli.compare.figures import Variant
from peftcli.compare.job import Comparison, compare
from peftcli.evaluation.result import Difference
from peftcli.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "measured"
QUOTED = ROOT / "peftcli" / "adapters" / "measured.json"
METHODS = ("lora", "dora", "ia3", "bottleneck", "oft")
SEEDS = 2


def outcome(recipe: Path, found: Comparison) -> dict[str, Any]:
    """What a comparison found, as the repository keeps it."""
    members = found.document["members"]
    loaded = load_recipe(recipe).recipe
    differences = {other.name: difference for other, difference in found.verdict.others}
    metric = found.verdict.metric
    return {
        "recipe": f"recipes/measured/{recipe.name}",
        "base": loaded.model.base,
        "data": loaded.data.train_sources[0].path,
        "budget": f"{members[0]['steps']} steps",
        "seeds": SEEDS,
        "date": datetime.date.fromtimestamp((found.folder / "compare.json").stat().st_mtime).isoformat(),
        "metric": metric,
        "untouched": members[0]["evaluation"]["base"][metric],
        "rows": len(found.variants[0].table.numbers) if found.variants[0].table is not None else None,
        "recommended": found.verdict.best.name,
        "methods": [_method(variant, differences.get(variant.name)) for variant in _ordered(found)],
    }


def _ordered(found: Comparison) -> list[Variant]:
    return [found.verdict.best, *(other for other, _ in found.verdict.others)]


def _method(variant: Variant, difference: Difference | None) -> dict[str, Any]:
    facts = {
        "name": variant.name,
        "value": variant.value,
        "interval": [variant.low, variant.high],
        "trainable": variant.trainable,
        "peak_memory_bytes": variant.peak_memory_bytes,
    }
    if difference is None:
        return facts
    return {**facts, "to_best": difference.delta, "to_best_interval": [difference.lo, difference.hi]}


def main(folder: Path) -> None:
    outcomes = []
    for recipe in sorted(RECIPES.glob("*.yaml")):
        if recipe.stem.endswith(".recommended"):
            continue
        found = compare(recipe, methods=METHODS, seeds=SEEDS, output=folder / recipe.stem, say=print)
        outcomes.append(outcome(recipe, found))
        recipe.with_suffix(".json").write_text(json.dumps(outcomes[-1], indent=2) + "\n", encoding="utf-8")
        recommended = (found.folder / "recommended.yaml").read_text(encoding="utf-8")
        recipe.with_name(f"{recipe.stem}.recommended.yaml").write_text(recommended, encoding="utf-8")
    QUOTED.write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/measured"))
