"""What checkpoints cost: the share of training time that a run spends in saving, at the default cadence.

    python tests/benchmarks/checkpoint_cost.py [--steps 200] [recipes/tiny/lora.yaml ...]

Each tiny recipe is trained for that many steps with `checkpoint.every` at its default, in one thread. Measured are the
seconds inside of saving (copying, hashing, writing, syncing, renaming and retention) and the run's seconds of training.
Exit code 10 where a share is above the bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from peftcli.run import train
from peftcli.training.config import CheckpointConfig
from peftcli.training.state_keeper import Keeper

TINY = Path(__file__).parents[2] / "recipes" / "tiny"
BOUND = 0.03


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, and the bytes of its last checkpoint."""

    recipe: str
    saves: int
    saving: float
    training: float
    checkpoint_bytes: int

    @property
    def share(self) -> float:
        return self.saving / self.training


class Stopwatch:
    """Adds up the time inside `Keeper.save`, for the saves that wrote something."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._save = Keeper.save

    def __enter__(self) -> Stopwatch:
        save, seconds = self._save, self.seconds

        def timed(keeper: Keeper) -> None:
            before, started = keeper.saved_step, time.perf_counter()
            save(keeper)
            if keeper.saved_step != before:
                seconds.append(time.perf_counter() - started)

        Keeper.save = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Keeper.save = self._save  # type: ignore[method-assign]


def measure(recipe: Path, steps: int) -> Cost:
    """Trains once."""
    overrides = {
        "training.max_steps": steps,
        "checkpoint.every": CheckpointConfig().every,
        "evaluation.samples": 0,
        "threads": 1,
    }
    with tempfile.TemporaryDirectory() as folder, Stopwatch() as watch:
        run = Path(folder, "run")
        record = train(recipe, overrides=overrides, output=run)
        newest = max((run / "checkpoints").iterdir())
        size = sum(path.stat().st_size for path in newest.iterdir())
    return Cost(recipe.stem, len(watch.seconds), sum(watch.seconds), record.seconds.training, size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=sorted(TINY.glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(f"{'recipe':<18} {'saves':>5} {'saving s':>9} {'training s':>11} {'share':>7} {'checkpoint bytes':>17}")
    costs = []
    for recipe in arguments.recipes:
        cost = measure(recipe, arguments.steps)
        costs.append(cost)
        print(
            f"{cost.recipe:<18} {cost.saves:>5} {cost.saving:>9.3f} {cost.training:>11.2f} {cost.share:>7.2%} "
            f"{cost.checkpoint_bytes:>17,}",
            flush=True,
        )
    worst = max(costs, key=lambda cost: cost.share)
    total = sum(cost.saving for cost in costs) / sum(cost.training for cost in costs)
    print(f"all: {total:.2%}; most: {worst.recipe} {worst.share:.2%}; bound {BOUND:.0%}")
    return 0 if worst.share <= BOUND else 10


if __name__ == "__main__":
    sys.exit(main())
