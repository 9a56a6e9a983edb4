"""An entry of the catalogue of bad inputs, and the place where its files lie."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peftcli.models.builtin import builtin_base

GOOD = """\
model: builtin:tiny
data: {train: {path: builtin:support, rows: 12}, validation: 4, max_length: 160}
method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}
training: {max_steps: 2, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 0}
checkpoint: {every: 1}
threads: 1
"""
ROWS = '{"prompt": "Hello", "completion": "Hi there."}\n'
CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'
ON_ROWS = "model: builtin:tiny\ndata: ./rows.jsonl\nmethod: lora\ntraining: {max_steps: 1, batch_size: 2}\nthreads: 1\n"
ON_BASE = "model: ./base\ndata: builtin:support\nmethod: lora\ntraining: {max_steps: 1, batch_size: 2}\nthreads: 1\n"


class Place:
    """A folder to put files into; bases, adapters and runs come as copies that may be spoilt."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, trained: Path) -> None:
        self.folder = folder
        self.patch = patch
        self.trained = trained

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    def base(self, name: str = "base") -> Path:
        """A copy of the built-in base; its weights are a link to the same file, to be replaced, not written to."""
        source, path = builtin_base("tiny"), self.folder / name
        path.mkdir()
        for file in source.iterdir():
            if file.name == "model.safetensors":
                try:
                    os.link(file, path / file.name)
                    continue
                except OSError:
                    pass
            shutil.copy(file, path)
        return path

    def run(self, name: str = "run") -> Path:
        path = self.folder / name
        shutil.copytree(self.trained, path)
        return path

    def adapter(self, name: str = "adapter") -> Path:
        path = self.folder / name
        shutil.copytree(self.trained / "adapter", path)
        return path


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; `None` takes a key out."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document = {key: value for key, value in {**document, **changes}.items() if value is not None}
    path.write_text(json.dumps(document), encoding="utf-8")


def nothing(place: Place) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Entry:
    """`number` as in the catalogue; `says`: parts of the message, place and remedy among them."""

    number: str
    code: int
    says: tuple[str, ...]
    recipe: str | None = GOOD
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    command: str = "validate r.yaml"
    prepare: Callable[[Place], object] = nothing
    unprivileged: bool = False
    lines: int = 12
    """How long the message may be."""
