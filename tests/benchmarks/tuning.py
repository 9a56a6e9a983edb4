"""How well `peft compare --tune 9` chooses a learning rate, at which cost: successive halving against the whole grid.

    PEFTCLI_GROUND=... python tests/benchmarks/tuning.py [--steps 45] [METHOD ...]

builtin:tiny on tales, AdamW with a cosine; trials are judged on rows of their own, the grid's best is that of the other
rows after a whole training at each of the nine rates. What it must show: within a factor of 2 of that best for at least 7
of 8 methods, trials and the member together at a third of the grid's steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli import adapters
from peftcli.adapters.learning_rate import auto_rate
from peftcli.adapters.surgery import adapter_of, parse_config
from peftcli.compare.halving import best_of, rate_grid, rungs
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.tokenizer import load_tokenizer

METHODS = ("lora", "ia3", "bottleneck", "prompt_tuning", "vera", "oft", "ln_tuning", "reft")
BATCH, LENGTH, HELD_OUT = 4, 48, 48
CANDIDATES = 9


class Trainer:
    """A base with rows of tokens; trains a method at a rate for some steps and scores both parts of the held-out rows."""

    def __init__(self, ground: Path) -> None:
        source = resolve_base("builtin:tiny", folder=Path.cwd())
        self.model: Any = load_model(source, auto_class="AutoModelForCausalLM").eval()
        self.width = int(self.model.config.hidden_size)
        tokenizer = load_tokenizer(source)
        texts = [json.loads(line)["text"] for line in (ground / "data" / "tales" / "train.jsonl").open()][:400]
        cut = [tokenizer(text[:600])["input_ids"][:LENGTH] for text in texts]
        self.rows = torch.tensor([row for row in cut if len(row) == LENGTH])
        self.done: dict[tuple[str, float, int], tuple[float, float]] = {}
        self.steps = 0

    def scores(self, method: str, rate: float, steps: int) -> tuple[float, float]:
        """Losses on the rows of tuning (a third) and on those of the final score."""
        key = (method, rate, steps)
        if key not in self.done:
            self.done[key] = self._trained(method, rate, steps)
        return self.done[key]

    def _trained(self, method: str, rate: float, steps: int) -> tuple[float, float]:
        adapters.attach(self.model, {"type": method}, seed=0)
        adapter = adapter_of(self.model)
        optimizer = torch.optim.AdamW(adapter.parameter_groups(rate, 0.0))
        peaks = [group["lr"] for group in optimizer.param_groups]
        generator = torch.Generator().manual_seed(1)
        for step in range(steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            chosen = HELD_OUT + torch.randperm(len(self.rows) - HELD_OUT, generator=generator)[:BATCH]
            self._loss(self.rows[chosen]).backward()
            torch.nn.utils.clip_grad_norm_(list(adapter.trainable_parameters().values()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found = [float(self._loss(self.rows[part])) for part in (slice(0, 16), slice(16, HELD_OUT))]
        adapters.detach(self.model)
        return found[0], found[1]

    def _loss(self, rows: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=rows, labels=rows).loss
        return found


def _known(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def chosen_by_halving(trainer: Trainer, method: str, rates: list[float], whole: int) -> tuple[float, int]:
    """The rate that `--tune` takes, and the steps of all trials."""
    alive, cost, planned = list(rates), 0, rungs(len(rates), whole)
    for number, rung in enumerate(planned):
        found = {at: _known(trainer.scores(method, rate, rung.steps)[0]) for at, rate in enumerate(alive)}
        cost += len(alive) * rung.steps
        keep = planned[number + 1].candidates if number + 1 < len(planned) else 1
        alive = [alive[at] for at in best_of(found, keep)]
    return alive[0], cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=45)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(Path(os.environ["PEFTCLI_GROUND"]))
    whole, near = options.steps, 0
    print("method             auto   chosen     best   off  cost  loss: chosen, best, auto", flush=True)
    for method in options.methods:
        auto = auto_rate(parse_config({"type": method}), trainer.width).rate
        rates = rate_grid(auto, CANDIDATES)
        chosen, steps = chosen_by_halving(trainer, method, rates, whole)
        losses = {rate: trainer.scores(method, rate, whole)[1] for rate in rates}
        best = min(losses, key=lambda rate: _known(losses[rate]) or math.inf)
        off = max(chosen / best, best / chosen)
        near += off <= 2.01
        cost = (steps + whole) / (CANDIDATES * whole)
        at_auto = losses[min(rates, key=lambda rate: abs(rate - auto))]
        print(
            f"{method:<14} {auto:>8.2g} {chosen:>8.2g} {best:>8.2g} {off:>5.2g} {cost:>5.0%}  "
            f"{losses[chosen]:.3f} {losses[best]:.3f} {at_auto:.3f}",
            flush=True,
        )
        print("   " + "  ".join(f"{rate:.2g}: {loss:.3f}" for rate, loss in losses.items()), flush=True)
    print(f"within a factor of 2 of the grid's best: {near} of {len(options.methods)}", flush=True)


main()
