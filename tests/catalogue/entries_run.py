"""The machine, the disk, and runs to be resumed."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from entry import GOOD, ON_BASE, ROWS, Entry, Place

from peftcli import files
from peftcli.training import stepper

TRAIN = "train r.yaml --output new --quiet"
RESUME = "resume run --quiet"


def with_line(line: str) -> str:
    return GOOD + line + "\n"


def training(text: str) -> str:
    return GOOD.replace("training: {", f"training: {{{text}, ")


def out_of_memory(place: Place) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    place.patch.setattr(stepper, "accumulate", refuse)


def locked(place: Place) -> None:
    path = place.folder / "new"
    path.mkdir()
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # held as long as the entry lasts
    place.patch.setattr(os, "_peftcli_test_lock", descriptor, raising=False)


def not_writable(place: Place) -> None:
    (place.folder / "new").mkdir()
    (place.folder / "new").chmod(0o555)
    place.folder.chmod(0o755)


def cache_not_writable(place: Place) -> None:
    place.write("rows.jsonl", ROWS)
    (place.folder / "cache").mkdir()
    (place.folder / "cache").chmod(0o555)
    (place.folder / "out").mkdir()
    (place.folder / "out").chmod(0o777)
    place.folder.chmod(0o755)
    place.patch.setenv("PEFTCLI_CACHE", str(place.folder / "cache"))


def unreadable(name: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        place.run()
        place.folder.chmod(0o755)
        (place.folder / "run" / "adapter" / name).chmod(0)

    return prepare


def little_space(place: Place) -> None:
    place.patch.setattr(files, "free_bytes", lambda path: 1000)


def little_space_to_merge(place: Place) -> None:
    place.run()
    little_space(place)


def odd_surroundings(place: Place) -> None:
    for name, value in (("LANG", "C"), ("LC_ALL", "C"), ("TZ", "Asia/Kathmandu"), ("COLUMNS", "20"), ("TERM", "dumb")):
        place.patch.setenv(name, value)


ENVIRONMENT = [
    Entry("95 no GPU", 5, ("device cuda is not available on this machine", "device: auto"), recipe=with_line("device: cuda"), command="plan r.yaml"),
    Entry("97 fp16 on a CPU", 5, ("fp16 does not train on a CPU", "bf16"), recipe=training("precision: fp16") + "device: cpu\n", command="plan r.yaml"),
    Entry("98 bitsandbytes", 5, ("adamw_8bit needs a CUDA GPU", "optimizer: adamw"), recipe=training("optimizer: adamw_8bit"), command=TRAIN),
    Entry("98 optimizer package", 5, ("pytorch_optimizer", "pip install"), recipe=training("optimizer: schedule_free, scheduler: constant"), command=TRAIN,
          prepare=lambda place: place.patch.setitem(sys.modules, "pytorch_optimizer", None)),
    Entry("101 out of memory", 9, ("out of memory", "one row at a time", "max_length"), command=TRAIN, prepare=out_of_memory, lines=20),
    Entry("102 output is a file", 6, ("is a file, not a folder", "new", "another output"), command=TRAIN, files={"new": ""}),
    Entry("102 output below a file", 6, ("is a file, not a folder", "r.yaml"), command="train r.yaml --output r.yaml/x"),
    Entry("103 not writable", 6, ("no permission to write", "new", "another output"), command=TRAIN, prepare=not_writable, unprivileged=True),
    Entry("104 a run is there", 6, ("already holds a run", "--replace", "peft resume"), command="train r.yaml --output run", prepare=lambda place: place.run()),
    Entry("104 a run was killed there", 6, ("an unfinished run", "`peft resume", "run` goes on", "--replace"), command="train r.yaml --output run",
          prepare=lambda place: (place.run() / "run.json").unlink()),
    Entry("104 files are there", 6, ("holds other files (notes.md)", "another output"), command=TRAIN, files={"new/notes.md": "mine"}),
    Entry("104 data are there", 6, ("holds other files (data/rows.jsonl)", "another output"), command="train r.yaml --output new --replace", files={"new/data/rows.jsonl": ROWS}),
    Entry("105 no space", 6, ("bytes are needed", "1,000 are free", "peft resume"), command=TRAIN, prepare=little_space),
    Entry("105 no space to merge", 6, ("bytes are needed", "1,000 are free", "free some space"), command="merge run --output m", prepare=little_space_to_merge),
    Entry("106 in use", 6, ("another process owns", "new", "wait"), command=TRAIN, prepare=locked),
    Entry("unreadable tensors", 6, ("no permission to read", "adapter_model.safetensors", "check the path and its permissions"), lines=3,
          command="inspect run", prepare=unreadable("adapter_model.safetensors"), unprivileged=True),
    Entry("unreadable configuration", 6, ("no permission to read", "adapter_config.json", "check the path and its permissions"), lines=3,
          command="inspect run", prepare=unreadable("adapter_config.json"), unprivileged=True),
    Entry("114 odd surroundings", 0, ("Evaluation loss",), command=TRAIN, prepare=odd_surroundings),
    Entry("115 cache", 0, ("PEFTCLI_CACHE",), command="plan r.yaml", prepare=cache_not_writable, unprivileged=True,
          recipe=ON_BASE.replace("./base", "builtin:tiny").replace("builtin:support", "./rows.jsonl")),
    Entry("no place for an answer", 6, ("out.jsonl",), command="generate run --input in.jsonl --output r.yaml/out.jsonl --set generation.max_new_tokens=1",
          files={"in.jsonl": '{"prompt": "a"}\n'}, prepare=lambda place: place.run()),
]  # fmt: skip


# -- resuming ----------------------------------------------------------------------------------------------------


def run(change: Callable[[Any], object]) -> Callable[[Place], object]:
    return lambda place: change(place.run())


def rewrite(old: str, new: str) -> Callable[[Place], object]:
    def change(folder: Any) -> None:
        path = folder / "recipe.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return run(change)


def all_damaged(folder: Any) -> None:
    for path in (folder / "checkpoints").glob("*/adapter.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])


def newest_damaged(folder: Any) -> None:
    newest = max((folder / "checkpoints").iterdir())
    (newest / "optimizer.safetensors").unlink()


def newer_format(folder: Any) -> None:
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text(files.to_json({**json.loads(path.read_text()), "format": 99}))


def foreign(folder: Any) -> None:
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        document = json.loads(path.read_text())
        path.write_text(files.to_json({**document, "run_id": "0" * 16}))


CHECKPOINTS = [
    Entry("107 no run", 7, ("no run to resume here", "name the folder of a run"), command="resume ."),
    Entry("107 nowhere", 7, ("no run to resume here", "nowhere"), command="resume nowhere"),
    Entry("107 no adapter yet", 7, ("has not written an adapter", "peft resume"), command="generate half --prompt Hi", files={"half/recipe.yaml": GOOD}),
    Entry("108 all damaged", 7, ("no checkpoint of this run can be used", "step-00000002", "step-00000001", "bytes"), command=RESUME, prepare=run(all_damaged)),
    Entry("108 newest damaged", 0, ("Evaluation loss",), command="resume run", prepare=run(newest_damaged)),
    Entry("109 another rate", 7, ("training.learning_rate was 0.002 and is now 0.5", "train again"), command=RESUME, prepare=rewrite("learning_rate: 0.002", "learning_rate: 0.5")),
    Entry("109 another rank", 7, ("method.r was 2 and is now 4", "put back"), command=RESUME, prepare=rewrite("r: 2", "r: 4")),
    Entry("109 cadence may change", 0, ("Evaluation loss",), command=RESUME, prepare=rewrite("every: 1", "every: 7")),
    Entry("110 other data", 7, ("data tokens was", "and is now"), command=RESUME, prepare=rewrite("rows: 12", "rows: 11")),
    Entry("112 another batch", 7, ("training.batch_size was 4 and is now 8",), command=RESUME, prepare=rewrite("batch_size: 4", "batch_size: 8")),
    Entry("113 newer format", 7, ("unknown format", "step-00000002"), command=RESUME, prepare=run(newer_format)),
    Entry("foreign checkpoint", 7, ("run_id", "step-00000002"), command=RESUME, prepare=run(foreign)),
    Entry("recipe of the run damaged", 2, ("not YAML", "recipe.yaml:2:1"), command=RESUME, prepare=run(lambda folder: (folder / "recipe.yaml").write_text("model: ["))),
    Entry("kept batch damaged", 3, ("this kept batch is damaged", "batch-step-00000002.jsonl"), command="data run/recipe.yaml",
          prepare=run(lambda folder: (folder / "data" / "batch-step-00000002.jsonl").write_text('{"input_ids": [99999999], "weights": [1.0], "file": "x", "line": 1}\n'))),
    Entry("record damaged", 7, ("run.json is damaged",), command="inspect run", prepare=run(lambda folder: (folder / "run.json").write_text("{"))),
]  # fmt: skip
