"""Quality of methods on a real base and real text: stories260K on tales, each method at its own rate.

    PEFTCLI_GROUND=... python tests/benchmarks/quality.py [--seeds 3] [METHOD_SECTION_JSON ...]

Documents joined (BOS each, no EOS) and cut into rows of 256 tokens, batch 4, 80 AdamW steps, cosine with 10 warm-up
steps, clip 1.0, evaluation on the first 32 rows. The untouched base has 3.177.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from peftcli.run import train

SECTIONS: tuple[dict[str, Any], ...] = (
    {"type": "lora", "r": 16, "lora_alpha": 32},
    {"type": "bottleneck"},
    {"type": "prompt_tuning", "num_virtual_tokens": 20},
)


def recipe(ground: Path, section: dict[str, Any], seed: int) -> dict[str, Any]:
    """The protocol as a recipe."""
    rate = section.pop("learning_rate", "auto")
    return {
        "model": str(ground / "models" / "stories260K"),
        "data": {
            "train": str(ground / "data" / "tales" / "train.jsonl"),
            "validation": str(ground / "data" / "tales" / "eval.jsonl"),
            "append_eos": False,
            "max_length": 256,
        },
        "method": section,
        "training": {"max_steps": 80, "batch_size": 4, "warmup_steps": 10, "learning_rate": rate},
        "evaluation": {"rows": 32, "samples": 0, "every": 80},
        "checkpoint": {"every": None, "best": None},
        "seed": seed,
        "threads": 1,
    }


def losses(ground: Path, section: dict[str, Any], seeds: int) -> list[float]:
    """Eval loss after training, for each seed."""
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "recipe.yaml")
            path.write_text(yaml.safe_dump(recipe(ground, dict(section), seed)))
            record = train(path, output=Path(folder, "run"))
            found.append(float(record.evaluation.tuned["eval_loss"] or float("nan")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", type=json.loads)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    ground = Path(os.environ["PEFTCLI_GROUND"])
    for section in options.sections or SECTIONS:
        found = losses(ground, section, options.seeds)
        each = ", ".join(f"{loss:.4f}" for loss in found)
        print(f"{json.dumps(section):<70} mean {sum(found) / len(found):.4f}  ({each})", flush=True)


main()
