"""A run of vectors that is stopped ends in the same bytes, is locked with its pooling, and comes out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from label_bases import write_bert
from test_embedding import written

import peftcli
from peftcli import files
from peftcli.lock.lock_file import read_lock
from peftcli.models.sentences import SentenceShape, shape_files
from peftcli.reproduce.job import reproduce
from peftcli.runs.locking import write_lock_for


def _tensors(run: Path) -> str:
    return files.sha256_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_run_of_vectors_is_resumed_locked_reproduced_and_replaced(tmp_path: Path) -> None:
    training = "max_steps: 4, batch_size: 8, micro_batch_size: 3, learning_rate: 0.01"
    recipe = written(tmp_path, "lora", write=write_bert, training=training, rest="checkpoint: {every: 2, best: null}\n")
    whole = tmp_path / "whole"
    peftcli.train(recipe, output=whole, overrides={"threads": 1})

    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    for name in ("adapter", "run.json", "report.html"):
        path = stopped / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(stopped / "checkpoints" / "step-00000004")
    assert peftcli.resume(stopped).status == "completed"
    assert _tensors(stopped) == _tensors(whole)

    lock = write_lock_for(whole).lock
    assert (lock.value("embedding.pooling"), lock.value("embedding.normalize")) == ("mean", True)
    assert reproduce(recipe, strict=True).held

    # a base that says another pooling is another input, though no weight of it differs
    for name, content in shape_files(SentenceShape("cls", normalize=True), 16, tmp_path / "base").items():
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_bytes(content)
    found = reproduce(recipe)
    assert not found.held
    assert "embedding.pooling" in json.dumps(found.to_dict())
    assert read_lock(recipe.with_suffix(".lock")) == lock

    # what the run wrote for other tools is its own, and goes with it
    assert (whole / "adapter" / "1_Pooling" / "config.json").is_file()
    peftcli.train(recipe, output=whole, replace=True, overrides={"threads": 1})
