"""Mutated recipes: whatever the bytes, the answer is a recipe or an error of ours, quickly and without a traceback."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from peftcli.errors import PeftcliError
from peftcli.recipe import load_recipe

SEEDS = [
    """\
model: builtin:tiny
data: {train: builtin:support, validation: 0.1}
method: {type: lora, r: 8, target_modules: [q_proj, v_proj]}
training: {max_steps: 200, learning_rate: 2e-3, optimizer: {type: adamw, betas: [0.9, 0.95]}, scheduler: cosine}
evaluation: {every: 50, metrics: [loss, exact_match]}
generation: {max_new_tokens: 32}
checkpoint: {best: eval_loss}
""",
    """\
model:
  base: builtin:tiny
  dtype: auto
data:
  train:
    - path: a.jsonl
      weight: 2
    - path: user/set
      weight: 1
      rows: 10
  validation: 5
  columns:
    prompt: question
method:
  type: bottleneck
seed: 3
name: x
""",
]
PIECES = [
    "[",
    "]",
    "{",
    "}",
    ":",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "'",
    '"',
    "#",
    "&a ",
    "*a",
    "!!str ",
    "|",
    ">",
    "%",
    "@",
    "`",
    "null",
    "true",
    "no",
    "2e-5",
    ".nan",
    "1e999",
    "-1",
    "999999999999999999999999",
    "\x00",
    "\x01",
    "\ufeff",
    "\u202e",
    "é",
    "😀",
    "${X}",
    "---\n",
    "...\n",
    "? ",
    "<<: *a",
    "extends: r.yaml\n",
    "model",
    "method: lora\n",
    "type: adamw",
    "hf_" + "a" * 30,
    "=",
    ",",
]


def mutant(generator: random.Random) -> bytes:
    data = bytearray(generator.choice(SEEDS).encode("utf-8"))
    for _ in range(generator.choice([1, 1, 2, 5])):
        place = generator.randrange(len(data) + 1)
        match generator.randrange(6):
            case 0:
                data[place : place + generator.randint(1, 12)] = b""
            case 1:
                data[place:place] = generator.choice(PIECES).encode("utf-8")
            case 2 if place < len(data):
                data[place] ^= 1 << generator.randrange(8)
            case 3:
                other = generator.randrange(len(data) + 1)
                data[place:place] = data[min(place, other) : max(place, other)][:200]
            case 4:
                lines = data.decode("utf-8", errors="replace").split("\n")
                generator.shuffle(lines)
                data = bytearray("\n".join(lines).encode("utf-8"))
            case _:
                data[place : place + 1] = generator.randbytes(generator.randint(1, 3))
    return bytes(data)


def survives(path: Path, seed: int) -> str:
    data = mutant(random.Random(seed))
    path.write_bytes(data)
    started = time.perf_counter()
    found: PeftcliError | None = None
    try:
        load_recipe(path)
    except PeftcliError as error:
        found = error
    assert time.perf_counter() - started < 5, seed
    if found is None:
        return "recipe"
    text = found.render()
    assert found.exit_code == 2, (seed, text)
    assert "Traceback" not in text
    assert len(text) < 20_000
    return type(found).__name__


def test_a_hundred_mutants(tmp_path: Path) -> None:
    outcomes = [survives(tmp_path / "r.yaml", seed) for seed in range(100)]
    assert outcomes.count("RecipeError") > 50, "the mutants are bad enough"
    assert outcomes.count("recipe") > 2, "and not all beyond hope"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_many_mutants(tmp_path: Path, block: int) -> None:
    for seed in range(1000 + 500 * block, 1500 + 500 * block):
        survives(tmp_path / "r.yaml", seed)
