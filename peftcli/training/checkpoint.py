"""Checkpoints: safetensors and JSON in a folder that exists only when it is complete. Nothing is ever unpickled.

    checkpoints/step-00000100/adapter.safetensors     what the adapter calls its state
                              optimizer.safetensors   the optimizer's tensors, and what every step logged
                              best.safetensors        the adapter at the best evaluation, where that was earlier
                              state.json              every number
                              manifest.json           size and SHA-256 of each file, written last

The rename of the folder is the commit. Resuming takes the newest folder that verifies and names each that does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from peftcli import files, folders
from peftcli.errors import CheckpointError, Fault, NumericalError, StorageError
from peftcli.training.history import history_tensors, take_history
from peftcli.training.training_state import TrainingState

CHECKPOINTS, PREFIX = "checkpoints", "step-"
ADAPTER, OPTIMIZER, BEST, STATE = "adapter.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"
LOSSES = "losses"

_FIX = "train again with `peft train`, or put back what has changed"
_STATE_LIMIT_BYTES = 16 << 20
_STATE_KEYS = {"kind", "run_id", "step", "identity", "training", "scalars"}
# a fifth more than the tensors, and 64 KiB for the JSON beside them
_FREE_SPACE_FACTOR = 1.2
_FREE_SPACE_BYTES = 1 << 16


@dataclass
class Snapshot:
    """The whole state of a run after a step; tensors on the CPU."""

    state: TrainingState
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    scalars: dict[str, Any]
    best: dict[str, Tensor] | None = None


@dataclass
class CheckpointStore:
    """The checkpoints of one run. `identity` (JSON) tells what must be equal to resume: recipe, data, base."""

    folder: Path
    run_id: str
    keep: int = 2
    identity: dict[str, Any] = field(default_factory=dict)

    def follow(self, run: Path) -> None:
        """The run folder lies elsewhere now, with its checkpoints."""
        self.folder = run / CHECKPOINTS

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"{PREFIX}{step:08d}"

    def save(self, snapshot: Snapshot) -> Path:
        """Commits a snapshot, then removes older checkpoints of this run beyond the newest `keep` and the best.

        Raises `NumericalError` for a tensor that is not finite, `StorageError` when the disk is full or broken.
        """
        # before anything is written: a checkpoint that is not finite could not be resumed from, and would push out a
        # good one
        _require_finite(snapshot)
        blobs = {
            ADAPTER: safetensors.torch.save(snapshot.adapter),
            OPTIMIZER: safetensors.torch.save(
                {**snapshot.optimizer, LOSSES: _loss_tensor(snapshot.state), **history_tensors(snapshot.state.lines)}
            ),
        }
        if snapshot.best is not None:
            blobs[BEST] = safetensors.torch.save(snapshot.best)
        # asked first: a disk that fills up in the middle costs the time of the write and fails all the same
        self._require_space(sum(len(blob) for blob in blobs.values()))
        path = self.path(snapshot.state.step)
        _require_no_strangers(path)
        with folders.staged_folder(path, manifest=self._manifest(snapshot.state.step), replace=True) as staging:
            for name, blob in blobs.items():
                staging.write(name, blob)
            staging.write_json(STATE, self._state_json(snapshot))
        self.retain(snapshot.state)
        return path

    def _manifest(self, step: int) -> dict[str, Any]:
        return {"kind": "checkpoint", "run_id": self.run_id, "step": step}

    def _state_json(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            **self._manifest(snapshot.state.step),
            "identity": self.identity,
            "training": snapshot.state.to_dict(),
            "scalars": snapshot.scalars,
        }

    def _require_space(self, num_bytes: int) -> None:
        needed = int(num_bytes * _FREE_SPACE_FACTOR) + _FREE_SPACE_BYTES
        free = files.free_bytes(self.folder)
        if free < needed:
            raise StorageError(
                f"no space for a checkpoint: {needed:,} bytes are needed, {free:,} are free",
                where=str(self.folder),
                fix="free some space, then `peft resume` the run",
            )

    def retain(self, state: TrainingState) -> None:
        """Removes checkpoints of this run beyond the newest `keep`, that of `state`, and the best."""
        ours = [path for path in self.candidates() if self._is_ours(path)]
        kept = {*ours[: self.keep], self.path(state.step)}
        if state.best_step is not None:
            kept.add(self.path(state.best_step))
        # only after the new one is in place: at no time is there less to resume from than before
        for path in ours:
            if path not in kept:
                folders.remove_folder(path)

    def _is_ours(self, path: Path) -> bool:
        try:
            return bool(_read_manifest(path)["run_id"] == self.run_id)
        except ValueError:
            return False

    def candidates(self) -> list[Path]:
        """Folders that are named like a checkpoint, newest first; nothing is said about what is in them."""
        if not self.folder.is_dir():
            return []
        # by number and not by time: copying a run gives its folders new times
        found = [path for path in self.folder.iterdir() if _step_of(path) is not None and path.is_dir()]
        return sorted(found, key=lambda path: _step_of(path) or 0, reverse=True)

    def clean(self) -> None:
        """Removes what a killed save or removal left behind; call it only as the owner of the run folder."""
        if self.folder.is_dir():
            for path in sorted(self.folder.glob(f"{files.TEMPORARY_PREFIX}*{PREFIX}*")):
                if files.is_temporary(path) and path.is_dir() and not path.is_symlink():
                    with files.storage_errors(path):
                        files.disk.remove_tree(path)

    def newest(self) -> tuple[Snapshot | None, list[Fault]]:
        """The newest snapshot that verifies, and each newer folder that does not, with the reason.

        (None, []) where there is no folder at all. Raises `CheckpointError` where there are some and none is good,
        or where the newest good one belongs to another recipe or data.
        """
        rejected: list[Fault] = []
        for path in self.candidates():
            # from the newest down: one that is damaged costs the steps since the one before, not the run
            try:
                return self.load(path), rejected
            except ValueError as error:
                rejected.append(Fault(f"{path.name} cannot be used: {error}", where=str(path)))
        if rejected:
            raise CheckpointError("no checkpoint of this run can be used", faults=rejected, fix=_FIX)
        return None, rejected

    def load(self, path: Path) -> Snapshot:
        """Reads and verifies one checkpoint. `ValueError` says what is wrong with it."""
        if path.is_symlink():
            raise ValueError("it is a link")
        # byte for byte first, which `verify_manifest` does not ask for
        _read_manifest(path)
        try:
            manifest = folders.verify_manifest(path)
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror or error}") from error
        facts = _read_state(path)
        if set(facts) != _STATE_KEYS or not all(isinstance(facts[key], dict) for key in ("identity", "training")):
            raise ValueError(f"{STATE} has an unknown format")
        snapshot = _snapshot(path, facts, manifest["files"])
        expected = self._manifest(_step_of(path) or 0)
        for name in ("kind", "step"):
            _require_fact(name, expected[name], manifest, facts)
        # what changed is told before whose it is: the run's id may be made of its identity
        self._require_identity(path, facts["identity"])
        _require_fact("run_id", expected["run_id"], manifest, facts)
        return snapshot

    def _require_identity(self, path: Path, saved: Mapping[str, Any]) -> None:
        changed = sorted(key for key in {*saved, *self.identity} if saved.get(key) != self.identity.get(key))
        if changed:
            faults = [
                Fault(f"{key} was {saved.get(key)!r} and is now {self.identity.get(key)!r}", where=str(path))
                for key in changed
            ]
            raise CheckpointError("the checkpoint belongs to another recipe or other data", faults=faults, fix=_FIX)


def _require_fact(name: str, wanted: Any, *found: Mapping[str, Any]) -> None:
    for facts in found:
        if facts.get(name) != wanted:
            raise ValueError(f"its {name} is {facts.get(name)!r}, not {wanted!r}")


def _step_of(path: Path) -> int | None:
    digits = path.name.removeprefix(PREFIX)
    return int(digits) if path.name.startswith(PREFIX) and digits.isascii() and digits.isdigit() else None


def _loss_tensor(state: TrainingState) -> Tensor:
    # float64: a loss comes back as the very number that was logged
    return torch.tensor(state.losses, dtype=torch.float64)


def _require_finite(snapshot: Snapshot) -> None:
    bad = [
        name
        for tensors in (snapshot.adapter, snapshot.optimizer, snapshot.best or {})
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise NumericalError(
            f"the state after step {snapshot.state.step} is not finite and was not saved: {', '.join(bad[:5])}",
            fix="lower the learning rate; `peft resume` goes on from the last good checkpoint",
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, byte for byte as we write it, so that not one flipped bit of it goes unseen."""
    return _read_canonical(path / folders.MANIFEST_NAME)


def _read_state(path: Path) -> dict[str, Any]:
    return _read_canonical(path / STATE)


def _read_canonical(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link")
    try:
        text = files.read_bounded(path, limit_bytes=_STATE_LIMIT_BYTES).decode("utf-8")
        facts = json.loads(text)
        canonical = files.to_json(facts) == text
    except (OSError, StorageError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is missing or damaged") from error
    if not canonical or not isinstance(facts, dict):
        raise ValueError(f"{path.name} is damaged")
    return facts


def _snapshot(path: Path, facts: dict[str, Any], names: Mapping[str, Any]) -> Snapshot:
    optimizer = _read_tensors(path / OPTIMIZER)
    if LOSSES not in optimizer:
        raise ValueError(f"{OPTIMIZER} holds no {LOSSES}")
    state = TrainingState.from_dict(facts["training"], optimizer.pop(LOSSES).double().tolist())
    state.lines = take_history(optimizer, state.step)
    return Snapshot(
        state=state,
        adapter=_read_tensors(path / ADAPTER),
        optimizer=optimizer,
        scalars=facts["scalars"],
        best=_read_tensors(path / BEST) if BEST in names else None,
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _require_no_strangers(path: Path) -> None:
    """A folder that a checkpoint replaces holds nothing but a checkpoint, whole or damaged."""
    own = {ADAPTER, OPTIMIZER, BEST, STATE, folders.MANIFEST_NAME}
    others = sorted(item.name for item in path.iterdir() if item.name not in own) if path.is_dir() else []
    if others:
        raise StorageError(
            f"the place of a checkpoint holds other files ({', '.join(others[:3])})",
            where=str(path),
            fix="move them elsewhere, then `peft resume` the run",
        )
