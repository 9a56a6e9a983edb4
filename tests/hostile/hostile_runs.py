"""Run folders whose checkpoints were tampered with. An older good checkpoint may be gone on from; nothing else."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import PAYLOAD, Case, Scene, header_bytes

COMMAND = "resume run"
NEWEST = "step-00000002"
EMPTY_SHA = hashlib.sha256(b"").hexdigest()


def newest(change: Callable[[Path, Scene], object]) -> Callable[[Scene], object]:
    return lambda scene: change(scene.run() / "checkpoints" / NEWEST, scene)


def manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2, ensure_ascii=False) + "\n")


def with_hash(folder: Path, name: str, data: bytes) -> None:
    """Puts a file in and tells the manifest about it: only what it holds gives it away."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    known = json.loads((folder / "manifest.json").read_text())["files"]
    known[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest(folder, files=known)


def listed(name: str) -> Callable[[Path, Scene], None]:
    def change(folder: Path, scene: Scene) -> None:
        known = json.loads((folder / "manifest.json").read_text())["files"]
        manifest(
            folder, files={**known, name.replace("OUTSIDE", str(scene.outside)): {"bytes": 0, "sha256": EMPTY_SHA}}
        )

    return change


def linked(name: str) -> Callable[[Path, Scene], None]:
    def change(folder: Path, scene: Scene) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(scene.outside)

    return change


def linked_folder(folder: Path, scene: Scene) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(scene.folder)


def piped(name: str) -> Callable[[Path, Scene], None]:
    def change(folder: Path, scene: Scene) -> None:
        known = json.loads((folder / "manifest.json").read_text())["files"]
        (folder / name).unlink()
        os.mkfifo(folder / name)
        manifest(folder, files={**known, name: {"bytes": 0, "sha256": EMPTY_SHA}})

    return change


def piped_manifest(folder: Path, scene: Scene) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def pickles(folder: Path, scene: Scene) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "custom_checkpoint_0.pkl"):
        with_hash(folder, name, PAYLOAD)


def everywhere(change: Callable[[Path, Scene], object]) -> Callable[[Scene], object]:
    def prepare(scene: Scene) -> None:
        for folder in sorted((scene.run() / "checkpoints").iterdir()):
            change(folder, scene)

    return prepare


def state(**changes: Any) -> Callable[[Path, Scene], None]:
    def change(folder: Path, scene: Scene) -> None:
        document = {**json.loads((folder / "state.json").read_text()), **changes}
        with_hash(folder, "state.json", (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())

    return change


def many_digits(scene: Scene) -> None:
    checkpoints = scene.run() / "checkpoints"
    shutil.copytree(checkpoints / NEWEST, checkpoints / ("step-" + "9" * 200))


def with_nan(folder: Path, scene: Scene) -> None:
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load((folder / "adapter.safetensors").read_bytes())
    tensors[min(tensors)] = torch.full_like(tensors[min(tensors)], float("nan"))
    with_hash(folder, "adapter.safetensors", safetensors.torch.save(tensors))


def record(text: str) -> Callable[[Scene], object]:
    return lambda scene: (scene.run() / "run.json").write_text(text)


REFUSED = frozenset({7})
ANY = frozenset({0, 7})


def case(
    name: str, prepare: Callable[[Scene], object], *says: str, codes: frozenset[int] = ANY, command: str = COMMAND
) -> Case:
    return Case(f"run: {name}", "run", prepare, codes, says, command)


BENIGN = Case("run", "run", lambda scene: scene.run(), frozenset({0}), (), COMMAND)

CHECKPOINTS = [
    case("file is a link", newest(linked("adapter.safetensors")), f"{NEWEST} cannot be used"),
    case("manifest is a link", newest(linked("manifest.json")), f"{NEWEST} cannot be used"),
    # a link is nothing that a run of ours wrote, and is not removed
    case("folder is a link", newest(linked_folder), f"{NEWEST} cannot be used", codes=ANY | {6}),
    case("file is a pipe", newest(piped("state.json")), f"{NEWEST} cannot be used"),
    case("manifest is a pipe", newest(piped_manifest), f"{NEWEST} cannot be used"),
    case("manifest of another run", everywhere(lambda folder, scene: manifest(folder, run_id="0" * 16)), codes=REFUSED),
    case("name leads up", newest(listed("../../../outside")), f"{NEWEST} cannot be used"),
    case("absolute name", newest(listed("OUTSIDE")), f"{NEWEST} cannot be used"),
    case("pickles that are listed", everywhere(pickles), codes=ANY),
    case("pickle as tensors", newest(lambda folder, scene: with_hash(folder, "optimizer.safetensors", PAYLOAD)), f"{NEWEST} cannot be used"),
    case("header of 2**62", newest(lambda folder, scene: with_hash(folder, "adapter.safetensors", (1 << 62).to_bytes(8, "little"))), f"{NEWEST} cannot be used"),
    case("huge shape", newest(lambda folder, scene: with_hash(folder, "adapter.safetensors", header_bytes({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)))), f"{NEWEST} cannot be used"),
    case("other tensors", newest(lambda folder, scene: with_hash(folder, "adapter.safetensors", header_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))))),
    case("deep state", newest(lambda folder, scene: with_hash(folder, "state.json", b"[" * 200_000)), f"{NEWEST} cannot be used"),
    case("large manifest", newest(lambda folder, scene: os.truncate(folder / "manifest.json", 1 << 30)), f"{NEWEST} cannot be used"),
    case("large tensors", newest(lambda folder, scene: os.truncate(folder / "adapter.safetensors", 40 << 30)), f"{NEWEST} cannot be used"),
    case("state of another step", newest(state(step=999)), f"{NEWEST} cannot be used"),
    case("state without parts", newest(state(training={})), f"{NEWEST} cannot be used"),
    case("state with wrong types", newest(state(scalars={"optimizer": [EMPTY_SHA], "scaler": 3})), codes=ANY),
    case("step of 200 digits", many_digits),
    case("NaN with a right hash", newest(with_nan), codes=frozenset({0, 7, 8})),
    case("record of deep lists", record("[" * 100_000), command="inspect run", codes=frozenset({4, 7})),
    case("record is no record", record('{"status": 3, "samples": "x", "settings": []}'), command="merge run --output m", codes=frozenset({0, 3, 4, 7})),
    case("record with a type of its own", record('{"settings": {"dtype": "__import__(\'os\')"}}'), command="merge run --output m", codes=frozenset({0, 3, 4, 7})),
]  # fmt: skip
