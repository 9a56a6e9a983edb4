"""What every arm of a protocol is given: a base on disk, rows as tokens in the order of training, a start of the adapter."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocols import Protocol
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from peftcli import adapters
from peftcli.data.builtin import builtin_data
from peftcli.data.order import permutation
from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import load_recipe
from peftcli.runs.assembly import assemble
from peftcli.runs.attaching import attach_method

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8192, "max_position_embeddings": 2048,
         "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
"""27.8 million parameters; used where no folder of a base is given."""
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """Files of one protocol in one number format."""

    recipe: Path
    base: Path
    rows: Path
    """JSON: the rows of each optimizer step (`given`), and all rows in the order of the file (`all`)."""
    start: Path
    """The adapter that every arm starts from, in Hugging Face PEFT's format."""


def write_base(folder: Path, given: Path | None, *, tiny: bool) -> Path:
    """A base with its weights in `folder`: `given` as it is, or its configuration with random weights (seed 0)."""
    if given is not None and any(given.glob("*.safetensors")):
        return given
    config = LlamaConfig(**{**SHAPE, **(TINY if tiny else {})}) if given is None else AutoConfig.from_pretrained(given)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    beside = None if given is None else given.parent / "bpe8k"
    tokenizer = builtin_base("tiny") if beside is None or not beside.is_dir() else beside
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return folder


def _rows_file(protocol: Protocol, folder: Path) -> Path:
    ground = os.environ.get("PEFTCLI_GROUND")
    if protocol.row_tokens is not None:
        return Path(ground, "data", "tales", "train.jsonl") if ground else builtin_data("text")
    rows = Path(ground, "data", "instruction", "alpaca_en_demo.json") if ground else None
    if rows is None or not rows.is_file():
        return builtin_data("instruct")
    # a chat template that a base may bring would make these rows of another length
    shutil.copyfile(rows, folder / "rows.json")
    return folder / "rows.json"


def make(protocol: Protocol, folder: Path, base: Path, *, steps: int, dtype: str, threads: int) -> Material:
    """Plans the protocol with peftcli and writes down what the plan says, for all arms alike."""
    folder.mkdir(parents=True, exist_ok=True)
    source = str(_rows_file(protocol, folder))
    document = protocol.recipe(str(base), source, steps=steps, dtype=dtype, threads=threads)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    torch.set_num_threads(threads)
    prepared = prepare_run(load_recipe(recipe, ()))
    rows = folder / "tokens.json"
    rows.write_text(json.dumps(_tokens(prepared, steps)), encoding="utf-8")
    assembly = assemble(prepared, folder / "start-run", quiet=True)
    attach_method(assembly, resuming=False)
    adapters.save(assembly.model, folder / "start")
    return Material(recipe, base, rows, folder / "start")


def _tokens(prepared: Prepared, steps: int) -> dict[str, Any]:
    store, order = prepared.data.train, prepared.order
    batches = [order.batch(*divmod(step, order.steps_per_epoch)) for step in range(steps)]
    if len(batches) == 1:
        raise SystemExit("a protocol needs more than one step")
    shuffled = permutation(len(store), 0)
    return {
        "given": [[_row(store[int(row)]) for row in batch] for batch in batches],
        "all": [_row(store[int(row)]) for row in shuffled],
    }


def _row(row: Any) -> dict[str, list[int]]:
    ids = np.asarray(row.input_ids)
    labels = np.where(np.asarray(row.weights) > 0, ids, -100)
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


if __name__ == "__main__":
    # a process of its own, so that the driver stays small: `material.py JOB.json`
    from protocols import PROTOCOLS

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    place = Path(job["folder"])
    where = None if job["model"] is None else Path(job["model"])
    (place / "base").mkdir(parents=True, exist_ok=True)
    used = write_base(place / "base", where, tiny=job["tiny"])
    made = make(PROTOCOLS[job["protocol"]], place, used, steps=job["steps"], dtype=job["dtype"], threads=job["threads"])
    Path(job["result"]).write_text(json.dumps({name: str(path) for name, path in vars(made).items()}))
